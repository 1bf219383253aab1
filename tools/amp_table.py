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

from study import Row, keep_tokens, open_study, print_rows, study_parser

from corp_onnx.gradients import collect_taylor
from corp_onnx.search.amp import search_widths
from corp_onnx.search.probes import draw_probes
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.search import prepare_search
from corp_onnx.search.strategy import solve_fixed
from corp_onnx.search.widths import allow_cost
from corp_onnx.settings import Method, Threshold
from corp_onnx.units import list_units


def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.003, 0.03])
    args = parser.parse_args()

    study = open_study(args)
    rows: dict[str, list[Row]] = defaultdict(list)
    for seed in args.seeds:
        for name, at, solution in _solutions(study.draw(seed), args.thresholds):
            rows[name].append(study.measure(at, solution))
            print(f"seed {seed}: {name}: {rows[name][-1]}", flush=True)
    print_rows(rows)


def _solutions(problem: Problem, thresholds: list[float]) -> Iterator[tuple[str, Problem, Solution]]:
    """(row name, problem, solution): AMP's own rows leave no tokens out."""
    best = prepare_search(problem)
    whole = keep_tokens(best)
    mlps = list_units(problem.blocks, ("mlp",))
    importances = collect_taylor(problem.graph, mlps, problem.calibration)
    plain = replace(whole.problem, units=mlps, importances=importances)
    probes = draw_probes(plain)
    for threshold in map(Threshold, thresholds):
        name = f"{threshold.kl:g}"
        published = Method(units=("mlp",), rank="taylor", widths=threshold, compensate=False, refit=False, trim=False)
        amp = replace(plain, method=published)
        choices = amp.trace()
        widths = search_widths(amp, choices, probes, threshold)
        kinds = {
            "AMP as published": published,
            "its widths and order, compensated": replace(published, compensate=True),
            "its widths and order, refitted": replace(published, compensate=True, refit=True),
            "its widths, OBS order, refitted": replace(published, compensate=True, refit=True, rank="obs"),
        }
        for which, method in kinds.items():
            at = replace(plain, method=method)
            yield f"{name}: {which}", at, solve_fixed(at, at.trace(), widths)
        kept = allow_cost(amp, choices, "macs", 1.0).cost(widths) / plain.graph.cost.total
        for which, search in (("best, all tokens computed", whole), ("best", best)):
            yield f"{name}: {which}, same MACs", search.problem, search.refitted("macs", kept)


if __name__ == "__main__":
    main()
