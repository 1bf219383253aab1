"""The residual stream, addition by addition: where it can be stopped, and how to go on from there.

Enters the blocks of a graph and images; leaves `Stop`s in order and the stream at each of them, one array a batch. What
needs the stream everywhere (the refit, the weights of tokens) walks it stretch by stretch: running the whole model for
every addition would cost its depth squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corp_onnx.blocks import Blocks, Linear, Residual, SiteKey
from corp_onnx.graph import Graph, Model
from corp_onnx.graph.proto import feed_dtype
from corp_onnx.images import Images
from corp_onnx.run.feeds import fixed_batch
from corp_onnx.run.pace import Pace, choose_pace
from corp_onnx.run.segments import Segment, open_segment
from corp_onnx.run.tapped import open_feeder, open_tapped
from corp_onnx.shelf import Feeds, Shelf, own_memory
from corp_onnx.threads import Crew
from corp_onnx.units import Site

Arrays = Sequence[np.ndarray]
"""One array a batch: a residual stream over all images, which lies on a `Shelf`."""

KNOWN_BYTES = 2**28
"""Of the dense stream, that stay in memory from one refit to the next on the same images."""


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """One residual addition of the walk, and the product whose weight is refitted there."""

    site: Site
    linear: Linear
    residual: Residual

    @property
    def key(self) -> SiteKey:
        """Of the site."""
        return self.site.key

    @property
    def regressor(self) -> str:
        """What the product reads."""
        return self.linear.input


@dataclass(frozen=True, slots=True, eq=False)
class StreamWalk:
    """The stops of a model in order, or why there is no walk."""

    stops: tuple[Stop, ...]
    reason: str = ""

    @property
    def starts(self) -> tuple[str, ...]:
        """Of every stop, the stream that its stretch begins with: what the stop before gave, or the embedding."""
        first = tuple(stop.residual.skip or "" for stop in self.stops[:1])
        return (*first, *(stop.residual.stream for stop in self.stops[:-1]))


@dataclass(frozen=True, slots=True, eq=False)
class StreamData:
    """Batches of the model's own inputs with the number of real images in each.

    Attributes:
        given: inner tensors that stretches take from the feeds as well: which tokens merge with which, and what they
            then stand for.
        shelf: where they lie, and what is computed from them.
    """

    feeds: tuple[tuple[Feeds, int], ...]
    n_batch: int | None
    shelf: Shelf
    pace: Pace
    given: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """Real images."""
        return sum(n_real for _, n_real in self.feeds)

    def stream(self, segment: Segment, tensor: str, row: Arrays) -> Iterator[dict[str, np.ndarray]]:
        """What a stretch gives of every batch, from where a stream is; several batches side by side, in their order.

        Args:
            tensor: what the stretch is fed.
            row: of it.
        """
        with Crew(self.pace.n_calls) as crew:
            pairs = zip(row, self.feeds, strict=True)
            yield from crew.stream(lambda pair: _own(segment.run({tensor: pair[0]}, pair[1][0])), pairs)

    def learn(self, names: Sequence[str], batches: Iterable[Mapping[str, np.ndarray]]) -> StreamData:
        """The same with further tensors in the feeds, and given from now on; they go to the shelf."""
        row = self.shelf.row()
        slots = [{name: row.put(arrays[name]) for name in names} for arrays in batches]
        feeds = zip(self.feeds, slots, strict=True)
        more = tuple((Feeds({**batch.slots, **new}), n_real) for (batch, n_real), new in feeds)
        return replace(self, feeds=more, given=(*self.given, *names))


@dataclass(slots=True, eq=False)
class KnownStreams:
    """The dense stream in front of the first merge, which every refit on the same images finds the same.

    Attributes:
        room: bytes that are left.
    """

    room: int = KNOWN_BYTES
    _rows: dict[str, Arrays] = field(default_factory=dict)

    def recall(self, tensor: str, make: Callable[[], Arrays]) -> Arrays:
        """The stream at a tensor, as it was found before; made now where it was not, and kept where there is room."""
        if tensor in self._rows:
            return self._rows[tensor]
        row = make()
        n_bytes = len(row) * row[0].nbytes
        if n_bytes <= self.room:
            self.room -= n_bytes
            self._rows[tensor] = row
        return row


def _own(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with memory of its own; copied by the thread that ran the batch, so that the others go on."""
    return {name: own_memory(array) for name, array in arrays.items()}


def is_by_image(leading: tuple[int, ...], n_images: int) -> bool:
    """Whether a stream is [images, tokens, d_model].

    Args:
        leading: shape of a batch of it without its channels.
        n_images: in the batch, filled up or not.
    """
    return len(leading) == 2 and leading[0] == n_images


