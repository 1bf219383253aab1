"""The curves and probes of one model, and the solutions that a cost asks of them, one-shot or refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from corp_onnx.blocks import SiteKey, find_blocks
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph
from corp_onnx.metrics.judgement import Judgement
from corp_onnx.refit import refit_changes
from corp_onnx.refit.stream import StreamWalk, find_walk
from corp_onnx.refit.token_weights import weigh_stops
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.probes import draw_probes, probe_choices
from corp_onnx.search.problem import Problem, Solution, solve_widths
from corp_onnx.search.tokens import MergeCandidates, prepare_merging
from corp_onnx.search.widths import (
    allocate_choices,
    allow_cost,
    favour_late,
    find_depths,
    narrowest_widths,
    require_narrower,
    uniform_widths,
)
from corp_onnx.settings import Budget, CostKind, Method
from corp_onnx.solve.schedule import Schedule
from corp_onnx.tokens.merge import merge_tokens
from corp_onnx.tokens.sites import MergePlan, MergeStep, list_carried
from corp_onnx.units import Choice, UnitKey, gather_changes

MAX_SCHEDULES = 16
"""Schedules that are tried against widths under one budget; between two neighbours the best split hardly moves."""

MAX_SPLITS = 3
"""Of the most promising of these, how many are made and measured on the probe images: losses add up only nearly."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A budget split between widths and tokens, and its promised loss."""

    widths: dict[UnitKey, int]
    merge: MergePlan | None
    loss: float


