"""The curves and probes of one model, and the solutions that a cost asks of them, one-shot or refitted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from corp_onnx.blocks import SiteKey
from corp_onnx.errors import OptionError
from corp_onnx.refit import refit_changes
from corp_onnx.refit.stream import StreamWalk, find_walk
from corp_onnx.refit.token_weights import weigh_stops
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.probes import draw_probes, probe_choices
from corp_onnx.search.problem import Problem, Solution, solve_widths
from corp_onnx.search.widths import (
    CostKind,
    allocate_choices,
    allow_cost,
    favour_late,
    find_depths,
    narrowest_widths,
    require_narrower,
    uniform_widths,
)
from corp_onnx.settings import Budget, Method
from corp_onnx.units import Choice, UnitKey, gather_changes


@dataclass(slots=True, eq=False)
class Search:
    """The curves and probes of one model, and the solutions that a budget asks of them."""

    problem: Problem
    choices: tuple[Choice, ...]
    sensitivities: dict[UnitKey, float]
    walk: StreamWalk
    _judge: Evaluator | None = field(default=None)
    _weights: dict[SiteKey, np.ndarray] | None = field(default=None)

    @property
    def method(self) -> Method:
        """That of the problem."""
        return self.problem.method

    @property
    def refits(self) -> bool:
        """Whether method and graph allow a refit."""
        return self.method.refits and bool(self.walk.stops)

    def widths(self, kind: CostKind, value: float, *, before_refit: bool = False) -> dict[UnitKey, int]:
        """The width of every unit under a cost; another where a refit will follow."""
        allowance = allow_cost(self.problem, self.choices, kind, value)
        if self.is_uniform:
            return uniform_widths(self.choices, allowance)
        sensitivities = self.sensitivities
        if before_refit and self.refits and self.method.favour_late:
            sensitivities = favour_late(sensitivities, find_depths(self.problem.blocks))
        return allocate_choices(sensitivities, allowance)

    @property
    def is_uniform(self) -> bool:
        """Whether every unit loses the same fraction, without a search."""
        return isinstance(self.method.widths, Budget) and self.method.widths.allocate == "uniform"

    def smallest_macs(self) -> float:
        """The MACs of the smallest model that the rule for widths can reach."""
        allowance = allow_cost(self.problem, self.choices, "macs", 1.0)
        return allowance.cost(narrowest_widths(self.choices)) if self.is_uniform else allowance.smallest

    def one_shot(self, kind: CostKind, value: float) -> Solution:
        """The solution of a budget before any refit."""
        return self._solve(self.widths(kind, value), value)

    def refitted(self, kind: CostKind, value: float) -> Solution:
        """The solution of a budget with every last product solved again on the pruned stream."""
        return self.refit(self._solve(self.widths(kind, value, before_refit=True), value))

    def _solve(self, widths: dict[UnitKey, int], value: float) -> Solution:
        plans = solve_widths(self.choices, widths)
        return Solution(gather_changes(plans), plans, value)

    def refit(self, solution: Solution) -> Solution:
        """A one-shot solution with every last product solved again, where method and graph allow it."""
        p = self.problem
        if not self.refits or not solution.plans:
            return solution
        changes = refit_changes(
            p.graph, self.walk, solution.changes, self.make(solution), p.calibration, self._token_weights(),
            batch_size=p.batch_size, provider=p.provider, progress=p.progress,
        )  # fmt: skip
        return replace(solution, changes=changes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it, one sentence each."""
        if not self.method.refits or self.walk.stops:
            return ()
        return (f"no refit on the pruned stream: {self.walk.reason or 'no residual addition was found'}.",)

    def make(self, solution: Solution) -> onnx.ModelProto:
        """The graph of a solution."""
        return self.problem.rewrite(solution.changes).make(self.problem.graph)

    @property
    def judge(self) -> Evaluator:
        """The held-back images with the dense model's answers; computed when first asked."""
        p = self.problem
        if self._judge is None:
            self._judge = prepare_evaluator(p.graph.model, p.held_out, batch_size=p.batch_size, provider=p.provider)
        return self._judge

    def _token_weights(self) -> dict[SiteKey, np.ndarray]:
        """Computed by the first refit, the same for all; none where tokens are to count alike."""
        p = self.problem
        if not self.method.weigh_tokens:
            return {}
        if self._weights is None:
            self._weights = weigh_stops(p.graph, self.walk, p.calibration, batch_size=p.batch_size, provider=p.provider)
        return self._weights

    def agreement(self, solution: Solution) -> float:
        """Share of the held-back images with the dense model's first answer.

        Raises:
            OptionError: the model's first output is not logits.
        """
        agreement = self.judge.evaluate(self.make(solution)).agreement
        if agreement is None:
            raise OptionError(
                f"--min-agreement needs answers to compare, and the output '{self.problem.graph.outputs[0]}' of this "
                "model is not [images, classes]. Give --macs or --params."
            )
        return agreement


def prepare_search(problem: Problem) -> Search:
    """Error curves of every unit and, for allocation, one probe each."""
    choices = problem.trace()
    require_narrower(choices)
    search = Search(problem, choices, {}, find_walk(problem.blocks))
    if not search.is_uniform:
        search.sensitivities = probe_choices(problem, choices, draw_probes(problem))
    return search
