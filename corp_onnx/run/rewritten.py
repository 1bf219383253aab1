"""A rewritten graph with its shapes and values, told from those of the graph that it was made from: without a run.

What stands in front of the first change is as it was. Behind it, onnx's shape inference gives the shapes at the sizes
of the probe run, and what exporters compute of shapes (head sizes, scales) is computed again, and nothing else. Where
that does not tell all that a run would, the model is run (probe.py). Enters the probed graph and a model; leaves the
same as `probe_graph`, but for what depends on what is in the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.dataflow import Graph, Node, read_graph
from corp_onnx.graph.model import Model
from corp_onnx.graph.proto import INFERENCE_ERRORS, reach_back, skeleton, without_graph
from corp_onnx.run.probe import INTEGER_TYPES, SMALL_VALUE, VALUE_PREFIX, complete_types, list_factors, probe_graph
from corp_onnx.run.sessions import start_session

Types: TypeAlias = Mapping[str, int]
"""ONNX's element type of tensors, by name."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def probe_rewritten(before: Graph, model: Model) -> Graph:
    """The graph of a model that passes have made of a probed one; its inputs are the same.

    Raises:
        ModelError: it had to be run, and ONNX Runtime can not.
    """
    found = _follow(before, model)
    return probe_graph(model) if found is None else found


def _follow(before: Graph, model: Model) -> Graph | None:
    """None where a run would tell more."""
    graph = read_graph(model)
    same = _find_same(before, graph)
    known = {name: before.values[name] for name in same if name in before.values}
    inferred = _infer(before, graph, same, known)
    if inferred is None:
        return None
    types, shapes = inferred
    names = {out for node in graph.nodes for out in node.outputs if out}
    if not names <= shapes.keys():
        return None
    integers = {name for name in names if types.get(name) in INTEGER_TYPES}
    small = {name for name in integers if math.prod(shapes[name]) <= SMALL_VALUE}
    factors = {name for name in list_factors(graph, names - integers) if math.prod(shapes[name]) == 1}
    wanted = (small | factors) - same - _find_seen(graph, shapes, known.keys())
    computed = _compute(graph, types, shapes, known, sorted(wanted))
    if computed is None:
        return None
    values = {name: array.astype(np.float32) if name in factors else array for name, array in computed.items()}
    return replace(graph, shapes=dict(shapes), values=known | values, types=dict(types), n_images=before.n_images)


def _find_same(before: Graph, graph: Graph) -> set[str]:
    """The tensors that depend on nothing that has changed."""
    same = {name for name in graph.inputs if name in before.inputs}
    same |= {name for name, tensor in graph.initializers.items() if before.initializers.get(name) == tensor}

    def is_same(node: Node) -> bool:
        other = before.producers.get(node.output)
        return (
            other is not None
            and other.proto == node.proto
            and same.issuperset(filter(None, node.inputs))
            and same >= graph.captured(node)
        )

    for node in graph.nodes:
        if is_same(node):
            same.update(filter(None, node.outputs))
    return same


def _find_seen(graph: Graph, shapes: Shapes, known: Set[str]) -> set[str]:
    """The tensors that depend on what is in the images, as which tokens merge: noise has nothing to say of those. So do
    those that follow from a shape which is not known."""
    seen = set(graph.inputs)
    for node in graph.nodes:
        if node.op == "Shape" and node.inputs[0] in shapes:
            continue
        if not seen.isdisjoint({*node.inputs, *graph.captured(node)}):
            seen.update(name for name in node.outputs if name and name not in known)
    return seen


