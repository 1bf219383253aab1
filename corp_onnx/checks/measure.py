"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' plans and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float64

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import tap_units
from corp_onnx.calibrate.draw import TokenDraw
from corp_onnx.checks.disagreement import Disagreements
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.memory import release_memory
from corp_onnx.metrics import Judgement
from corp_onnx.metrics.intervals import images_needed
from corp_onnx.metrics.judgement import Kept
from corp_onnx.progress import Count
from corp_onnx.results import CheckResult, HeldOut, Promise
from corp_onnx.run.outputs import Outputs
from corp_onnx.run.pace import Pace, choose_pace
from corp_onnx.run.tapped import Tapped, open_tapped
from corp_onnx.settings import CONFIDENCE, Budget
from corp_onnx.shelf import Feeds as OnShelf
from corp_onnx.shelf import Row, Shelf
from corp_onnx.threads import Crew
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.units import UnitKey, UnitPlan
from corp_onnx.units.energy import Energy
from corp_onnx.units.taps import read_tokens

T = TypeVar("T")

Feeds: TypeAlias = Mapping[str, np.ndarray]
"""A batch under the names of a model's inputs."""

MAX_SURPRISE = 3.0
"""Times the loss that the search saw; a refit whose rows do not correspond gives ten to a hundred times."""

CLASS_SLACK, SLACK = 0.05, 0.01
"""Added to that, of classes in nats, else in 1 - cosine or squared relative error: below it the two differ by which
images are asked."""

UNIT_IMAGES, UNIT_TOKENS = 48, 48
"""Held-back images that errors of units are measured on, and tokens of each: of 102 images and 197 tokens an error of
DeiT-Tiny differs by 2.5 % with 48 images, and by 0.5 % with 48 tokens of all of them."""


