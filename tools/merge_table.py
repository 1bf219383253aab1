"""What merging tokens brings on a real model: budgets x {both, tokens alone, widths alone, ToMe}, over several draws.

Every row of `best` is one call of the search that `corp-onnx prune --macs` follows. `tokens alone` are its schedules at
full width, `ToMe` the same number of tokens in every block compared by the mean of their keys, `widths alone` is
`--no-merge`. Prints a Markdown table with mean and half the range over the seeds, and the schedules that were found.

    .venv/bin/python tools/merge_table.py ../shared/models/deit_tiny_patch16_224.onnx --seeds 0 1 2 \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from study import Row, Study, open_study, print_rows, study_parser

from corp_onnx.search.probes import draw_probes
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.search import prepare_search
from corp_onnx.search.tokens import MergeCandidates, prepare_merging
from corp_onnx.settings import BEST
from corp_onnx.threads import few_blas_threads
from corp_onnx.tokens.metric import learn_metrics

BESIDE = ("ToMe", "widths alone")
ROWS = ("tokens alone", "best, no refit", "best", *BESIDE)


@few_blas_threads()
def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.6, 0.5, 0.4])
    parser.add_argument("--beside", type=int, nargs="*", default=[0], help="seeds for which widths alone and ToMe run")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=ROWS, help="that are made")
    parser.add_argument("--picture", type=Path, help="draw the tokens behind every block of the first seed's `best`")
    parser.add_argument("--keep", help="write the models of `best` there: PREFIX.<budget>.<seed>.onnx")
    args = parser.parse_args()

    study = open_study(args)
    rows: dict[str, list[Row]] = defaultdict(list)
    drawn: dict[str, list[int]] = {}
    for seed in args.seeds:
        problem = study.draw(seed, method=BEST)
        wanted = [name for name in args.rows if name not in BESIDE or seed in args.beside]
        for name, budget, solution in _solutions(study, problem, args.budgets, wanted):
            row = f"{budget:.0%}, {name}"
            rows[row].append(study.measure(problem, solution))
            merged = " ".join(f"{step.site.block}:{step.n_merged}" for step in solution.merges)
            print(f"seed {seed}: {row}: {rows[row][-1]}; tokens merged by block: {merged or 'none'}", flush=True)
            if name == "best" and seed == args.seeds[0]:
                drawn[f"{budget:.0%}"] = _count_tokens(problem, solution)
            if args.keep and name == "best":
                made = problem.rewrite(solution.changes, solution.merges).make(problem.graph)
                onnx.save(made, f"{args.keep}.{budget:g}.{seed}.onnx")
    print_rows(rows)
    if args.picture:
        args.picture.write_text(draw_schedules(drawn), encoding="utf-8")


def _count_tokens(problem: Problem, solution: Solution) -> list[int]:
    """Tokens behind the attention of every block."""
    merged = {step.site.block: step.n_merged for step in solution.merges}
    n_tokens, found = problem.sites.n_tokens, list[int]()
    for block in problem.blocks.blocks:
        n_tokens -= merged.get(block.idx, 0)
        found.append(n_tokens)
    return found


def draw_schedules(schedules: Mapping[str, Sequence[int]]) -> str:
    """Tokens over blocks as an SVG: a line of steps for every budget, its name where it ends."""
    width, height, left, top = 640, 320, 60, 20
    n_blocks, most = max(map(len, schedules.values())), max(max(tokens) for tokens in schedules.values())
    step = (width - left - 60) / n_blocks
    shades = ("#1b6ca8", "#2a9d5c", "#c77d0a", "#b3332e", "#6b4fa0")

    def y(tokens: float) -> float:
        return top + (height - top - 40) * (1 - tokens / most)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             f'font-size="12">', f'<rect width="{width}" height="{height}" fill="white"/>']  # fmt: skip
    for tokens in range(0, most + 1, 50):
        parts.append(f'<line x1="{left}" x2="{width - 60}" y1="{y(tokens):.1f}" y2="{y(tokens):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tokens) + 4:.1f}" text-anchor="end">{tokens}</text>')
    for block in range(n_blocks):
        parts.append(
            f'<text x="{left + step * (block + 0.5):.1f}" y="{height - 22}" text-anchor="middle">{block}</text>'
        )
    parts.append(f'<text x="{left}" y="{height - 5}">block; tokens behind its attention</text>')
    for (name, tokens), shade in zip(schedules.items(), itertools.cycle(shades), strict=False):
        path = f"M{left} {y(most):.1f}" + "".join(f"V{y(n):.1f}h{step:.1f}" for n in tokens)
        parts.append(f'<path d="{path}" fill="none" stroke="{shade}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 56}" y="{y(tokens[-1]) + 4:.1f}" fill="{shade}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _solutions(
    study: Study, problem: Problem, budgets: list[float], wanted: Sequence[str]
) -> Iterator[tuple[str, float, Solution]]:
    """(row name, budget, solution) of the rows that are wanted."""
    search = prepare_search(problem)
    candidates = {"ToMe": _prepare_tome(study, problem) if "ToMe" in wanted else None, "tokens alone": search.merging}
    searches = {
        "best, no refit": search.one_shot,
        "best": search.refitted,
        "widths alone": replace(search, merging=None).refitted,
    }
    for budget, name in itertools.product(budgets, wanted):
        if name in searches:
            yield name, budget, searches[name]("macs", budget)
        elif (found := candidates[name]) and (alone := _merge_alone(found, budget * problem.graph.cost.total)):
            yield name, budget, alone


def _prepare_tome(study: Study, problem: Problem) -> MergeCandidates | None:
    keys = learn_metrics(study.graph, problem.blocks, problem.sites, problem.calibration, "keys")
    constant = replace(problem, metrics=keys, method=replace(BEST, merge="constant", merge_metric="keys"))
    return prepare_merging(constant, draw_probes(problem))


def _merge_alone(candidates: MergeCandidates, limit: float) -> Solution | None:
    """The first schedule that keeps within a cost at full width."""
    for schedule in candidates.schedules:
        plan = candidates.plan(schedule)
        if plan is not None and plan.cost.total <= limit:
            return Solution({}, (), merges=plan.steps)
    return None


if __name__ == "__main__":
    main()
