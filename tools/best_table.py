"""What `--preset best` reaches on a real model: budgets x ingredients, over several draws of the calibration images.

Every row is one call of the strategy that `corp-onnx prune` follows; moments, curves and probes of a draw are shared by
its rows. Prints a Markdown table with mean and half the range over the seeds, the paper's method at equal MACs beside.

    .venv/bin/python tools/best_table.py ../shared/models/deit_tiny_patch16_224.onnx --seeds 0 1 2 \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from corp_onnx.search.best import BestSettings
from corp_onnx.search.plan import Cut
from study import Row, keep_tokens, open_study, print_rows, study_parser

from corp_onnx.calibrate.collect import choose_units
from corp_onnx.search.problem import Outcome, Situation
from corp_onnx.search.strategy import follow_paper, prepare_search

PAPER = {0.617: Cut(0.5, 0.5), 0.8: Cut(0.263, 0.25), 0.9: Cut(0.133, 0.125)}
"""The paper's fractions that keep about these shares of DeiT-Tiny's MACs: equal cost, not equal fractions."""


def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.617, 0.8, 0.9])
    parser.add_argument("--images", type=int, nargs="+", help="calibrate on so many; default: seven eighths")
    parser.add_argument("--ablations", action="store_true", help="at the first budget, one ingredient off at a time")
    args = parser.parse_args()

    study = open_study(args)
    rows: dict[str, list[Row]] = defaultdict(list)
    for seed, n_images in itertools.product(args.seeds, args.images or [None]):
        situation = study.draw(seed, n_images)
        for row, at, outcome in _outcomes(situation, args.budgets, args.ablations and seed == args.seeds[0]):
            name = f"{row}, {n_images} images" if n_images else row
            rows[name].append(study.measure(at, outcome))
            print(f"seed {seed}: {name}: {rows[name][-1]}", flush=True)
    print_rows(rows)


def _outcomes(
    situation: Situation, budgets: list[float], ablations: bool
) -> Iterator[tuple[str, Situation, Outcome]]:  # fmt: skip
    """(row name, situation, outcome); the paper and a row of ours leave no tokens out."""
    search = prepare_search(situation, BestSettings())
    whole = keep_tokens(search)
    plain = replace(whole.situation, units=choose_units(situation.blocks))
    for budget in budgets:
        if budget in PAPER:
            yield f"{budget:.1%}, paper", plain, follow_paper(plain, PAPER[budget])
        yield f"{budget:.1%}, best, all tokens computed", whole.situation, whole.refitted("macs", budget)[0]
        yield f"{budget:.1%}, best, no refit", situation, search.one_shot("macs", budget)[0]
        yield f"{budget:.1%}, best", situation, search.refitted("macs", budget)[0]
    if ablations:
        yield from _ablations(situation, budgets[0])


def _ablations(
    situation: Situation, budget: float
) -> Iterator[tuple[str, Situation, Outcome]]:  # fmt: skip
    """One ingredient off at a time, the rest as in best."""
    off = {
        "no values": BestSettings(vo=False),
        "uniform widths": BestSettings(allocate="uniform"),
        "energy order": BestSettings(rank="energy"),
        "paper's queries and keys": BestSettings(qk="sylvester"),
        "equal heads": BestSettings(equal_heads=True),
        "aligned to 16": BestSettings(align=16),
        "no unit favoured": BestSettings(favour_late=False),
        "tokens counted alike": BestSettings(weigh_tokens=False),
    }
    for name, settings in off.items():
        units = choose_units(situation.blocks, vo=settings.vo)
        other = prepare_search(replace(situation, units=units), settings)
        yield f"{budget:.1%}, {name}", situation, other.refitted("macs", budget)[0]


if __name__ == "__main__":
    main()
