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

import numpy as np
import onnx
from onnx import helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.dataflow import Graph, Node, read_graph
from corp_onnx.graph.model import Model
from corp_onnx.graph.proto import INFERENCE_ERRORS, reach_back, skeleton, without_graph
from corp_onnx.run.probe import INTEGER_TYPES, SMALL_VALUE, complete_types, list_factors, probe_graph
from corp_onnx.run.sessions import start_session


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
    inferred = _infer(before, graph, same)
    if inferred is None:
        return None
    types, shapes = inferred
    names = {out for node in graph.nodes for out in node.outputs if out}
    if not names <= shapes.keys():
        return None
    integers = {name for name in names if types.get(name) in INTEGER_TYPES}
    small = {name for name in integers if math.prod(shapes[name]) <= SMALL_VALUE}
    factors = {name for name in list_factors(graph, names - integers) if math.prod(shapes[name]) == 1}
    known = {name: before.values[name] for name in same if name in before.values}
    computed = _compute(graph, types, shapes, known, sorted((small | factors) - same - _find_seen(graph, known.keys())))
    if computed is None:
        return None
    values = {name: array.astype(np.float32) if name in factors else array for name, array in computed.items()}
    return replace(graph, shapes=shapes, values=known | values, types=types, n_images=before.n_images)


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


def _find_seen(graph: Graph, known: Set[str]) -> set[str]:
    """The tensors that depend on what is in the images, as which tokens merge: noise has nothing to say of those."""
    seen = set(graph.inputs)
    for node in graph.nodes:
        if node.op != "Shape" and not seen.isdisjoint({*node.inputs, *graph.captured(node)}):
            seen.update(name for name in node.outputs if name and name not in known)
    return seen


def _infer(before: Graph, graph: Graph, same: Set[str]) -> tuple[dict[str, int], dict[str, tuple[int, ...]]] | None:
    """Element types, and the shapes that are known."""
    light = skeleton(graph.model.proto)
    del light.graph.value_info[:]
    for value in light.graph.input:
        if value.name in before.shapes and value.name in before.types:
            value.CopyFrom(_declare(value.name, before))
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    told = [name for name in same if name in before.producers and name in before.types and name not in graph.outputs]
    light.graph.value_info.extend(_declare(name, before) for name in told)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except INFERENCE_ERRORS:
        return None
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
    types: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[str, np.ndarray],
    wanted: list[str],
) -> dict[str, np.ndarray] | None:
    """What follows from shapes, stored numbers and what is known; None where ONNX Runtime refuses to say."""
    given = {n.output: _read_shape(n, shapes) for n in graph.nodes if n.op == "Shape"} | dict(known)
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


def _read_shape(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    start, end = node.attrs.get("start", 0), node.attrs.get("end")
    return np.array(shapes[node.inputs[0]][start:end], dtype=np.int64)
