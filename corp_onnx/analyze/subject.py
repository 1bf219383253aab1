"""A model and its images, opened for analysis, and what all parts of it ask: moments, and a cut made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import Calibration, open_calibration
from corp_onnx.checks.preflight import choose_units, require_finite_weights, require_reached
from corp_onnx.graph import Graph, load_model
from corp_onnx.images import Images, ImageSource
from corp_onnx.images.open import spread_images
from corp_onnx.metrics.judgement import Judgement
from corp_onnx.moments import Moments
from corp_onnx.progress import Run
from corp_onnx.run.outputs import LOOKED_AT, Outputs, find_outputs
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session, resolve_provider
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.strategy import follow_fractions
from corp_onnx.settings import METHODS, Budget, Fractions, Method, PruneSettings
from corp_onnx.units import OWN_KINDS, Unit

WHOLE = Method(units=OWN_KINDS, widths=Budget("macs", 0.5), refit=False, merge="none", trim=False)
"""Every unit by itself, before any refit; no size is chosen, so the budget is not followed."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is analysed.

    Attributes:
        units: those of every kind that has its own channels.
        data: images that calibrate, and those that are held back to judge.
    """

    graph: Graph
    blocks: Blocks
    units: tuple[Unit, ...]
    data: Calibration
    outputs: Outputs
    settings: PruneSettings
    run: Run

    @property
    def running(self) -> Mapping[str, int | str]:
        """How models run."""
        return {"batch_size": self.settings.batch_size, "provider": self.settings.provider}

    def collect(self, images: Images, units: Sequence[Unit] | None = None) -> Moments:
        """The moments of units over images; of all where none are named."""
        with self.run.enter("calibrate", images.n_images) as count:
            return collect_moments(
                self.graph, self.units if units is None else units, images, batch_size=self.settings.batch_size,
                provider=self.settings.provider, progress=count,
            )  # fmt: skip

    def pose(self, moments: Moments, units: Sequence[Unit] | None = None, method: Method = WHOLE) -> Problem:
        """What is searched or solved with these moments."""
        s = self.settings
        return Problem(
            self.graph, self.blocks, self.units if units is None else tuple(units), method, moments, self.data.fitting,
            self.data.reporting, s.batch_size, s.provider, s.seed, self.run, tasks=self.outputs.judged_tasks,
        )  # fmt: skip

    def judge_on(self, images: Images) -> Evaluator:
        """Images that judge, with the dense model's answers."""
        return prepare_evaluator(
            self.graph.model, images, self.outputs.judged_tasks, batch_size=self.settings.batch_size,
            provider=self.settings.provider,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """The same fraction of every unit of a kind by one method, without a refit: what studies repeat."""

    subject: Subject
    method: Method
    units: tuple[Unit, ...]

    def solve(self, moments: Moments) -> Solution:
        """With the moments of some images."""
        assert isinstance(self.method.widths, Fractions)
        return follow_fractions(self.subject.pose(moments, self.units, self.method), self.method.widths)

    def make(self, moments: Moments) -> onnx.ModelProto:
        """The graph of that."""
        with self.subject.run.enter("solve"):
            problem = self.subject.pose(moments, self.units, self.method)
            return problem.rewrite(self.solve(moments).changes).make(self.subject.graph)

    @property
    def kept_name(self) -> str:
        """What judges it, beside the loss."""
        judged = Judgement(self.subject.outputs.judged_tasks).judged
        return " and ".join(dict.fromkeys(tally.kept_name for tally in judged))


def open_subject(model: Path, calib: ImageSource, settings: PruneSettings, run: Run) -> Subject:
    """Load, find what can be pruned, and part the images; raises what `prune_model` raises before it calibrates."""
    resolve_provider(settings.provider)
    with run.enter("load"):
        graph = probe_graph(load_model(model))
        blocks = find_blocks(graph)
        units = choose_units(graph, blocks, WHOLE)
        require_finite_weights(graph, blocks)
    with run.enter("open images"):
        data = open_calibration(graph.model, calib, settings)
        session = open_session(graph.model, provider=settings.provider)
        seen = session.stream(spread_images(data.reporting, LOOKED_AT), settings.batch_size)
        outputs = find_outputs(session, seen, task=settings.task, named=settings.outputs)
        require_reached(graph, units, outputs)
    return Subject(graph, blocks, units, data, outputs, settings, run)


def plan_cut(subject: Subject, preset: str, fraction: float) -> Cut:
    """The cut that studies repeat.

    Raises:
        OptionError: the fraction is out of range or removes nothing.
    """
    widths = Fractions(fraction, fraction)
    method = replace(METHODS[preset], widths=widths, refit=False, merge="none", trim=False)
    return Cut(subject, method, choose_units(subject.graph, subject.blocks, method))
