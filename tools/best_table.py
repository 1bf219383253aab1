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

from study import Row, keep_tokens, open_study, print_rows, study_parser

from corp_onnx.checks.preflight import choose_units
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.search import prepare_search
from corp_onnx.search.strategy import follow_method
from corp_onnx.settings import BEST, PAPER, Budget, Fractions, Method

FRACTIONS = {0.617: Fractions(0.5, 0.5), 0.8: Fractions(0.263, 0.25), 0.9: Fractions(0.133, 0.125)}
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
        problem = study.draw(seed, n_images)
        for row, at, solution in _solutions(problem, args.budgets, args.ablations and seed == args.seeds[0]):
            name = f"{row}, {n_images} images" if n_images else row
            rows[name].append(study.measure(at, solution))
            print(f"seed {seed}: {name}: {rows[name][-1]}", flush=True)
    print_rows(rows)


def _solutions(
    problem: Problem, budgets: list[float], ablations: bool
) -> Iterator[tuple[str, Problem, Solution]]:  # fmt: skip
    """(row name, problem, solution); the paper and a row of ours leave no tokens out."""
    search = prepare_search(problem)
    whole = keep_tokens(search)
    for budget in budgets:
        if budget in FRACTIONS:
            plain = _with_method(whole.problem, replace(PAPER, widths=FRACTIONS[budget]))
            yield f"{budget:.1%}, paper", plain, follow_method(plain)
        yield f"{budget:.1%}, best, all tokens computed", whole.problem, whole.refitted("macs", budget)
        yield f"{budget:.1%}, best, no refit", problem, search.one_shot("macs", budget)
        yield f"{budget:.1%}, best", problem, search.refitted("macs", budget)
    if ablations:
        yield from _ablations(problem, budgets[0])


def _ablations(problem: Problem, budget: float) -> Iterator[tuple[str, Problem, Solution]]:
    """One ingredient off at a time, the rest as in best."""
    off = {
        "no values": replace(BEST, units=("mlp", "qk")),
        "uniform widths": replace(BEST, widths=Budget("macs", budget, "uniform")),
        "energy order": replace(BEST, rank="energy"),
        "paper's queries and keys": replace(BEST, qk="sylvester"),
        "equal heads": replace(BEST, equal_heads=True),
        "aligned to 16": replace(BEST, align=16),
        "no unit favoured": replace(BEST, favour_late=False),
        "tokens counted alike": replace(BEST, weigh_tokens=False),
    }
    for name, method in off.items():
        other = _with_method(problem, method)
        yield f"{budget:.1%}, {name}", other, prepare_search(other).refitted("macs", budget)


def _with_method(problem: Problem, method: Method) -> Problem:
    return replace(problem, method=method, units=choose_units(problem.graph, problem.blocks, method))


if __name__ == "__main__":
    main()