def find_walk(blocks: Blocks) -> StreamWalk:
    """The residual additions in order; no walk where one of them is not an addition of the graph."""
    sites = [site for block in blocks.blocks for site in block.sites]
    stops = [
        Stop(site, site.last, site.residual) for site in sites if site.last is not None and site.residual is not None
    ]
    broken = [s for s in stops if s.residual.skip is None]
    if broken:
        return StreamWalk((), f"the residual addition of {broken[0].key} is inside a fused operator")
    return StreamWalk(tuple(stops))


def read_data(
    graph: Graph,
    images: Images,
    batch_size: int,
    provider: str,
    given: Sequence[str] = (),
    shelf: Shelf | None = None,
) -> StreamData:
    """All images as feeds of the model, in its own batch where that is fixed.

    Args:
        given: tensors of the graph that are to be the same wherever a stretch of it, or of one rewritten from it, is
            run: they are computed here, once.
        shelf: where they lie; None keeps all in memory.
    """
    pace = choose_pace(batch_size, graph.n_images if graph.fixed_batch else None, provider)
    session = open_feeder(graph.model)
    shelf = shelf or Shelf()
    data = StreamData(shelf.keep(session.stream(images, pace.batch_size)), fixed_batch(session.inputs), shelf, pace)
    if not given:
        return data
    tapped = open_tapped(graph.model, given, provider=provider)
    return data.learn(given, (_as_typed(tapped.run(feeds), graph, given) for feeds, _ in data.feeds))


def _as_typed(arrays: Mapping[str, np.ndarray], graph: Graph, names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: arrays[name].astype(feed_dtype(graph.types[name])) for name in names}


def run_prefix(graph: Graph, data: StreamData, tensor: str, provider: str) -> Arrays:
    """The first stream of the walk: what the embedding gives."""
    prefix = open_segment(
        graph.model, graph.types, [], [tensor], given=data.given, provider=provider, threads=data.pace.threads
    )
    with Crew(data.pace.n_calls) as crew:
        return data.shelf.row(crew.stream(lambda batch: prefix.run({}, batch[0])[tensor], data.feeds))


def advance_model(
    model: Model, graph: Graph, data: StreamData, stream: Arrays, before: str, after: str, provider: str
) -> Arrays:
    """A model's stream at `after` from where it is at `before`.

    Args:
        model: the dense one or one rewritten from it, whose tensors have the types that `graph` knows.
    """
    stretch = open_segment(
        model, graph.types, [before], [after], given=data.given, provider=provider, threads=data.pace.threads
    )
    return data.shelf.row(arrays[after] for arrays in data.stream(stretch, before, stream))


def advance_dense(
    graph: Graph, data: StreamData, stream: Arrays, before: str, after: str, new: Sequence[str], provider: str,
    known: KnownStreams,
) -> tuple[StreamData, Arrays]:  # fmt: skip
    """The dense stream as of `advance_model`, and the data with what this stretch says of tensors to be given.

    Args:
        new: those tensors, by `place_given`.
        known: of earlier refits on the same images.
    """
    if not new and not data.given:  # nothing has merged
        return data, known.recall(
            after, lambda: advance_model(graph.model, graph, data, stream, before, after, provider)
        )
    stretch = open_segment(
        graph.model, graph.types, [before], [after, *new], given=data.given, provider=provider,
        threads=data.pace.threads,
    )  # fmt: skip
    row = data.shelf.row()

    found: list[dict[str, np.ndarray]] = []
    for arrays in data.stream(stretch, before, stream):
        row.put(arrays[after])
        found.append(_as_typed(arrays, graph, new))
    return (data.learn(new, found) if new else data), row


def place_given(graph: Graph, walk: StreamWalk, given: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Of every stop, which of the tensors `given` the dense model's stretch up to it finds out.

    That is the last stretch that one of them needs; what it needs of earlier ones is known by then.
    """
    starts = {name: position for position, name in enumerate(walk.starts)}
    found: dict[str, int] = {}
    for name in given:  # each is found by itself, so that one that follows from others comes no earlier than they
        seen, todo, last = set[str](), [name], 0
        while todo:
            tensor = todo.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            if tensor in starts:
                last = max(last, starts[tensor])
            elif tensor in graph.producers:
                todo += [i for i in graph.producers[tensor].inputs if i]
        found[name] = last
    return tuple(tuple(name for name in given if found[name] == i) for i in range(len(walk.stops)))
