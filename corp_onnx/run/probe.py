"""One run on noise that tells what every tensor is: a `Graph` with shapes, and the values that exporters compute.

Exporters hide head sizes, token counts and the scale of the logits behind Shape, Gather and Sqrt. Instead of
following their spelling, the model is run once with the shape of every tensor as an output; small integer and
one-element tensors are read as they are. Inputs: a `Model`. Output: its `Graph` with `shapes`, `values`, `n_images`.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.dataflow import Graph, read_graph
from corp_onnx.graph.model import FLOAT_TYPES, Model, batch_kind
from corp_onnx.graph.operators import OUTPUT_TYPES
from corp_onnx.graph.proto import INFERENCE_ERRORS, skeleton
from corp_onnx.run.noise import describe_feeds, run_possible
from corp_onnx.run.sessions import Session
from corp_onnx.run.tapped import open_extended

PROBE_IMAGES = 2
"""Two where the batch is dynamic, so that a batch axis can be told from an axis of size one."""

SHAPE_PREFIX = "corp_onnx.shape/"
VALUE_PREFIX = "corp_onnx.value/"
INTEGER_TYPES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})

SMALL_VALUE = 64
"""Integer tensors up to this size are kept: shapes, axes, split sizes, and no index tables."""


def probe_graph(model: Model) -> Graph:
    """The graph of a model with the shape of every tensor at a batch of `n_images`, measured by one run.

    Raises:
        ModelError: ONNX Runtime can not load or run the model.
    """
    graph = read_graph(model)
    types = complete_types(graph, _infer_types(graph))
    names = [out for node in graph.nodes for out in node.outputs if out]
    integers = [n for n in names if types.get(n) in INTEGER_TYPES]
    factors = list_factors(graph, set(names) - set(integers))
    nodes = [helper.make_node("Shape", [n], [SHAPE_PREFIX + n]) for n in names]
    nodes += [helper.make_node("Identity", [n], [VALUE_PREFIX + n]) for n in integers]
    nodes += [node for name in factors for node in _sum_nodes(name)]
    outputs = [SHAPE_PREFIX + n for n in names] + [VALUE_PREFIX + n for n in (*integers, *factors)]
    n_images = batch_kind(model) or PROBE_IMAGES
    session = open_extended(model, nodes, [onnx.ValueInfoProto(name=o) for o in outputs], once=True)
    feeds, found = run_possible(model, n_images, lambda feeds: _run(session, outputs, feeds))
    arrays = dict(zip(outputs, found, strict=True))
    shapes = {n: tuple(int(d) for d in arrays[SHAPE_PREFIX + n]) for n in names} | {
        k: v.shape for k, v in feeds.items()
    }
    # copies: what ONNX Runtime gives keeps all the memory of its session alive
    values = {n: arrays[VALUE_PREFIX + n].copy() for n in integers if arrays[VALUE_PREFIX + n].size <= SMALL_VALUE}
    values |= {n: arrays[VALUE_PREFIX + n].reshape(shapes[n]).copy() for n in factors if math.prod(shapes[n]) == 1}
    return replace(graph, shapes=shapes, values=values, types=types, n_images=n_images)


def _run(session: Session, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(outputs, feeds)
    except ModelError as error:
        raise ModelError(f"{error} It was fed noise: {describe_feeds(feeds)}.") from error


def _infer_types(graph: Graph) -> dict[str, int]:
    """Element types as onnx infers them from a skeleton without the weights; where it can not, ONNX Runtime's."""
    light = skeleton(graph.model.proto)
    # what a file says of a tensor goes stale; it is believed behind operators that onnx does not know
    foreign = {o for n in graph.nodes if not onnx.defs.has(n.op, n.domain) for o in n.outputs}
    believed = [value for value in light.graph.value_info if value.name in foreign]
    del light.graph.value_info[:]
    light.graph.value_info.extend(believed)
    try:
        inferred = onnx.shape_inference.infer_shapes(light).graph
    except INFERENCE_ERRORS:
        return _ask_types(graph)
    return {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.input, *inferred.output]}


def _ask_types(graph: Graph) -> dict[str, int]:
    """Element types as ONNX Runtime infers them: it says those of outputs, so every tensor becomes one."""
    outer = {*graph.outputs, *graph.inputs}
    inner = [out for node in graph.nodes for out in node.outputs if out and out not in outer]
    session = open_extended(graph.model, [], [onnx.ValueInfoProto(name=name) for name in inner])
    return session.types


def complete_types(graph: Graph, known_types: dict[str, int]) -> dict[str, int]:
    """Element type of every tensor.

    ONNX knows no types behind operators of other domains; those hand on the type of their first floating-point input.
    """
    types = {name: kind for name, kind in known_types.items() if kind != TensorProto.UNDEFINED}
    types |= {name: tensor.data_type for name, tensor in graph.initializers.items()}
    for node in graph.nodes:
        known = [types[name] for name in node.inputs[1 if node.op == "Where" else 0 :] if name in types]
        known = [kind for kind in known if node.domain and kind in FLOAT_TYPES] or known
        kind = node.attrs.get("to") if node.op == "Cast" else OUTPUT_TYPES.get(node.op, known[0] if known else None)
        for name in node.outputs:
            if kind is not None:
                types.setdefault(name, kind)
    return types


def list_factors(graph: Graph, computed: Set[str]) -> list[str]:
    """Computed tensors that other nodes multiply or divide by: the scale of the logits is one, of one element."""
    used = [name for node in graph.nodes if node.op in ("Mul", "Div") for name in node.inputs]
    return [name for name in dict.fromkeys(used) if name in computed and not graph.is_constant(name)]


def _sum_nodes(name: str) -> list[onnx.NodeProto]:
    """Of all its elements, which is the element where there is one: whether there is, only the run tells."""
    cast = f"{VALUE_PREFIX}{name}.float"
    return [
        helper.make_node("Cast", [name], [cast], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", [cast], [VALUE_PREFIX + name]),
    ]
