"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' plans and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float64

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import tap_units
from corp_onnx.checks.disagreement import Disagreements
from corp_onnx.checks.unit_errors import UnitErrors
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
from corp_onnx.shelf import Row, Shelf, own_memory
from corp_onnx.threads import Crew
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.units import UnitKey
from corp_onnx.units.base import Values
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

KNOWN_BYTES = 2**28
"""Of what the dense model gives, that stay in memory from one pruned model to the next on the same images."""


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """What one of both models gives for a batch: its answers, and its residual stream behind every block.

    Attributes:
        values: that errors of units are measured on, of the dense model.
        energies: of the units on these.
    """

    answers: Mapping[str, Float64[np.ndarray, "n ..."]]
    streams: Mapping[str, np.ndarray]
    n_real: int
    values: Mapping[UnitKey, Values] = field(default_factory=dict)
    energies: Sequence[Energy] = ()

    def keep(self) -> _Side:
        """The same in memory of its own, without what is of a pruned model."""
        streams = {name: own_memory(array) for name, array in self.streams.items()}
        values = {key: tuple(map(own_memory, values)) for key, values in self.values.items()}
        return replace(self, streams=streams, values=values, energies=())

    @property
    def n_bytes(self) -> int:
        """Of its arrays."""
        arrays = (*self.answers.values(), *self.streams.values(), *(a for value in self.values.values() for a in value))
        return sum(array.nbytes for array in arrays)


@dataclass(slots=True, eq=False)
class KnownSides:
    """What the dense model gives for images that several pruned models are measured on; nothing where that is too much.

    Attributes:
        room: bytes that they may take; none once it was too little.
        sides: of every batch, once all of them are known.
    """

    room: int = KNOWN_BYTES
    sides: tuple[_Side, ...] = ()

    def watch(self, pairs: Iterable[tuple[_Side, _Side]]) -> Iterator[tuple[_Side, _Side]]:
        """The same pairs, of which the dense halves are kept while there is room."""
        kept, left = list[_Side](), self.room
        for dense, cut in pairs:
            left -= dense.n_bytes
            if left < 0:
                kept.clear()
            else:
                kept.append(dense.keep())
            yield dense, cut
        if left < 0:
            self.room = 0  # nothing is copied in vain again
        self.sides = tuple(kept)


def measure_model(
    graph: Graph, blocks: Blocks, pruned: Model, images: Images, outputs: Outputs, errors: UnitErrors, *,
    apart: Disagreements | None = None, promised: Budget | None = None, confidence: float = CONFIDENCE,
    trim: TokenTrim | None = None, n_special: int = 0, batch_size: int = 8, provider: str = "cpu",
    shelf: Shelf | None = None, known: KnownSides | None = None, progress: Count | None = None,
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
        known: what an earlier measurement on the same images has found of the dense model, and a later one is to know.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
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

    asked = _Asked(graph, pruned, errors, outputs, streams, images, batch_size, provider)
    for expected, found in asked.ask(shelf, known):
        compare(expected, found)
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
    outputs: Outputs
    streams: Sequence[str]
    images: Images
    batch_size: int
    provider: str

    @property
    def names(self) -> list[str]:
        """Of the outputs that are compared."""
        return [task.output for task in self.outputs.tasks]

    @property
    def pace(self) -> Pace:
        """Of the images through a session."""
        return choose_pace(self.batch_size, self.graph.n_images if self.graph.fixed_batch else None, self.provider)

    def ask(self, shelf: Shelf | None, known: KnownSides | None) -> Iterator[tuple[_Side, _Side]]:
        """Both of every batch, in the way that these leave; arguments as of `measure_model`."""
        if known is not None and known.sides:
            return self.beside(known.sides)
        pairs = self.together() if shelf is None else self.in_turn(shelf)
        return pairs if known is None else known.watch(pairs)

    def together(self) -> Iterator[tuple[_Side, _Side]]:
        """Both of every batch, with both sessions open."""
        with Crew() as crew:
            dense, cut = crew.map(lambda open_one: open_one(), (self._open_dense, self._open_cut))
        yield from self._stream(dense, lambda *batch: (self._ask_dense(dense, *batch), self._ask_cut(cut, *batch[1:3])))

    def beside(self, sides: Sequence[_Side]) -> Iterator[tuple[_Side, _Side]]:
        """The same where the dense model has been asked."""
        cut = self._open_cut()
        yield from self._stream(
            cut, lambda place, feeds, n_real, crew: (self._weigh(sides[place], crew), self._ask_cut(cut, feeds, n_real))
        )

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
            yield replace(
                one, values={}, streams=OnShelf({name: row.put(array) for name, array in one.streams.items()})
            )

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
        values = self.errors.read(arrays, n_real, place * self.pace.batch_size)
        return self._weigh(_Side(answers, {name: arrays[name] for name in self.streams}, n_real, values), crew)

    def _weigh(self, side: _Side, crew: Crew) -> _Side:
        return replace(side, energies=self.errors.measure(side.values, crew))

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
