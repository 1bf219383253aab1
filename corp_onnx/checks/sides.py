"""Both models on the same batches of held-back images, in the way that memory leaves and as far as it is not known.

Enters the dense graph, a pruned file and images; leaves pairs of `Side`s, batch by batch. Of the first images these
hold what is inside of both models as well, of the others the answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float64

from corp_onnx.calibrate.collect import tap_units
from corp_onnx.checks.unit_errors import UnitErrors
from corp_onnx.errors import NonFiniteError
from corp_onnx.findings import Findings
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.images.open import find_sound
from corp_onnx.memory import release_memory
from corp_onnx.run.outputs import KnownAnswers, Outputs
from corp_onnx.run.pace import Pace, choose_pace
from corp_onnx.run.sessions import Session
from corp_onnx.run.tapped import Tapped, open_tapped
from corp_onnx.shelf import Feeds as OnShelf
from corp_onnx.shelf import Row, Shelf, own_memory
from corp_onnx.threads import Crew
from corp_onnx.units import UnitKey
from corp_onnx.units.base import Values
from corp_onnx.units.energy import Energy

T = TypeVar("T")

Feeds: TypeAlias = Mapping[str, np.ndarray]
"""A batch under the names of a model's inputs."""

Answers: TypeAlias = Mapping[str, Float64[np.ndarray, "n ..."]]
"""To some images or all, under the names of the outputs."""

INNER_IMAGES = 48
"""Held-back images, the first, on which what is inside of both models is compared: of 102 images an error of a unit of
DeiT-Tiny differs by 2.5 % then. Answers are compared on all."""

KNOWN_BYTES = 2**28
"""Of what the dense model gives, that stay in memory from one pruned model to the next on the same images."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """What one of both models gives for a batch: its answers, and its residual stream behind every block.

    Attributes:
        streams: none behind the first images.
        values: that errors of units are measured on, of the dense model.
        energies: of the units on these.
    """

    answers: Answers
    streams: Mapping[str, np.ndarray]
    n_real: int
    values: Mapping[UnitKey, Values] = field(default_factory=dict)
    energies: Sequence[Energy] = ()

    def keep(self) -> Side:
        """The same in memory of its own, without what is of a pruned model."""
        streams = {name: own_memory(array) for name, array in self.streams.items()}
        values = {key: tuple(map(own_memory, values)) for key, values in self.values.items()}
        return replace(self, streams=streams, values=values, energies=())

    @property
    def n_bytes(self) -> int:
        """Of its arrays."""
        arrays = (*self.answers.values(), *self.streams.values(), *(a for value in self.values.values() for a in value))
        return sum(array.nbytes for array in arrays)


Pairs: TypeAlias = Iterator[tuple[Side, Side]]
"""The dense and the pruned model's, of every batch."""


