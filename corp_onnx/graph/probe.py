"""One run on noise that tells what every tensor is: a `Graph` with shapes, and the values that exporters compute.

Exporters hide head sizes, token counts and the scale of the logits behind Shape, Gather and Sqrt. Instead of
following their spelling, the model is run once with the shape of every tensor as an output; small integer and
one-element tensors are read as they are. Inputs: a `Model`. Output: its `Graph` with `shapes`, `values`, `n_images`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.dataflow import Graph, read_graph
from corp_onnx.graph.model import FLOAT_TYPES, Model, batch_kind
from corp_onnx.graph.noise import run_possible
from corp_onnx.graph.proto import skeleton
from corp_onnx.graph.runtime import first_sentence, open_extended

PROBE_IMAGES = 2
"""Two where the batch is dynamic, so that a batch axis can be told from an axis of size one."""

SHAPE_PREFIX = "corp_onnx.shape/"
VALUE_PREFIX = "corp_onnx.value/"
INTEGER_TYPES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})
COMPARISONS = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "IsNaN")
COUNTERS = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero", "Range")
TYPE_MAKERS: dict[str, int] = {
    **dict.fromkeys(COMPARISONS, int(TensorProto.BOOL)),
    **dict.fromkeys(COUNTERS, int(TensorProto.INT64)),
}
"""Operators whose output has another type than their first input."""

PRODUCTS = ("MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat")
"""Operators whose first input is multiplied along its last axis, whatever their precision."""

CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Operators that convolve, and which input holds their kernel."""

SMALL_VALUE = 64
"""Integer tensors up to this size are kept: shapes, axes, split sizes, and no index tables."""


def probe_graph(model: Model) -> Graph:
    """The graph of a model with the shape of every tensor at a batch of `n_images`, measured by one run.

    Raises:
        ModelError: ONNX Runtime can not load or run the model.
    """
    graph = read_graph(model)
    types = _element_types(graph)
    names = [out for node in graph.nodes for out in node.outputs if out]
    shape_nodes = [helper.make_node("Shape", [n], [SHAPE_PREFIX + n]) for n in names]
    integers = [n for n in names if types.get(n) in INTEGER_TYPES]
    value_nodes = [helper.make_node("Identity", [n], [VALUE_PREFIX + n]) for n in integers]
    outputs = [SHAPE_PREFIX + n for n in names] + [VALUE_PREFIX + n for n in integers]
    n_images = batch_kind(model) or PROBE_IMAGES
    session = open_extended(model, shape_nodes + value_nodes, [onnx.ValueInfoProto(name=o) for o in outputs])
    feeds, found = run_possible(model, n_images, lambda feeds: _run(session, outputs, feeds, model))
    arrays = dict(zip(outputs, found, strict=True))
    shapes = {n: tuple(int(d) for d in arrays[SHAPE_PREFIX + n]) for n in names} | {
        k: v.shape for k, v in feeds.items()
    }
    values = {n: arrays[VALUE_PREFIX + n] for n in integers if arrays[VALUE_PREFIX + n].size <= SMALL_VALUE}
    values |= _computed_scalars(graph, shapes, values, model, feeds)
    return replace(graph, shapes=shapes, values=values, types=types, n_images=n_images)


def _run(session: Any, outputs: list[str], feeds: dict[str, np.ndarray], model: Model) -> list[np.ndarray]:
    try:
        return session.run(outputs, feeds)
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        shapes = ", ".join(f"{k} {v.shape}" for k, v in feeds.items())
        raise ModelError(
            f"{model.path}: ONNX Runtime loads it but can not run it on {shapes} ({first_sentence(error)})."
        ) from error


def _element_types(graph: Graph) -> dict[str, int]:
    """Element type of every tensor, from a skeleton without the weights.

    ONNX knows no types behind operators of other domains; those hand on the type of their first floating-point input.
    """
    inferred = onnx.shape_inference.infer_shapes(skeleton(graph.model.proto)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.input, *inferred.output]}
    types = {name: kind for name, kind in types.items() if kind != TensorProto.UNDEFINED}
    types |= {name: tensor.data_type for name, tensor in graph.initializers.items()}
    for node in graph.nodes:
        known = [types[name] for name in node.inputs[1 if node.op == "Where" else 0 :] if name in types]
        known = [kind for kind in known if node.domain and kind in FLOAT_TYPES] or known
        kind = node.attrs.get("to") if node.op == "Cast" else TYPE_MAKERS.get(node.op, known[0] if known else None)
        for name in node.outputs:
            if kind is not None:
                types.setdefault(name, kind)
    return types


