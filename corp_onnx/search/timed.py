"""The least loss within a time: the search pays by a table of times, and what it finds is measured before its refit.

A table knows what widths take beside each other, from micro-graphs; of a whole model it is off by a few percent. How
fast a model is depends on its widths and tokens alone, so a one-shot solution is built and timed beside the dense model
in turns, and the budget moved by what the table was off, until the measured time fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from corp_onnx.errors import OptionError
from corp_onnx.latency.clock import MISSED, Clock
from corp_onnx.latency.stopwatch import Stopwatch
from corp_onnx.search.problem import Solution
from corp_onnx.search.search import Search
from corp_onnx.settings import Budget

N_TRIALS = 4
"""Candidates that are timed at most; each costs a rewrite and a few seconds."""

CLOSE = 0.01
"""Of the time that is asked for: a median of a shared machine is not better known."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A one-shot solution with its share of the dense model's time, by the table (before) and by the clock."""

    solution: Solution
    expected: float
    share: float


def search_time(search: Search, budget: Budget, clock: Clock) -> Solution:
    """The refitted solution that takes no longer than the budget allows; where the table is of another machine, by it.

    Raises:
        OptionError: pruning can not make the model so fast.
    """
    wanted = budget.kept_share(clock.times.dense)
    if clock.watch is None:
        with search.problem.run.enter("search"):
            solution = search.one_shot("time", wanted, before_refit=True)
        return replace(search.refit(solution), expected_speedup=1 / wanted)
    trials: list[Trial] = []
    aim = wanted
    while len(trials) < N_TRIALS:
        try:
            with search.problem.run.enter("search"):
                solution = search.one_shot("time", aim, before_refit=True)
        except OptionError:
            if not trials:
                raise
            break
        trials.append(Trial(solution, aim, _time_share(search, solution, clock.watch)))
        if abs(trials[-1].share / wanted - 1) <= CLOSE:
            break
        aim *= wanted / trials[-1].share
    best = choose_trial(trials, wanted)
    if best.share > wanted * MISSED:
        raise OptionError(
            f"{1 / wanted:.3g} times as fast is more than pruning can reach on this model here: "
            f"{1 / best.share:.3g} times was measured ({clock.times.place}). Ask for less, lower --align, or name more "
            "--units."
        )
    return replace(search.refit(best.solution), expected_speedup=1 / best.expected)


def choose_trial(trials: list[Trial], wanted: float) -> Trial:
    """The slowest that is fast enough, or the fastest."""
    enough = [trial for trial in trials if trial.share <= wanted * (1 + CLOSE)]
    return max(enough, key=lambda t: t.share) if enough else min(trials, key=lambda t: t.share)


def _time_share(search: Search, solution: Solution, watch: Stopwatch) -> float:
    problem = search.problem
    proto = problem.finish(solution.changes, solution.merges).make(problem.graph)
    with problem.run.enter("time it"):
        return 1 / watch.compare(watch.start(proto)).speedup.median
