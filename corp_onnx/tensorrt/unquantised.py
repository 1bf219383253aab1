"""A file that quantises -> the float model that it stands for: what `blocks/` knows how to read.

    QuantizeLinear, DequantizeLinear behind it -> nothing
    DequantizeLinear of a stored weight        -> (weight - zero point) * scale, stored
    Cast, product in float32, Cast back        -> the product in the type around it, as it was before `convert`

Nodes keep their names, so that what is found in the one is found in the other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from corp_onnx.graph.external import load_tensors

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def drop_quantisation(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy of a model without its QuantizeLinear and DequantizeLinear, weights inside; itself where it has none."""
    if not any(node.op_type == DEQUANTISE for node in proto.graph.node):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    load_tensors(copy, folder)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in copy.graph.node if node.op_type == QUANTISE}
    outputs = {value.name for value in copy.graph.output}
    around: dict[str, str] = {}  # what a reader of the one reads in the float model
    kept: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        if node.op_type == QUANTISE:
            continue
        node.input[:] = [around.get(name, name) for name in node.input]
        if node.op_type != DEQUANTISE or node.input[0] not in (sources.keys() | stored.keys()):
            kept.append(node)
        elif node.input[0] in stored:
            copy.graph.initializer.append(_dequantise(node, stored))
        else:
            source = sources[node.input[0]]
            around[node.output[0]] = around.get(source, source)
            if node.output[0] in outputs:
                kept.append(helper.make_node("Identity", [around[node.output[0]]], [node.output[0]]))
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(kept)
    _drop_casts(copy.graph)
    return copy


def _drop_casts(graph: onnx.GraphProto) -> None:
    """Give products with a Cast behind them the type that it casts to: that of what stands around them."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    every = list(graph.node)  # the same objects from here on: protobuf makes new ones for every look
    for node in every:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes, dropped = list[onnx.NodeProto](), set[int]()
    for node in every:
        behind = readers.get(node.output[0], [])
        if node.op_type == "MatMul" and node.input[1] in stored and [n.op_type for n in behind] == ["Cast"]:
            kind, product = behind[0].attribute[0].i, node.output[0]
            weight = numpy_helper.to_array(stored[node.input[1]]).astype(helper.tensor_dtype_to_np_dtype(kind))
            graph.initializer.append(numpy_helper.from_array(weight, f"{product}.weight"))
            nodes.append(helper.make_node("Cast", [node.input[0]], [f"{product}.input"], to=kind))
            node.input[:] = [f"{product}.input", f"{product}.weight"]
            node.output[0] = behind[0].output[0]
            dropped.add(id(behind[0]))
        nodes.append(node)
    kept = [node for node in nodes if id(node) not in dropped]
    del graph.node[:]
    graph.node.extend(kept)


def _dequantise(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> onnx.TensorProto:
    value, scale, *zero = (numpy_helper.to_array(stored[name]) for name in node.input)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.ndim == 1 and scale.size > 1:
        shape = [1] * value.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), [z.reshape(shape) for z in zero]
    shifted = value.astype(np.float32) - (zero[0].astype(np.float32) if zero else 0)
    return numpy_helper.from_array((shifted * scale).astype(scale.dtype), node.output[0])
