"""Method -> what changes in a model, by its rule for widths.

    Fractions   the same fraction of every unit of a kind
    Threshold   every unit as far as a threshold on the loss allows                      amp.py
    Budget      widths by allocation under a cost, or the smallest that keeps a promise  widths.py, promise.py

and behind each, where the method has one, the refit on the pruned stream (refit/).
"""

from __future__ import annotations

from dataclasses import replace

from corp_onnx.refit.stream import find_walk
from corp_onnx.search.amp import THRESHOLD_IMAGES, describe_widths, search_widths
from corp_onnx.search.folds import cut_folds
from corp_onnx.search.probes import draw_probes, list_probes
from corp_onnx.search.problem import Problem, Solution, solve_widths
from corp_onnx.search.promise import PromiseSearch
from corp_onnx.search.search import Search, prepare_search
from corp_onnx.search.timed import search_time
from corp_onnx.settings import Budget, Fractions, Threshold
from corp_onnx.units import Choice, UnitKey, gather_changes


def follow_method(problem: Problem) -> Solution:
    """The solution that the method's rule for widths leads to."""
    rule = problem.method.widths
    if isinstance(rule, Fractions):
        return follow_fractions(problem, rule)
    if isinstance(rule, Threshold):
        return follow_threshold(problem, rule)
    return follow_budget(problem, rule)


def prepare_method(problem: Problem) -> None:
    """What the method asks for before it knows a number, and what a second number does not ask for again."""
    if not problem.method.has_budget:
        problem.trace()
        return
    folds = cut_folds(problem) if problem.is_crossed else ()
    for search in map(prepare_search, (problem, *folds)):
        if search.refits:
            search.weigh_tokens()


def kept_width(width: int, removed: float) -> int:
    """Channels that stay when a fraction is removed: rounded, and at least one."""
    return max(1, round(width * (1 - removed)))


def follow_fractions(problem: Problem, fractions: Fractions) -> Solution:
    """The same fraction of every unit of a kind; the paper's rule."""
    choices = problem.trace()
    widths = {c.key: kept_width(c.width, c.unit.removed(fractions)) for c in choices}
    return solve_fixed(problem, choices, widths)


def follow_threshold(problem: Problem, threshold: Threshold) -> Solution:
    """Every unit as narrow as the threshold allows when it alone is pruned."""
    choices, evaluator = problem.trace(), draw_probes(problem, THRESHOLD_IMAGES)
    widths = search_widths(problem, choices, evaluator, threshold)
    note = describe_widths(choices, widths, threshold, evaluator.n_images)
    solution = solve_fixed(problem, choices, widths)
    return replace(solution, notes=(note, *solution.notes))


def solve_fixed(problem: Problem, choices: tuple[Choice, ...], widths: dict[UnitKey, int]) -> Solution:
    """The solution at given widths, refitted where method and graph allow it."""
    plans = solve_widths(choices, widths, shelf=problem.shelf)
    search = Search(problem, choices, {}, find_walk(problem.blocks))
    return search.refit(Solution(gather_changes(plans), plans, notes=search.notes))


def follow_budget(problem: Problem, budget: Budget) -> Solution:
    """The best solution under a budget."""
    search = prepare_search(problem)
    if budget.is_promise:
        folds = tuple(prepare_search(fold) for fold in cut_folds(problem)) if problem.is_crossed else ()
        promise = PromiseSearch(search, folds or (search,), budget, problem.confidence)
        solution = replace(promise.find(), tried=tuple(promise.tried))
    elif problem.clock is not None:
        solution = search_time(search, budget, problem.clock)
    else:
        solution = search.refitted(budget.cost_kind, budget.value)
    probed = list_probes(search.choices, search.sensitivities)
    return replace(solution, notes=(*search.notes, *solution.notes), probed=probed)
