"""How a budget can be split between tokens and widths: the schedules that are tried, and what each leaves for widths.

Enters the candidates for merging of one model; leaves `Way`s, which are the same whatever a budget of their kind asks,
and of the splits of one budget that which loses least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.problem import Plans, Problem, Solution, list_first
from corp_onnx.search.tokens import MergeCandidates
from corp_onnx.search.widths import Allowance, allow_cost
from corp_onnx.settings import CostKind
from corp_onnx.solve.allocate import UnitCurve
from corp_onnx.solve.schedule import Schedule
from corp_onnx.threads import Crew
from corp_onnx.tokens.sites import MergePlan
from corp_onnx.units import Choice, UnitKey

MAX_SCHEDULES = 64
"""Schedules that are tried against widths under one budget: enough that two neighbours are one to two percent of the
dense model apart in cost. A quarter of them lost up to half more (benchmarks/search.md)."""

MAX_SPLITS = 4
"""Of the most promising of these, how many are made and measured on the probe images: losses add up only nearly."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A budget split between widths and tokens, and its promised loss."""

    widths: dict[UnitKey, int]
    merge: MergePlan | None
    loss: float


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A schedule that a budget may take.

    Attributes:
        merge: what it merges; None where that is nothing.
        allowance: of all that the dense model costs, for the widths besides.
        curves: of these, by whether a refit follows; traced when first asked.
    """

    schedule: Schedule
    merge: MergePlan | None
    allowance: Allowance
    curves: dict[bool, list[UnitCurve]] = field(default_factory=dict)


def list_ways(problem: Problem, choices: Sequence[Choice], merging: MergeCandidates, kind: CostKind) -> tuple[Way, ...]:
    """The schedules that are tried under any budget of a kind."""
    plans = [(schedule, merging.plan(schedule)) for schedule in _spread(merging.schedules)]
    return tuple(Way(schedule, merge, allow_all(problem, choices, kind, merge)) for schedule, merge in plans)


def allow_all(problem: Problem, choices: Sequence[Choice], kind: CostKind, merge: MergePlan | None) -> Allowance:
    """What widths may cost where a model may cost what the dense one does.

    Args:
        merge: the tokens that merge besides.
    """
    return allow_cost(replace(problem, merge=merge).spending, choices, kind, 1.0)


def choose_together(
    solutions: Sequence[Solution], make: Callable[[Solution], onnx.ModelProto], probes: Evaluator, crew: Crew
) -> tuple[Solution, onnx.ModelProto]:
    """The solution that loses least on the images of the probes, and its model."""
    alone, made = probes.alone(), list[tuple[Solution, onnx.ModelProto]]()

    def measure(solution: Solution, probes: Evaluator) -> float:
        proto = make(solution)
        made.append((solution, proto))
        return probes.evaluate(proto).loss

    n = len(solutions) // crew.size * crew.size  # what is left over gets every core
    losses = crew.map(lambda solution: measure(solution, alone), solutions[:n])
    losses += [measure(solution, probes) for solution in solutions[n:]]
    chosen = solutions[int(np.argmin(losses))]
    return chosen, next(proto for solution, proto in made if solution is chosen)


def choose_in_turn(
    splits: Sequence[Split], solve: Callable[[Split, Plans], Solution], measure: Callable[[Solution], float]
) -> Solution:
    """The same where models are large: never are there more than two solutions, or a model beside another.

    Args:
        solve: is told of plans that are there already.
        measure: the loss.
    """
    best = solve(splits[0], {})
    least = measure(best)
    for split in splits[1:]:
        solution = solve(split, list_first(best.plans))
        loss = measure(solution)
        if loss < least:
            best, least = solution, loss
        del solution  # before the next is made
    return best


def _spread(schedules: Sequence[Schedule]) -> list[Schedule]:
    """At most MAX_SCHEDULES of them, evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(schedules) - 1, min(len(schedules), MAX_SCHEDULES)).round().astype(int))
    return [schedules[i] for i in places]
