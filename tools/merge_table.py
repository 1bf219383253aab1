"""What merging tokens brings on a real model: budgets x {both, tokens alone, widths alone, ToMe}, over several draws.

Every row of `best` is one call of the search that `corp-onnx prune --macs` follows. `tokens alone` are its schedules at
full width, `ToMe` the same number of tokens in every block compared by the mean of their keys, `widths alone` is
`--no-merge`. Prints a Markdown table with mean and half the range over the seeds, and the schedules that were found.

    .venv/bin/python tools/merge_table.py ../shared/models/deit_tiny_patch16_224.onnx --seeds 0 1 2 \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import onnx
from study import Row, Study, open_study, print_rows, study_parser

from corp_onnx.search.probes import draw_probes
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.search import Search, prepare_search
from corp_onnx.search.tokens import MergeCandidates, prepare_merging
from corp_onnx.settings import BEST
from corp_onnx.tokens.metric import learn_metrics


def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.6, 0.5, 0.4])
    parser.add_argument("--beside", type=int, nargs="*", default=[0], help="seeds for which widths alone run as well")
    parser.add_argument("--keep", help="write the models of `best` there: PREFIX.<budget>.<seed>.onnx")
    args = parser.parse_args()

    study = open_study(args)
    rows: dict[str, list[Row]] = defaultdict(list)
    for seed in args.seeds:
        problem = study.draw(seed)
        for name, budget, solution in _solutions(study, problem, args.budgets, seed in args.beside):
            row = f"{budget:.0%}, {name}"
            rows[row].append(study.measure(problem, solution))
            merged = " ".join(f"{step.site.block}:{step.n_merged}" for step in solution.merges)
            print(f"seed {seed}: {row}: {rows[row][-1]}; tokens merged by block: {merged or 'none'}", flush=True)
            if args.keep and name == "best":
                made = problem.rewrite(solution.changes, solution.merges).make(problem.graph)
                onnx.save(made, f"{args.keep}.{budget:g}.{seed}.onnx")
    print_rows(rows)


def _solutions(
    study: Study, problem: Problem, budgets: list[float], beside: bool
) -> Iterator[tuple[str, float, Solution]]:
    """(row name, budget, solution)."""
    search = prepare_search(problem)
    assert problem.sites is not None
    keys = learn_metrics(study.graph, problem.blocks, problem.sites, problem.calibration, "keys")
    constant = replace(problem, metrics=keys, method=replace(BEST, merge="constant", merge_metric="keys"))
    tome = prepare_merging(constant, draw_probes(problem))
    for budget in budgets:
        for name, candidates in (("ToMe", tome), ("tokens alone", search.merging)):
            if candidates and (alone := _merge_alone(candidates, budget * problem.graph.cost.total)):
                yield name, budget, alone
        yield "best, no refit", budget, search.one_shot("macs", budget)
        yield "best", budget, search.refitted("macs", budget)
        if beside:
            yield "widths alone", budget, _without_merging(search).refitted("macs", budget)


def _merge_alone(candidates: MergeCandidates, limit: float) -> Solution | None:
    """The first schedule that keeps within a cost at full width."""
    for schedule in candidates.schedules:
        plan = candidates.plan(schedule)
        if plan is not None and plan.cost.total <= limit:
            return Solution({}, (), merges=plan.steps)
    return None


def _without_merging(search: Search) -> Search:
    return replace(search, merging=None)


if __name__ == "__main__":
    main()