def _computed_scalars(
    graph: Graph,
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, np.ndarray],
    model: Model,
    feeds: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """One-element float tensors that other nodes multiply or divide by: the scale of the logits, mostly."""
    wanted = [
        name
        for node in graph.nodes
        if node.op in ("Mul", "Div")
        for name in node.inputs
        if name in shapes and name not in values and int(np.prod(shapes[name])) == 1 and not graph.is_constant(name)
    ]
    wanted = [n for n in dict.fromkeys(wanted) if n not in feeds]
    if not wanted:
        return {}
    nodes = [helper.make_node("Cast", [n], [VALUE_PREFIX + n], to=TensorProto.FLOAT) for n in wanted]
    outputs = [VALUE_PREFIX + n for n in wanted]
    session = open_extended(model, nodes, [onnx.ValueInfoProto(name=o) for o in outputs])
    return dict(zip(wanted, _run(session, outputs, feeds, model), strict=True))


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one image, by node output name, and their sum."""

    by_node: dict[str, int]

    @property
    def total(self) -> int:
        """MACs of the whole model for one image."""
        return sum(self.by_node.values())


def count_macs(graph: Graph) -> Cost:
    """Multiply-accumulates of convolutions, matrix products and attention operators, per image.

    Source: the shapes of the probe run. Element-wise work, normalisations and softmax are not counted, as is usual.
    """
    macs: Counter[str] = Counter()
    for node in graph.nodes:
        if count := _node_macs(graph, node.op, node.inputs, node.output, node.attrs):
            macs[node.output] = count // graph.n_images
    return Cost(dict(macs))


def _node_macs(graph: Graph, op: str, inputs: tuple[str, ...], output: str, attrs: dict[str, object]) -> int:
    if op in PRODUCTS:
        depth = graph.dims(inputs[0])[-2 if attrs.get("transA") else -1]
        return int(np.prod(graph.shapes[output])) * depth
    if op in ("Gemm", "FusedGemm"):
        rows, cols = graph.dims(inputs[0])
        return int(np.prod(graph.shapes[output])) * (rows if attrs.get("transA") else cols)
    if op in CONVOLUTIONS:
        weight = graph.dims(inputs[CONVOLUTIONS[op]])
        return int(np.prod(graph.shapes[output])) * int(np.prod(weight[1:]))
    if op == "Attention":
        return _attention_macs(graph, inputs, attrs)
    if op == "MultiHeadAttention":
        return _multi_head_macs(graph, inputs)
    return 0


def _attention_macs(graph: Graph, inputs: tuple[str, ...], attrs: dict[str, object]) -> int:
    """The opset-23 operator on [B, H, N, d] or [B, N, H*d], or com.microsoft's, which holds the projections too."""
    first, second = graph.dims(inputs[0]), graph.dims(inputs[1])
    if len(second) == 2:  # com.microsoft.Attention(x [B, N, d_model], weight [d_model, q + k + v])
        batch, n_tokens, d_model = first
        widths = attrs.get("qkv_hidden_sizes") or [second[1] // 3] * 3
        d_q, _, d_v = widths  # type: ignore[misc]
        return batch * n_tokens * (d_model * second[1] + n_tokens * (d_q + d_v))
    third = graph.dims(inputs[2])
    if len(first) == 4:
        batch, n_heads, n_q, d_qk = first
        return batch * n_heads * n_q * second[2] * (d_qk + third[3])
    return first[0] * first[1] * second[1] * (first[2] + third[2])


def _multi_head_macs(graph: Graph, inputs: tuple[str, ...]) -> int:
    query = graph.dims(inputs[0])
    if len(query) == 5:  # packed [B, N, H, 3, d]
        batch, n_q, n_heads, _, d_head = query
        return 2 * batch * n_heads * n_q * n_q * d_head
    key, value = graph.dims(inputs[1]), graph.dims(inputs[2])
    if len(key) == 5:  # packed key and value [B, M, H, 2, d]
        return 2 * query[0] * query[1] * key[1] * key[2] * key[4]
    if len(key) == 4:  # [B, H, M, d]
        return query[0] * key[1] * query[1] * key[2] * (key[3] + value[3])
    return query[0] * query[1] * key[1] * (query[2] + value[2])
