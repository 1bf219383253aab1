"""A stretch of a graph as a model of its own: from tensors that are fed to tensors that are read.

The refit and the probes walk the residual stream block by block; running the whole model for every block would cost
its depth squared. A stretch holds just the nodes between; what else it needs (a mask, a batch size taken from the
images) is traced back to the graph's own inputs, which then are inputs of the stretch as well. Tensors that are given
end that trace: a node that makes one of them besides what is needed makes it under another name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from corp_onnx.graph import Model
from corp_onnx.graph.proto import captured_names, feed_dtype, reach_back, without_graph
from corp_onnx.run.sessions import Session, start_session
from corp_onnx.run.tapped import TAP_PREFIX

OWN_PREFIX = "corp_onnx.own/"
"""Before the name of what a node makes and nobody reads, since it is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A session of a stretch. `fed` are the tensors given, `sources` the graph's own inputs that it needs besides."""

    session: Session
    fed: tuple[str, ...]
    sources: tuple[str, ...]
    read: tuple[str, ...]
    dtypes: Mapping[str, np.dtype[Any]]

    def run(self, tensors: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors read, in float32.

        Args:
            tensors: an array for every tensor fed, cast to the graph's precision.
            feeds: the graph's own inputs.

        Raises:
            ModelError: ONNX Runtime failed on these tensors.
        """
        arrays = self.session.run([TAP_PREFIX + name for name in self.read], self.gather(tensors, feeds))
        return dict(zip(self.read, arrays, strict=True))

    def gather(self, tensors: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the session is fed, by name; arguments as of `run`."""
        given = {name: tensors[name].astype(self.dtypes[name], copy=False) for name in self.fed}
        return given | {name: feeds[name] for name in self.sources}


def open_segment(
    model: Model,
    types: Mapping[str, int],
    fed: Sequence[str],
    read: Sequence[str],
    *,
    given: Sequence[str] = (),
    provider: str = "cpu",
    threads: int | None = None,
    config: Mapping[str, str] | None = None,
    exact: bool = True,
    once: bool = False,
) -> Segment:
    """The stretch of a model from the tensors `fed` (none: from its inputs) to the tensors `read`.

    Args:
        types: ONNX element type of every tensor, `Graph.types`.
        given: inner tensors that are taken from the feeds, like the graph's own inputs, instead of being computed.
        threads: as in `open_session`; so are `config` and `exact`.
        once: as in `start_session`.
    """
    graph = model.proto.graph
    needed, sources = reach_back(graph, set(fed), read, set(given))
    light = without_graph(model.proto)  # a walk opens one for every block, so nothing else of the graph is copied
    nodes = [graph.node[position] for position in sorted(needed)]
    used = {name for node in nodes for name in (*node.input, *captured_names(node))} | set(read)
    inputs = [i for i in graph.input if i.name in sources]
    inputs += [helper.make_tensor_value_info(name, types[name], None) for name in given if name in sources]
    light.graph.input.extend(inputs)
    light.graph.input.extend(helper.make_tensor_value_info(name, types[name], None) for name in fed)
    light.graph.node.extend(nodes)
    for node in light.graph.node:
        node.output[:] = [OWN_PREFIX + name if name in given and name in sources else name for name in node.output]
    light.graph.node.extend(
        helper.make_node("Cast", [name], [TAP_PREFIX + name], to=onnx.TensorProto.FLOAT) for name in read
    )
    light.graph.output.extend(onnx.ValueInfoProto(name=TAP_PREFIX + name) for name in read)
    stored = [tensor for tensor in graph.initializer if tensor.name in used]
    session = start_session(light, model, provider, threads, config, stored, exact=exact, once=once)
    dtypes = {name: feed_dtype(types[name]) for name in fed}
    return Segment(session, tuple(fed), tuple(i.name for i in inputs), tuple(read), dtypes)
