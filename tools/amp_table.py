"""AMP (arXiv 2603.08100) on a real model, and this project at the sizes that AMP chooses.

For every threshold AMP finds the widths of the MLPs, ranked by its importance and without compensation. Beside it stand
the same widths and order with the compensation and the refit, the same widths with the OBS order, and the default
preset at the same MACs. Prints a Markdown table. Needs PyTorch (corp-onnx[taylor]).

    .venv/bin/python tools/amp_table.py ../shared/models/deit_tiny_patch16_224.onnx --thresholds 0.003 0.03 \\
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from corp_onnx.search.best import BestSettings
from study import Row, keep_tokens, open_study, print_rows, study_parser

from corp_onnx.calibrate.collect import choose_units
from corp_onnx.gradients import collect_taylor
from corp_onnx.search.amp import search_widths
from corp_onnx.search.problem import Outcome, Situation
from corp_onnx.search.strategy import draw_probes, prepare_search, solve_fixed, trace_units


def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.003, 0.03])
    args = parser.parse_args()

    study = open_study(args)
    rows: dict[str, list[Row]] = defaultdict(list)
    for seed in args.seeds:
        for name, at, outcome in _outcomes(study.draw(seed), args.thresholds):
            rows[name].append(study.measure(at, outcome))
            print(f"seed {seed}: {name}: {rows[name][-1]}", flush=True)
    print_rows(rows)


def _outcomes(situation: Situation, thresholds: list[float]) -> Iterator[tuple[str, Situation, Outcome]]:
    """(row name, situation, outcome): AMP's own rows leave no tokens out."""
    best = prepare_search(situation, BestSettings())
    whole = keep_tokens(best)
    plain = replace(whole.situation, units=choose_units(situation.blocks, qk=False))
    plain = replace(plain, importances=collect_taylor(plain.graph, plain.units.mlps, plain.calibration))
    evaluator = draw_probes(plain)
    for threshold in thresholds:
        published = BestSettings(rank="taylor", allocate="amp", amp_threshold=threshold, compensate=False, refit=False)
        choices = trace_units(plain, published)
        widths = search_widths(plain.graph, plain.blocks, choices, evaluator, published)
        kinds = {
            "AMP as published": published,
            "its widths and order, compensated": replace(published, compensate=True),
            "its widths and order, refitted": replace(published, compensate=True, refit=True),
            "its widths, OBS order, refitted": replace(published, compensate=True, refit=True, rank="obs"),
        }
        for name, settings in kinds.items():
            yield f"{threshold:g}: {name}", plain, solve_fixed(plain, settings, trace_units(plain, settings), widths)
        left_out = sum(c.macs_per_width * (c.width - widths[c.key]) for c in choices)
        kept = 1 - left_out / plain.graph.cost.total
        for which, search in (("best, all tokens computed", whole), ("best", best)):
            yield f"{threshold:g}: {which}, same MACs", search.situation, search.refitted("macs", kept)[0]


if __name__ == "__main__":
    main()