@dataclass(frozen=True, slots=True, eq=False)
class Stretches:
    """The dense model with tokens merged, as the refit walks it: its graph, its stops, and what merges in it."""

    graph: Graph
    walk: StreamWalk
    given: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Search:
    """The curves and probes of one model, and the solutions that a budget asks of them."""

    problem: Problem
    choices: tuple[Choice, ...]
    sensitivities: dict[UnitKey, float]
    walk: StreamWalk
    merging: MergeCandidates | None = None
    probes: Evaluator | None = None
    _judge: Evaluator | None = field(default=None)
    _weights: Mapping[str, np.ndarray] | None = None

    @property
    def method(self) -> Method:
        """That of the problem."""
        return self.problem.method

    @property
    def refits(self) -> bool:
        """Whether method and graph allow a refit."""
        return self.method.refits and bool(self.walk.stops)

    def widths(
        self, kind: CostKind, value: float, *, before_refit: bool = False, merge: MergePlan | None = None
    ) -> dict[UnitKey, int]:
        """The width of every unit under a cost; another where a refit will follow.

        Args:
            merge: the tokens that merge besides.
        """
        allowance = allow_cost(replace(self.problem, merge=merge).spending, self.choices, kind, value)
        if self.is_uniform:
            return uniform_widths(self.choices, allowance)
        sensitivities = self.sensitivities
        if before_refit and self.refits and self.method.favour_late:
            sensitivities = favour_late(sensitivities, find_depths(self.problem.blocks))
        return allocate_choices(sensitivities, allowance)

    def predict_loss(self, widths: dict[UnitKey, int]) -> float:
        """What probes and curves promise of narrower units, before any refit."""
        return sum(
            self.sensitivities.get(choice.key, 1.0) * float(choice.error_curve[widths[choice.key]])
            for choice in self.choices
        )

    def one_shot(self, kind: CostKind, value: float, *, before_refit: bool = False) -> Solution:
        """The solution of a budget before any refit: the schedule with which widths and tokens together lose least.

        Args:
            before_refit: whether one follows, for which widths are others.

        Raises:
            OptionError: not even the smallest widths and fewest tokens fit.
        """
        if self.merging is None or kind == "params":
            return self._solve(self.widths(kind, value, before_refit=before_refit), None, value)
        splits = self._list_splits(kind, value, before_refit=before_refit)
        solutions = [self._solve(split.widths, split.merge, value) for split in splits]
        if len(solutions) == 1:
            return solutions[0]
        assert self.probes is not None
        measured = [self.probes.evaluate(self.make(solution)).loss for solution in solutions]
        return solutions[int(np.argmin(measured))]

    def sketch(self, kind: CostKind, value: float) -> Solution:
        """As `one_shot`, before a refit where one follows, of the split that promises most: none is measured."""
        split = self._best_split(kind, value)
        return self._solve(split.widths, split.merge, value)

    def promise_loss(self, kind: CostKind, value: float) -> float:
        """What curves and probes promise of a budget's best split, before any refit."""
        return self._best_split(kind, value).loss

    def _best_split(self, kind: CostKind, value: float) -> Split:
        """That which curves and probes promise most of, before any refit."""
        if self.merging is None or kind == "params":
            widths = self.widths(kind, value, before_refit=True)
            return Split(widths, None, self.predict_loss(widths))
        return self._list_splits(kind, value, before_refit=True)[0]

    def _list_splits(self, kind: CostKind, value: float, *, before_refit: bool) -> list[Split]:
        """The few most promising schedules with the widths that they leave, by what curves and probes promise.

        Both are of calibration images, which widths are fitted to and merges are not; a refit, which lowers only what
        widths lose, makes up for about as much as that flatters them.
        """
        assert self.merging is not None
        found: list[Split] = []
        problem: OptionError | None = None
        for schedule in _spread(self.merging.schedules):
            merge = self.merging.plan(schedule)
            try:
                widths = self.widths(kind, value, before_refit=before_refit, merge=merge)
            except OptionError as error:
                problem = error
                continue
            found.append(Split(widths, merge, schedule.loss + self.predict_loss(widths)))
        if not found:
            assert problem is not None
            raise problem
        return sorted(found, key=lambda split: split.loss)[:MAX_SPLITS]

    @property
    def is_uniform(self) -> bool:
        """Whether every unit loses the same fraction, without a search."""
        return isinstance(self.method.widths, Budget) and self.method.widths.allocate == "uniform"

    def smallest_macs(self) -> float:
        """The MACs of the smallest model that the rule for widths can reach."""
        merge = self.merging.plan(self.merging.schedules[-1]) if self.merging else None
        allowance = allow_cost(replace(self.problem, merge=merge).spending, self.choices, "macs", 1.0)
        return allowance.cost(narrowest_widths(self.choices)) if self.is_uniform else allowance.smallest

    def refitted(self, kind: CostKind, value: float) -> Solution:
        """The solution of a budget with every last product solved again on the pruned stream."""
        with self.problem.run.enter("search"):
            solution = self.one_shot(kind, value, before_refit=True)
        return self.refit(solution)

    def _solve(self, widths: dict[UnitKey, int], merge: MergePlan | None, value: float) -> Solution:
        plans = solve_widths(self.choices, widths)
        return Solution(gather_changes(plans), plans, value, merges=merge.steps if merge else ())

    def refit(self, solution: Solution) -> Solution:
        """A one-shot solution with every last product solved again, where method and graph allow it."""
        p = self.problem
        if not self.refits or not solution.plans:
            return solution
        with p.run.enter("refit", len(self.walk.stops), "units") as count:
            at = self._stretch(solution.merges)
            proto = self.make(solution)
            changes = refit_changes(
                at.graph, at.walk, solution.changes, proto, p.calibration, self.weigh_tokens(), given=at.given,
                batch_size=p.batch_size, provider=p.provider, shelf=p.shelf, progress=count,
            )  # fmt: skip
            return replace(solution, changes=changes, expected_loss=self.judge.evaluate(proto).loss)

    def _stretch(self, merges: Sequence[MergeStep]) -> Stretches:
        """The dense model that a refit brings the pruned one back to: with the same tokens merged."""
        p = self.problem
        if not merges:
            return Stretches(p.graph, self.walk)
        graph = probe_graph(replace(p.graph.model, proto=merge_tokens(p.graph, merges)))
        own = {site.key: site for site in p.blocks.sites}  # changes are made in the graph without merges
        walk = find_walk(find_blocks(graph))
        stops = tuple(replace(stop, site=own[stop.key]) for stop in walk.stops)
        return Stretches(graph, replace(walk, stops=stops), list_carried(merges))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it, one sentence each."""
        if not self.method.refits or self.walk.stops:
            return ()
        return (f"no refit on the pruned stream: {self.walk.reason or 'no residual addition was found'}.",)

    def make(self, solution: Solution) -> onnx.ModelProto:
        """The graph of a solution."""
        return self.problem.rewrite(solution.changes, solution.merges).make(self.problem.graph)

    @property
    def judge(self) -> Evaluator:
        """The images that judge with the dense model's answers; computed when first asked."""
        p = self.problem
        if self._judge is None:
            self._judge = prepare_evaluator(
                p.graph.model, p.judging, p.tasks, batch_size=p.batch_size, provider=p.provider, shelf=p.shelf,
                findings=p.findings,
            )  # fmt: skip
        return self._judge

    def weigh_tokens(self) -> dict[SiteKey, np.ndarray]:
        """Of the dense model as it is, so that they are the same for all refits, whatever merges; none where tokens
        are to count alike."""
        p = self.problem
        if not self.method.weigh_tokens:
            return {}

        def weigh() -> dict[str, np.ndarray]:
            with p.run.enter("weigh tokens", len(self.walk.stops), "units") as count:
                weights = weigh_stops(
                    p.graph, self.walk, p.calibration, self.judge.tasks, batch_size=p.batch_size, provider=p.provider,
                    progress=count,
                )  # fmt: skip
            return {str(key): array for key, array in weights.items()}

        if self._weights is None:
            self._weights = p.findings.recall("token_weights", {"tasks": repr(self.judge.tasks)}, weigh)
        return {stop.key: self._weights[str(stop.key)] for stop in self.walk.stops if str(stop.key) in self._weights}

    def expect(self, solution: Solution) -> Solution:
        """A solution with what it loses on the images that judge."""
        return replace(solution, expected_loss=self.judge_solution(solution).loss)

    def judge_solution(self, solution: Solution) -> Judgement:
        """How far the answers of a solution are off on the images that judge."""
        return self.judge.evaluate(self.make(solution))


def prepare_search(problem: Problem) -> Search:
    """Error curves of every unit and, for allocation, one probe each."""
    choices = problem.trace()
    require_narrower(choices)
    search = Search(problem, choices, {}, find_walk(problem.blocks))
    if not search.is_uniform:
        search.probes = draw_probes(problem)
        search.sensitivities = _recall_sensitivities(problem, choices, search.probes)
        search.merging = prepare_merging(problem, search.probes)
    return search


def _recall_sensitivities(problem: Problem, choices: Sequence[Choice], probes: Evaluator) -> dict[UnitKey, float]:
    """The sensitivity of every unit, from the findings or by probes."""

    def probe() -> dict[str, np.ndarray]:
        found = probe_choices(problem, choices, probes)
        return {"sensitivities": np.array([found[choice.key] for choice in choices])}

    key = {**problem.probe_key, "n_images": probes.n_images}
    found = problem.findings.recall("probes/units", key, probe)["sensitivities"]
    return {choice.key: float(value) for choice, value in zip(choices, found, strict=True)}


def _spread(schedules: Sequence[Schedule]) -> list[Schedule]:
    """At most MAX_SCHEDULES of them, evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(schedules) - 1, min(len(schedules), MAX_SCHEDULES)).round().astype(int))
    return [schedules[i] for i in places]