def _infer(before: Graph, graph: Graph, same: Set[str], known: Mapping[str, np.ndarray]) -> tuple[Types, Shapes] | None:
    """Element types, and the shapes that are known.

    What onnx does not compute of sizes itself, as the target of a Reshape that is sliced and joined, is computed for
    it, as far as shapes are known by then; and again, while that tells it more.
    """
    light, given = _prepare(before, graph, same), set[str]()
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        except INFERENCE_ERRORS:
            return None
        types, shapes = _read_inferred(before, graph, same, inferred)
        unknown = [n for n in graph.nodes if any(name and name not in shapes for name in n.outputs)]
        ready = [n for n in unknown if all(i in shapes or graph.is_constant(i) for i in n.inputs if i)]
        sizes = {i for n in ready for i in n.inputs if _is_size(graph, types, shapes, i)}
        asked = sorted(sizes - given - _find_seen(graph, shapes, known.keys()))
        found = _compute(graph, types, shapes, known, asked) if asked else None
        if found is None:
            return types, shapes
        given.update(asked)
        _give(light, found)


def _is_size(graph: Graph, types: Types, shapes: Shapes, name: str) -> bool:
    """Whether a tensor is a few computed integers."""
    maker = graph.producers.get(name)
    is_computed = maker is not None and maker.op != "Constant" and name in shapes
    return is_computed and types.get(name) in INTEGER_TYPES and math.prod(shapes[name]) <= SMALL_VALUE


def _give(light: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Let nodes read stored numbers in place of what is computed."""
    for name, array in values.items():
        light.graph.initializer.append(numpy_helper.from_array(array, VALUE_PREFIX + name))
    for node in light.graph.node:
        if not values.keys().isdisjoint(node.input):
            node.input[:] = [VALUE_PREFIX + name if name in values else name for name in node.input]


def _prepare(before: Graph, graph: Graph, same: Set[str]) -> onnx.ModelProto:
    """A skeleton of the graph at the sizes of the probe, with what is known of tensors that are as they were."""
    light = skeleton(graph.model.proto)
    del light.graph.value_info[:]
    for value in light.graph.input:
        if value.name in before.shapes and value.name in before.types:
            value.CopyFrom(_declare(value.name, before))
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    told = [name for name in same if name in before.producers and name in before.types and name not in graph.outputs]
    light.graph.value_info.extend(_declare(name, before) for name in told)
    return light


def _read_inferred(before: Graph, graph: Graph, same: Set[str], inferred: onnx.GraphProto) -> tuple[Types, Shapes]:
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values if _is_known(v)}
    types = complete_types(graph, {v.name: v.type.tensor_type.elem_type for v in values})
    kept = {name: before.shapes[name] for name in same if name in before.shapes}
    return types | {n: before.types[n] for n in same if n in before.types}, shapes | kept


def _declare(name: str, before: Graph) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, before.types[name], before.shapes[name])


def _is_known(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)


def _compute(
    graph: Graph,
    types: Types,
    shapes: Shapes,
    known: Mapping[str, np.ndarray],
    wanted: list[str],
) -> dict[str, np.ndarray] | None:
    """What follows from shapes, stored numbers and what is known; None where ONNX Runtime refuses to say."""
    given = {n.output: _read_shape(n, shapes) for n in graph.nodes if n.op == "Shape" and n.inputs[0] in shapes}
    given |= known
    if all(name in given for name in wanted):
        return {name: given[name] for name in wanted}
    source = graph.model.proto.graph
    needed, _ = reach_back(source, set(given), wanted)
    light = without_graph(graph.model.proto)
    nodes = [source.node[position] for position in sorted(needed)]
    used = {name for node in nodes for name in node.input}
    light.graph.node.extend(nodes)
    fed = {name: array for name, array in given.items() if name in used}
    light.graph.input.extend(helper.make_tensor_value_info(n, types[n], a.shape) for n, a in fed.items())
    asked = [name for name in wanted if name not in given]
    light.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked)
    stored = [tensor for tensor in source.initializer if tensor.name in used]
    try:
        arrays = start_session(light, graph.model, stored=stored, once=True).run(asked, fed)
    except ModelError:
        return None
    found = {name: array.copy() for name, array in zip(asked, arrays, strict=True)}
    return found | {name: given[name] for name in wanted if name in given}


def _read_shape(node: Node, shapes: Shapes) -> np.ndarray:
    start, end = node.attrs.get("start", 0), node.attrs.get("end")
    return np.array(shapes[node.inputs[0]][start:end], dtype=np.int64)
