"""A model and its images, opened for analysis, and what all parts of it ask: moments, and a cut made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import Calibration
from corp_onnx.calibrate.groups import pass_bytes
from corp_onnx.case import Case, keep_findings, open_case, pose_problem
from corp_onnx.checks.preflight import choose_units
from corp_onnx.findings import Findings
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images, ImageSource
from corp_onnx.memory import forget_pages
from corp_onnx.metrics.judgement import Judgement
from corp_onnx.moments import AnyMoments, Moments, merge_moments, pack_moments, unpack_moments
from corp_onnx.progress import Run
from corp_onnx.results import StageClock
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.strategy import follow_fractions
from corp_onnx.settings import METHODS, Budget, Fractions, Method, PruneSettings
from corp_onnx.shelf import Shelf
from corp_onnx.units import OWN_KINDS, Unit

WHOLE = Method(units=OWN_KINDS, widths=Budget("macs", 0.99), refit=False, merge="none", trim=False)
"""Every unit by itself, before any refit; no size is chosen, so the budget is not followed."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is analysed.

    Attributes:
        case: the model, every unit with channels of its own, and the images.
        whole: the problem of all units, with the moments of all calibration images.
        shelf: where everything of studies lies that comes in the size of the model: in files, so that to prune it
            again takes no more memory than once.
    """

    case: Case
    whole: Problem
    shelf: Shelf

    @property
    def graph(self) -> Graph:
        """Of the dense model."""
        return self.case.graph

    @property
    def units(self) -> tuple[Unit, ...]:
        """Those that are analysed."""
        return self.case.units

    @property
    def data(self) -> Calibration:
        """Images that calibrate, and those that are held back to judge."""
        return self.case.data

    @property
    def settings(self) -> PruneSettings:
        """Of the run."""
        return self.case.settings

    @property
    def run(self) -> Run:
        """Where it tells how far it is."""
        return self.whole.run

    @property
    def has_room(self) -> bool:
        """Whether both models may be open at once."""
        return self.case.diet.shelf is None

    def collect(self, images: Images, units: Sequence[Unit]) -> Moments:
        """The moments of units over other images, in a file."""
        with self.run.enter("calibrate", images.n_images) as count:
            return collect_moments(
                self.graph, units, images, batch_size=self.settings.batch_size, provider=self.settings.provider,
                progress=count, room=self.case.diet.sums,
            )  # fmt: skip

    def join(self, a: Moments, b: Moments) -> Moments:
        """Those of two sets of images together, in a file."""
        return Moments(tuple((key, self._join_unit(of_unit, b[key])) for key, of_unit in a.entries))

    def _join_unit(self, a: AnyMoments, b: AnyMoments) -> AnyMoments:
        both = pack_moments(merge_moments(a, b))  # type: ignore[type-var]
        for array in (*pack_moments(a).values(), *pack_moments(b).values()):
            forget_pages(array)
        return unpack_moments({name: self.shelf.aside(array) for name, array in both.items()})

    def judge_on(self, images: Images) -> Evaluator:
        """Images that judge, with the dense model's answers."""
        return prepare_evaluator(
            self.graph.model, images, self.case.outputs.judged_tasks, batch_size=self.settings.batch_size,
            provider=self.settings.provider, shelf=self.shelf,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The same fraction of every unit of a kind by one method, without a refit: what studies repeat."""

    subject: Subject
    method: Method
    units: tuple[Unit, ...]

    def pose(self, moments: Moments) -> Problem:
        """What is solved with the moments of some images; nothing that was found on others is of use to it."""
        s = self.subject
        return replace(
            s.whole, units=self.units, method=self.method, moments=moments, findings=Findings(), shelf=s.shelf
        )

    def solve(self, moments: Moments) -> Solution:
        """The cut with the moments of some images."""
        assert isinstance(self.method.widths, Fractions)
        return follow_fractions(self.pose(moments), self.method.widths)

    def make(self, moments: Moments) -> onnx.ModelProto:
        """The graph of that."""
        with self.subject.run.enter("solve"):
            return self.pose(moments).rewrite(self.solve(moments).changes).make(self.subject.graph)

    @property
    def kept_name(self) -> str:
        """What judges it, beside the loss."""
        judged = Judgement(self.subject.case.outputs.judged_tasks).judged
        return " and ".join(dict.fromkeys(tally.kept_name for tally in judged))


def open_whole(
    model: Path, calib: ImageSource | None, settings: PruneSettings, folder: Path, run: Run, clock: StageClock,
    guard: Callable[[Model], None] | None = None,
) -> Case:  # fmt: skip
    """As `open_case`, of every unit by itself."""
    return open_case(model, calib, replace(settings, method=WHOLE), folder, run, clock, guard)


def calibrate_subject(case: Case, run: Run, clock: StageClock) -> Subject:
    """The moments of all calibration images, in a file as those of studies are, so that they are never there twice;
    intermediate results lie in the folder for temporary files."""
    sums = case.diet.sums or pass_bytes(case.units)
    case = replace(case, diet=replace(case.diet, sums=sums))
    problem = pose_problem(case, Shelf(case.diet.shelf), run, clock)
    keep_findings(case)
    return Subject(case, problem, Shelf(0))


def plan_cut(subject: Subject, preset: str, fraction: float) -> Cut:
    """The cut that studies repeat.

    Raises:
        OptionError: the fraction is out of range or removes nothing.
    """
    widths = Fractions(fraction, fraction)
    method = replace(METHODS[preset], widths=widths, refit=False, merge="none", trim=False)
    return Cut(subject, method, choose_units(subject.graph, subject.case.blocks, method))