@dataclass(slots=True, eq=False)
class KnownSides:
    """What the dense model gives for images that several pruned models are measured on; nothing where that is too much.

    Attributes:
        room: bytes that they may take; none once it was too little.
        sides: of every batch, once all of them are known.
    """

    room: int = KNOWN_BYTES
    sides: tuple[Side, ...] = ()

    def watch(self, pairs: Pairs) -> Pairs:
        """The same pairs, of which the dense halves are kept while there is room."""
        kept, left = list[Side](), self.room
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


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Images as a model takes them: which batch, from which image on, and how many of them are real.

    Attributes:
        is_inside: whether what is inside of the models is looked at.
    """

    place: int
    start: int
    feeds: Feeds
    n_real: int
    is_inside: bool


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Both models on the same images.

    Attributes:
        errors: of the units whose values are read.
        streams: tensors behind every block.
        findings: where the dense model's answers may be known, or all that it gives.
    """

    graph: Graph
    pruned: Model
    errors: UnitErrors
    outputs: Outputs
    streams: Sequence[str]
    images: Images
    batch_size: int
    provider: str
    findings: Findings

    @property
    def names(self) -> list[str]:
        """Of the outputs that are compared."""
        return [task.output for task in self.outputs.tasks]

    @property
    def pace(self) -> Pace:
        """Of the images through a session."""
        return choose_pace(self.batch_size, self.graph.n_images if self.graph.fixed_batch else None, self.provider)

    def ask(self, shelf: Shelf | None) -> Pairs:
        """Both of every batch.

        Args:
            shelf: where the streams of the dense model lie where one model is to be open at a time.
        """
        is_shared = self.findings.is_shared and shelf is None
        known = self.findings.hold("sides", {}, KnownSides) if is_shared else None
        if known is not None and known.sides:
            return self.beside(known.sides)
        is_filed = self.findings.subject is not None  # they are of a file, or go into one
        answers = KnownAnswers.of(self.findings, self.images, self.names) if is_filed else None
        found = answers.find() if answers else None
        pairs = self.together(found) if shelf is None else self.in_turn(shelf, found)
        pairs = answers.watch(pairs, lambda pair: pair[0].answers) if answers and found is None else pairs
        return pairs if known is None else known.watch(pairs)

    def together(self, answers: Answers | None) -> Pairs:
        """Both of every batch, with both sessions open.

        Args:
            answers: of the dense model to all images, where they are known.
        """
        with Crew() as crew:
            dense, cut = crew.map(lambda open_one: open_one(), (self._open_dense, self._open_cut))
        yield from self._stream(
            dense, lambda batch, crew: (self._ask_dense(dense, batch, answers, crew), self._ask_cut(cut, batch))
        )

    def beside(self, sides: Sequence[Side]) -> Pairs:
        """The same where the dense model has been asked."""
        cut = self._open_cut()
        yield from self._stream(
            cut, lambda batch, crew: (self._weigh(sides[batch.place], crew), self._ask_cut(cut, batch))
        )

    def in_turn(self, shelf: Shelf, answers: Answers | None) -> Pairs:
        """The same with one session open at a time; the streams of the dense model lie on a shelf meanwhile."""
        aside = deque(self._put_aside(shelf.row(), answers))
        release_memory()
        cut = self._open_cut()
        for other in self._stream(cut, lambda batch, _: self._ask_cut(cut, batch)):
            yield aside.popleft(), other

    def _put_aside(self, row: Row, answers: Answers | None) -> Iterator[Side]:
        dense = self._open_dense()
        for one in self._stream(dense, lambda batch, crew: self._ask_dense(dense, batch, answers, crew)):
            yield replace(
                one, values={}, streams=OnShelf({name: row.put(array) for name, array in one.streams.items()})
            )

    def _stream(self, first: Tapped, ask: Callable[[_Batch, Crew], T]) -> Iterator[T]:
        """Of every batch what it is asked for; several at a time, or the units of one side by side."""
        pace = self.pace
        with Crew(pace.n_calls) as calls, Crew(None if pace.n_calls == 1 else 1) as units:
            batches = _cut_batches(first.session, self.images, pace.batch_size)
            yield from calls.stream(lambda batch: ask(batch, units), batches)

    def _open_dense(self) -> Tapped:
        return tap_units(self.graph, self.errors.units, self.streams, provider=self.provider, threads=self.pace.threads)

    def _open_cut(self) -> Tapped:
        types, threads = self.graph.types, self.pace.threads
        return open_tapped(self.pruned, self.streams, provider=self.provider, threads=threads, types=types)

    def _ask_dense(self, tapped: Tapped, batch: _Batch, answers: Answers | None, crew: Crew) -> Side:
        if answers is not None and not batch.is_inside:
            these = slice(batch.start, batch.start + batch.n_real)
            return Side({name: answers[name][these] for name in self.names}, {}, batch.n_real)
        arrays = tapped.run(batch.feeds)
        values = self.errors.read(arrays, batch.n_real, batch.start) if batch.is_inside else {}
        return self._weigh(replace(self._read(self.graph.model, arrays, batch), values=values), crew)

    def _weigh(self, side: Side, crew: Crew) -> Side:
        return replace(side, energies=self.errors.measure(side.values, crew))

    def _ask_cut(self, tapped: Tapped, batch: _Batch) -> Side:
        return self._read(self.pruned, tapped.run(batch.feeds), batch)

    def _read(self, model: Model, arrays: Mapping[str, np.ndarray], batch: _Batch) -> Side:
        answers = _read_answers(model, self.names, arrays, batch.n_real)
        return Side(answers, {name: arrays[name] for name in self.streams if batch.is_inside}, batch.n_real)


def _cut_batches(session: Session, images: Images, batch_size: int) -> Iterator[_Batch]:
    """The first images and the others, none of both in one batch: what is looked at is the same whatever the batch."""
    sound, place, start = find_sound(images), 0, 0
    for is_inside, these in ((True, sound[:INNER_IMAGES]), (False, sound[INNER_IMAGES:])):
        for feeds, n_real in session.stream(images.select(these), batch_size) if len(these) else ():
            yield _Batch(place, start, feeds, n_real, is_inside)
            place, start = place + 1, start + n_real


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