class UnitErrors:
    """What planned units lose, batch by batch."""

    def __init__(self, graph: Graph, plans: Sequence[UnitPlan]) -> None:
        self.units = [plan.unit for plan in plans]
        self._graph = graph
        self._measures = [plan.unit.measure(graph, plan) for plan in plans]
        self._energies = [Energy() for _ in plans]

    def measure(self, arrays: Mapping[str, np.ndarray], n_real: int, first: int, crew: Crew) -> list[Energy]:
        """Of every unit in one batch of what `tap_units` gives; nothing is counted yet, so any thread may ask.

        Args:
            first: place of its first image.
        """
        draw = TokenDraw(UNIT_TOKENS)

        def measure(at: int) -> Energy:
            values = self.units[at].read(arrays, self._graph, n_real)
            return self._measures[at](*draw.take(values, n_real, first))

        return crew.map(measure, range(len(self.units)))

    def add(self, energies: Sequence[Energy]) -> None:
        """Count a batch; one on which units were not measured has none."""
        if not energies:
            return
        self._energies = [one + other for one, other in zip(self._energies, energies, strict=True)]

    def result(self) -> dict[UnitKey, tuple[float, float]]:
        """(relative error, the same without compensation) of every unit (see `results.UnitResult`)."""
        return {unit.key: e.relative() for unit, e in zip(self.units, self._energies, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """What one of both models gives for a batch: its answers, and its residual stream behind every block.

    Attributes:
        energies: of the units, on the dense model.
    """

    answers: Mapping[str, Float64[np.ndarray, "n ..."]]
    streams: Mapping[str, np.ndarray]
    n_real: int
    energies: Sequence[Energy] = ()


def measure_model(
    graph: Graph, blocks: Blocks, pruned: Model, images: Images, outputs: Outputs, errors: UnitErrors, *,
    apart: Disagreements | None = None, promised: Budget | None = None, confidence: float = CONFIDENCE,
    trim: TokenTrim | None = None, n_special: int = 0, batch_size: int = 8, provider: str = "cpu",
    shelf: Shelf | None = None, progress: Count | None = None,
) -> HeldOut:  # fmt: skip
    """How far every output of the pruned file moved, and how the error of the residual stream grows with depth.

    Args:
        errors: of the units that were planned, filled on the way.
        apart: which images moved most, filled on the way.
        promised: what was asked to be kept.
        trim: the tokens that the pruned file does not compute, from `LeaveOutTokens`; the others are compared.
        n_special: leading tokens that never merge; where others have, these are compared, or the mean of all.
        shelf: where the streams of the dense model lie where there is no memory for both models at once; all images
            go through it first then.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
    names = [task.output for task in outputs.tasks]
    judgement, off = Judgement(outputs.tasks, outputs.judged), np.zeros((len(streams), 2))

    def compare(expected: _Side, found: _Side) -> None:
        judgement.add(found.answers, expected.answers)
        if apart is not None:
            apart.add(found.answers, expected.answers)
        errors.add(expected.energies)
        for row, name in zip(off, streams, strict=True):
            dense = expected.streams[name]
            pair = _match_tokens(dense if trim is None else trim.select(name, dense), found.streams[name], n_special)
            row += _compare_streams(*(read_tokens(array, graph, found.n_real) for array in pair))
        if progress:
            progress(found.n_real)

    asked = _Asked(graph, pruned, errors, names, streams, images, batch_size, provider)
    for pair in asked.together() if shelf is None else asked.in_turn(shelf):
        compare(*pair)
    return HeldOut(
        n_images=judgement.n_samples,
        outputs=judgement.scores(confidence),
        promise=make_promise(judgement.kept, promised, confidence),
        loss=judgement.loss,
        stream_error=tuple(float(np.sqrt(e / r)) if r else 0.0 for e, r in off),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """Both models on the same batches of images."""

    graph: Graph
    pruned: Model
    errors: UnitErrors
    names: Sequence[str]
    streams: Sequence[str]
    images: Images
    batch_size: int
    provider: str

    @property
    def pace(self) -> Pace:
        """Of the images through a session."""
        return choose_pace(self.batch_size, self.graph.n_images if self.graph.fixed_batch else None, self.provider)

    def together(self) -> Iterator[tuple[_Side, _Side]]:
        """Both of every batch, with both sessions open."""
        with Crew() as crew:
            dense, cut = crew.map(lambda open_one: open_one(), (self._open_dense, self._open_cut))
        yield from self._stream(dense, lambda *batch: (self._ask_dense(dense, *batch), self._ask_cut(cut, *batch[1:3])))

    def in_turn(self, shelf: Shelf) -> Iterator[tuple[_Side, _Side]]:
        """The same with one session open at a time; the streams of the dense model lie on a shelf meanwhile."""
        aside = deque(self._put_aside(shelf.row()))
        release_memory()
        cut = self._open_cut()
        for other in self._stream(cut, lambda _, feeds, n_real, __: self._ask_cut(cut, feeds, n_real)):
            yield aside.popleft(), other

    def _put_aside(self, row: Row) -> Iterator[_Side]:
        dense = self._open_dense()
        for one in self._stream(dense, lambda *batch: self._ask_dense(dense, *batch)):
            yield replace(one, streams=OnShelf({name: row.put(array) for name, array in one.streams.items()}))

    def _stream(self, first: Tapped, ask: Callable[[int, Feeds, int, Crew], T]) -> Iterator[T]:
        """Of every batch what it is asked for, by its place; several at a time, or the units of one side by side."""
        pace = self.pace
        with Crew(pace.n_calls) as calls, Crew(None if pace.n_calls == 1 else 1) as units:
            feeds = first.session.stream(self.images, pace.batch_size)
            yield from calls.stream(lambda batch: ask(batch[0], *batch[1], units), enumerate(feeds))

    def _open_dense(self) -> Tapped:
        return tap_units(self.graph, self.errors.units, self.streams, provider=self.provider, threads=self.pace.threads)

    def _open_cut(self) -> Tapped:
        types, threads = self.graph.types, self.pace.threads
        return open_tapped(self.pruned, self.streams, provider=self.provider, threads=threads, types=types)

    def _ask_dense(self, tapped: Tapped, place: int, feeds: Feeds, n_real: int, crew: Crew) -> _Side:
        arrays = tapped.run(feeds)
        answers = _read_answers(self.graph.model, self.names, arrays, n_real)
        first = place * self.pace.batch_size
        energies = () if first >= UNIT_IMAGES else self.errors.measure(arrays, n_real, first, crew)
        return _Side(answers, {name: arrays[name] for name in self.streams}, n_real, energies)

    def _ask_cut(self, tapped: Tapped, feeds: Feeds, n_real: int) -> _Side:
        arrays = tapped.run(feeds)
        answers = _read_answers(self.pruned, self.names, arrays, n_real)
        return _Side(answers, {name: arrays[name] for name in self.streams}, n_real)


def _compare_streams(reference: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Squares of the difference and of the reference."""
    difference = (found - reference).reshape(-1)
    return float(difference @ difference), float(np.vdot(reference, reference))


def _match_tokens(dense: np.ndarray, cut: np.ndarray, n_special: int) -> tuple[np.ndarray, np.ndarray]:
    """Both streams of the tokens that correspond: all, or behind a merge the special ones, or their mean."""
    if dense.shape == cut.shape:
        return dense, cut
    if n_special:
        return dense[:, :n_special], cut[:, :n_special]
    return dense.mean(axis=1, keepdims=True), cut.mean(axis=1, keepdims=True)


def make_promise(kept: Kept, promised: Budget | None, confidence: float = CONFIDENCE) -> Promise:
    """What may be said of other images, and what is missing for what was asked."""
    interval, n = kept.interval(confidence), len(kept.values)
    low, high = interval if interval is not None else (None, None)
    wanted = promised.value if promised is not None and promised.kind in ("agreement", "similarity") else None
    note = ""
    if wanted is not None and promised is not None and (low is None or low < wanted):
        needed = images_needed(wanted, kept.mean, confidence) if kept.is_share else None
        note = f"--min-{promised.kind} {wanted:g} is not proven by the {n} images that chose nothing" + (
            f": at this {kept.name} it takes {needed} of them." if needed else "; ask for less, or give more images."
        )
    return Promise(kept.name, kept.mean, low, high, confidence, n, wanted, note)


def check_expected(held: HeldOut, expected: float | None) -> CheckResult | None:
    """Whether the answers moved about as far as the search foresaw; None where it foresaw nothing.

    Args:
        expected: loss of the solution on the images that judged it, before a refit, which is to lower it.
    """
    if expected is None:
        return None
    allowed = MAX_SURPRISE * expected + (SLACK if held.agreement is None else CLASS_SLACK)
    detail = f"loss on images that chose nothing, {held.loss:.3g}, where the search saw {expected:.3g}"
    return CheckResult("expected", bool(held.loss <= allowed), held.loss, allowed, detail)


def _read_answers(
    model: Model, names: Sequence[str], arrays: Mapping[str, np.ndarray], n_real: int
) -> dict[str, np.ndarray]:
    for name in names:
        bad = int((~np.isfinite(arrays[name])).sum())
        if bad:
            raise NonFiniteError(
                f"{model.path}: output '{name}' holds {bad} NaN or Inf on these images; nothing was pruned."
            )
    return {name: arrays[name][:n_real].astype(np.float64) for name in names}
