"""The curves and probes of one model, and the solutions that a cost asks of them, one-shot or refitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from corp_onnx.blocks import SiteKey
from corp_onnx.errors import OptionError
from corp_onnx.images import Images
from corp_onnx.images.open import spread_images
from corp_onnx.metrics.judgement import Judgement
from corp_onnx.refit import refit_changes
from corp_onnx.refit.stream import KnownStreams, StreamWalk, find_walk
from corp_onnx.search.evaluator import Evaluator, count_beside, prepare_evaluator
from corp_onnx.search.probes import draw_probes, probe_choices
from corp_onnx.search.problem import Plans, Problem, Solution, solve_first, solve_widths
from corp_onnx.search.splits import (
    MAX_SPLITS,
    Split,
    Way,
    allow_all,
    choose_in_turn,
    choose_together,
    list_ways,
)
from corp_onnx.search.stretches import find_token_weights, stretch_dense
from corp_onnx.search.tokens import MergeCandidates, prepare_merging
from corp_onnx.search.widths import (
    Allowance,
    allocate_choices,
    favour_late,
    find_depths,
    narrowest_widths,
    require_narrower,
    trace_groups,
    uniform_widths,
)
from corp_onnx.settings import Budget, CostKind, Method
from corp_onnx.solve.allocate import UnitCurve
from corp_onnx.threads import Crew
from corp_onnx.tokens.sites import MergePlan
from corp_onnx.units import Choice, UnitKey, gather_changes

FORESEEN_IMAGES = 48
"""On which a one-shot solution is measured that nothing depends on but a check with a factor of three to spare."""


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
    _weights: dict[SiteKey, np.ndarray] | None = None
    _made: tuple[Solution, onnx.ModelProto] | None = None
    _ways: dict[CostKind, tuple[Way, ...]] = field(default_factory=dict)
    _known: KnownStreams | None = None

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
        return self._fit(allow_all(self.problem, self.choices, kind, merge), value, {}, before_refit=before_refit)

    def _fit(
        self, of_all: Allowance, value: float, curves: dict[bool, list[UnitCurve]], *, before_refit: bool
    ) -> dict[UnitKey, int]:
        """The same within an allowance, with the curves of its groups, by whether a refit follows, as far as known."""
        allowance = replace(of_all, kept=value)
        if self.is_uniform:
            return uniform_widths(self.choices, allowance)
        if before_refit not in curves:
            sensitivities = self.sensitivities
            if before_refit and self.refits and self.method.favour_late:
                sensitivities = favour_late(sensitivities, find_depths(self.problem.blocks))
            curves[before_refit] = trace_groups(sensitivities, allowance.groups)
        return allocate_choices(curves[before_refit], allowance)

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
        splits, probes = self._list_splits(kind, value, before_refit=before_refit), self.probes
        assert probes is not None

        def solve(split: Split, known: Plans) -> Solution:
            return self._solve(split.widths, split.merge, value, known)

        if len(splits) == 1:
            return solve(splits[0], {})
        with Crew(count_beside(self.problem.graph, probes.pace.n_calls)) as crew:
            if crew.size == 1:
                return choose_in_turn(splits, solve, lambda solution: probes.evaluate(self.make(solution)).loss)
            known = solve_first(self.choices, [split.widths for split in splits], crew, self.problem.shelf)
            solutions = [solve(split, known) for split in splits]
            self._made = choose_together(solutions, self.make, probes, crew)
            return self._made[0]

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
        found: list[Split] = []
        problem: OptionError | None = None
        for way in self._list_ways(kind):
            try:
                widths = self._fit(way.allowance, value, way.curves, before_refit=before_refit)
            except OptionError as error:
                problem = error
                continue
            found.append(Split(widths, way.merge, way.schedule.loss + self.predict_loss(widths)))
        if not found:
            assert problem is not None
            raise problem
        return sorted(found, key=lambda split: split.loss)[:MAX_SPLITS]

    def _list_ways(self, kind: CostKind) -> tuple[Way, ...]:
        """The schedules that are tried under any budget of a kind."""
        if kind not in self._ways:
            assert self.merging is not None
            self._ways[kind] = list_ways(self.problem, self.choices, self.merging, kind)
        return self._ways[kind]

    @property
    def is_uniform(self) -> bool:
        """Whether every unit loses the same fraction, without a search."""
        return isinstance(self.method.widths, Budget) and self.method.widths.allocate == "uniform"

    def smallest_macs(self) -> float:
        """The MACs of the smallest model that the rule for widths can reach."""
        merge = self.merging.plan(self.merging.schedules[-1]) if self.merging else None
        allowance = allow_all(self.problem, self.choices, "macs", merge)
        return allowance.cost(narrowest_widths(self.choices)) if self.is_uniform else allowance.smallest

    def refitted(self, kind: CostKind, value: float) -> Solution:
        """The solution of a budget with every last product solved again on the pruned stream."""
        with self.problem.run.enter("search"):
            solution = self.one_shot(kind, value, before_refit=True)
        return self.refit(solution)

    def _solve(
        self, widths: dict[UnitKey, int], merge: MergePlan | None, value: float,
        known: Plans | None = None,
    ) -> Solution:  # fmt: skip
        plans = solve_widths(self.choices, widths, known, self.problem.shelf)
        return Solution(gather_changes(plans), plans, value, merges=merge.steps if merge else ())

    def refit(self, solution: Solution) -> Solution:
        """A one-shot solution with every last product solved again, where method and graph allow it."""
        p = self.problem
        if not self.refits or not solution.plans:
            return solution
        with p.run.enter("refit", len(self.walk.stops), "units") as count:
            at = stretch_dense(p, self.walk, solution.merges)
            proto, self._made = self.make(solution), None
            changes = refit_changes(
                at.graph, at.walk, solution.changes, proto, p.calibration, self.weigh_tokens(), given=at.given,
                batch_size=p.batch_size, provider=p.provider, shelf=p.shelf, known=self._known,
                progress=count,
            )  # fmt: skip
            return replace(solution, changes=changes, expected_loss=self._foresee(proto))

    def _foresee(self, proto: onnx.ModelProto) -> float:
        """What a model loses on images that judge, a few of them where nothing else is asked of these."""
        if self._judge is not None:
            return self._judge.evaluate(proto).loss
        p, few = self.problem, spread_images(self.problem.judging, FORESEEN_IMAGES)
        key = {"images": few.data_hash(), "tasks": repr(p.tasks)}
        judge = p.findings.hold("judge", key, lambda: self._prepare(few))
        return judge.evaluate(proto).loss

    def _prepare(self, images: Images) -> Evaluator:
        p = self.problem
        return prepare_evaluator(
            p.graph.model, images, p.tasks, batch_size=p.batch_size, provider=p.provider, shelf=p.shelf,
            findings=p.findings,
        )  # fmt: skip

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of it, one sentence each."""
        if not self.method.refits or self.walk.stops:
            return ()
        return (f"no refit on the pruned stream: {self.walk.reason or 'no residual addition was found'}.",)

    def make(self, solution: Solution) -> onnx.ModelProto:
        """The graph of a solution; the one that `one_shot` chose is there already, until its refit."""
        if self._made is not None and self._made[0] is solution:
            return self._made[1]
        return self.problem.rewrite(solution.changes, solution.merges).make(self.problem.graph)

    @property
    def judge(self) -> Evaluator:
        """The images that judge with the dense model's answers; computed when first asked."""
        if self._judge is None:
            self._judge = self._prepare(self.problem.judging)
        return self._judge

    def weigh_tokens(self) -> dict[SiteKey, np.ndarray]:
        """Of the dense model as it is, so that they are the same for all refits, whatever merges; none where tokens
        are to count alike."""
        if not self.method.weigh_tokens:
            return {}
        if self._weights is None:
            self._weights = find_token_weights(self.problem, self.walk, self.problem.tasks or self.judge.tasks)
        return self._weights

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
    if problem.refits_again and problem.shelf.limit is None:
        search._known = problem.findings.hold("streams", {}, KnownStreams)
    if not search.is_uniform:
        key, hold = problem.probe_key, problem.findings.hold
        search.probes = probes = hold("evaluator", key, lambda: draw_probes(problem))
        search.sensitivities = _recall_sensitivities(problem, choices, probes)
        search.merging = hold("merging", key, lambda: prepare_merging(problem, probes))
        if problem.clock is None:  # a table of times is of one run
            method = problem.method
            search._ways = hold("ways", {**key, "refits": search.refits, "favour_late": method.favour_late}, dict)
    return search


def _recall_sensitivities(problem: Problem, choices: Sequence[Choice], probes: Evaluator) -> dict[UnitKey, float]:
    """The sensitivity of every unit, from the findings or by probes."""

    def probe() -> dict[str, np.ndarray]:
        found = probe_choices(problem, choices, probes)
        return {"sensitivities": np.array([found[choice.key] for choice in choices])}

    key = {**problem.probe_key, "n_images": probes.n_images}
    found = problem.findings.recall("probes/units", key, probe)["sensitivities"]
    return {choice.key: float(value) for choice, value in zip(choices, found, strict=True)}
