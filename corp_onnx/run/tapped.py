"""A model with inner tensors exposed.

Enters a `Model` and names; leaves a `Tapped` session whose `run` gives the exposed tensors in float32 by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from corp_onnx.graph.model import Model
from corp_onnx.graph.proto import captured_names, reach_back, without_graph, without_weights
from corp_onnx.images import Images
from corp_onnx.run.pace import Pace
from corp_onnx.run.sessions import Session, start_session
from corp_onnx.threads import Crew

TAP_PREFIX = "corp_onnx.tap/"
"""In front of the name of an exposed tensor, so that it can not meet a name of the graph."""


Batches: TypeAlias = list[tuple[list[dict[str, np.ndarray]], int]]
"""Of every batch what each of some sessions gives, and the number of real images."""


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A tensor to expose that no node computes by itself: input @ weight (+ bias), of a fused attention operator."""

    name: str
    input: str
    weight: str
    bias: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Tapped:
    """A session that also returns inner tensors.

    Attributes:
        renamed: the session's name of a tap, where it is not the graph's.
    """

    session: Session
    taps: tuple[str, ...]
    outputs: tuple[str, ...]
    renamed: Mapping[str, str]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every exposed tensor in float32 by its name in the graph, and every output of the model by its own.

        Raises:
            ModelError: ONNX Runtime failed on these inputs.
        """
        arrays = self.session.run([*self.outputs, *(self.renamed.get(t, t) for t in self.taps)], feeds)
        return dict(zip([*self.outputs, *self.taps], arrays, strict=True))

    def stream(self, images: Images, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """What `run` gives for all images.

        Yields:
            (arrays by name, images in them): the rows that fill up a fixed batch are still in the arrays and come last
            along the axis of images; the count says how many are real.
        """
        for feeds, n_real in self.session.stream(images, batch_size):
            yield self.run(feeds), n_real


def stream_together(sessions: Sequence[Tapped], images: Images, pace: Pace, crew: Crew) -> Iterator[Batches]:
    """All images through several sessions that take the same inputs, `pace.n_batches` batches at a time.

    The next ones are under way when some are given: what the crew is asked for meanwhile fills up its threads.

    Yields:
        of every batch: what each session gives, and the number of real images, as `Tapped.stream`.
    """
    feeds = sessions[0].session.stream(images, pace.batch_size)

    def begin(batches: list[tuple[dict[str, np.ndarray], int]]) -> Callable[[], Batches]:
        return crew.begin(lambda batch: ([tapped.run(batch[0]) for tapped in sessions], batch[1]), batches)

    running, waiting = begin(list(islice(feeds, pace.n_batches))), list(islice(feeds, pace.n_batches))
    while together := running():
        running, waiting = begin(waiting), list(islice(feeds, pace.n_batches))
        yield together
        del together  # before the next ones are there


def open_tapped(
    model: Model,
    taps: Sequence[str],
    *,
    products: Sequence[Product] = (),
    provider: str = "cpu",
    threads: int | None = None,
    types: Mapping[str, int] | None = None,
    whole: bool = True,
    once: bool = False,
) -> Tapped:
    """A session of a copy of the model in which the named inner tensors are outputs as well (cast to float32).

    `products` are tapped too, under their own names. The model itself is not touched.

    Args:
        types: element types, as `Graph.types`: a tensor that is known to be float32 is not copied by a cast.
        whole: whether the model's outputs are given as well; else nothing is computed that no tap needs.
        once: as in `start_session`, of a whole model.
    """
    wanted = tuple(dict.fromkeys([*taps, *(p.name for p in products)]))
    outputs = tuple(o.name for o in model.proto.graph.output)
    made = {name for node in model.proto.graph.node for name in node.output} - set(outputs)
    exact = {t for t in wanted if t in made and (types or {}).get(t) == TensorProto.FLOAT}
    renamed = {t: TAP_PREFIX + t for t in wanted if t not in exact}
    extra = [n for product in products for n in product_nodes(product)]
    extra += [helper.make_node("Cast", [t], [name], to=TensorProto.FLOAT) for t, name in renamed.items()]
    added = [onnx.ValueInfoProto(name=renamed.get(t, t)) for t in wanted]
    if whole:
        session = open_extended(model, extra, added, provider=provider, threads=threads, once=once)
        return Tapped(session, wanted, outputs, renamed)
    return Tapped(open_cut(model, extra, added, provider=provider, threads=threads), wanted, (), renamed)


def open_feeder(model: Model) -> Session:
    """A session that takes what a model takes and computes nothing: to stream images, without any weight."""
    return open_tapped(model, [value.name for value in model.proto.graph.input], whole=False).session


def open_cut(
    model: Model,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    provider: str = "cpu",
    threads: int | None = None,
) -> Session:
    """As `open_extended`, with no other outputs, and of the model only what those need.

    Args:
        inputs: of the nodes, besides the model's own.
    """
    graph = model.proto.graph
    read = {name for node in nodes for name in node.input} | {value.name for value in outputs}
    needed, _ = reach_back(graph, (), read)
    kept = [graph.node[position] for position in sorted(needed)]
    light = without_graph(model.proto)
    light.graph.input.extend([*graph.input, *inputs])  # whatever is fed
    light.graph.node.extend([*kept, *nodes])
    light.graph.output.extend(outputs)
    read |= {name for node in kept for name in (*node.input, *captured_names(node))}
    stored = [tensor for tensor in graph.initializer if tensor.name in read]
    return start_session(light, model, provider, threads, stored=stored)


def product_nodes(product: Product) -> Iterator[onnx.NodeProto]:
    """The nodes that compute it."""
    partial = product.name + ".product" if product.bias else product.name
    yield helper.make_node("MatMul", [product.input, product.weight], [partial])
    if product.bias:
        yield helper.make_node("Add", [partial, product.bias], [product.name])


def open_extended(
    model: Model,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    once: bool = False,
) -> Session:
    """A session of a copy of the model with nodes and outputs added at its end.

    Args:
        once: as in `start_session`.
    """
    light = without_weights(model.proto)
    light.graph.node.extend(nodes)
    light.graph.output.extend(outputs)
    return start_session(light, model, provider, threads, stored=model.proto.graph.initializer, once=once)
