"""Solutions -> a smaller graph: the only place where a model changes, always on a copy.

An MLP's products and per-channel vectors are sliced to the kept channels. A query/key solution is a linear map per
head, q' = M q, folded into the projection: W_Q' = M W_Q, b_Q' = M b_Q. A projection that holds q, k and v together is
followed by a Split, so that the three may differ in width; everything behind the split keeps its operators. The scale
of the logits is pinned to the number it had, whatever the exporter computes it from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float, Int
from onnx import helper

from corp_onnx.blocks import AttentionUnit, Blocks, Linear, MlpUnit
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot, WidthSpelling
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.rewrite.heads import AttentionChange, Part, changed_products, joint_bias, joint_weight, list_parts


@dataclass(frozen=True, slots=True, eq=False)
class MlpChange:
    """An MLP cut to `kept_idx`, with the weight [d_out, width] and bias [d_out] of its second product."""

    kept_idx: Int[np.ndarray, " width"]
    weight: Float[np.ndarray, "d_out width"]
    bias: Float[np.ndarray, " d_out"]


Changes = Mapping[str, MlpChange | AttentionChange]
"""By the unit's key (`MlpUnit.key`, `AttentionUnit.key`)."""


def apply_changes(
    graph: Graph,
    blocks: Blocks,
    changes: Changes,
    metadata: dict[str, str],
    *,
    apart: Collection[str] = (),
) -> onnx.ModelProto:
    """The model with every change in it; inputs, outputs and untouched nodes are those of the file.

    Args:
        metadata: properties to store in the result.
        apart: keys of the attentions whose queries leave the product that they share with keys and values.
    """
    surgeon = Surgeon(graph)
    for unit in blocks.mlps:
        change = changes.get(unit.key)
        if isinstance(change, MlpChange):
            change_mlp(surgeon, unit, change)
    for unit in blocks.attentions:
        change = changes.get(unit.key, AttentionChange() if unit.key in apart else None)
        if isinstance(change, AttentionChange):
            change_attention(surgeon, unit, change, apart=unit.key in apart)
    return surgeon.finish(metadata)


def change_mlp(surgeon: Surgeon, unit: MlpUnit, change: MlpChange) -> None:
    """Slice the first product(s), the vectors between, and replace the second product."""
    kept, width = change.kept_idx, len(change.kept_idx)
    biases: set[Slot] = set()
    for up in unit.ups:
        rows = up.channel_idx[:, kept].reshape(-1)
        _set_weight(surgeon, up.linear, up.linear.read_weight(surgeon.graph)[rows])
        if up.linear.bias is not None:
            bias = up.linear.read_bias(surgeon.graph)
            assert bias is not None
            surgeon.replace_stored(up.linear.bias, _like(surgeon.graph, up.linear.bias, bias[rows]))
            biases.add(up.linear.bias)
    for slot in unit.per_channel:
        if slot not in biases:
            value = surgeon.graph.constant(slot.name)
            assert value is not None
            surgeon.replace_stored(slot, np.take(value, kept, axis=-1))
    for node in unit.reshapes:
        shape = surgeon.graph.dims(node.output)
        surgeon.set_width(WidthSpelling(node, len(shape) - 1, n_folded=shape[-1] // unit.d_hidden), width)
    for node in unit.splits:
        _set_halves(surgeon, node, width)
    _set_weight(surgeon, unit.down, change.weight)
    set_bias(surgeon, unit.down, change.bias)


def _set_halves(surgeon: Surgeon, node: Node, width: int) -> None:
    """New sizes for the Split, or new bounds for the Slice, that parts a packed gate and value."""
    gs_node = surgeon.at(node)
    if node.op == "Split":
        if "split" in node.attrs:
            gs_node.attrs["split"] = [width, width]
        elif len(node.inputs) > 1:
            sizes = surgeon.constant(f"{node.output}_sizes", np.array([width, width], dtype=np.int64))
            surgeon.replace_input(Slot(node, 1), sizes)
        return
    start = int(np.asarray(surgeon.graph.value(node.inputs[1])).reshape(-1)[0])
    offset = 0 if start == 0 else width
    for idx, bound in ((1, offset), (2, offset + width)):
        value = surgeon.constant(f"{node.output}_bound", np.array([bound], dtype=np.int64))
        surgeon.replace_input(Slot(node, idx), value)


def _set_weight(surgeon: Surgeon, linear: Linear, weight: np.ndarray) -> None:
    """Store a weight [d_out, d_in] in the layout and precision of the old one."""
    dtype = linear.read_weight(surgeon.graph).dtype
    surgeon.replace_stored(linear.weight, (weight if linear.transposed else weight.T).astype(dtype))


def _like(graph: Graph, slot: Slot, vector: np.ndarray) -> np.ndarray:
    """A vector in the rank and precision of what is stored at a slot."""
    old = graph.constant(slot.name)
    assert old is not None
    return vector.astype(old.dtype).reshape(*[1] * (old.ndim - 1), -1)


def set_bias(surgeon: Surgeon, linear: Linear, bias: np.ndarray) -> None:
    """Store a bias; a product that has none gets an Add behind it, unless the bias is zero."""
    if linear.bias is not None:
        surgeon.replace_stored(linear.bias, _like(surgeon.graph, linear.bias, bias))
        return
    if not np.any(bias):
        return
    dtype = linear.read_weight(surgeon.graph).dtype
    output = surgeon.drop_producer(linear.node.output)
    product = surgeon.variable(f"{output.name}_product")
    surgeon.at(linear.node).outputs = [product]
    stored = surgeon.constant(f"{output.name}_bias", bias.astype(dtype))
    surgeon.insert("Add", [product, stored], [output], linear.node)


def change_attention(surgeon: Surgeon, unit: AttentionUnit, change: AttentionChange, *, apart: bool = False) -> None:
    """Fold the maps into the projections and re-plumb what lies behind them."""
    parts = list_parts(unit, change)
    if change.q_map is not None:
        pin_scale(surgeon, unit)
    if unit.core == "com.microsoft.Attention":
        _change_packed_operator(surgeon, unit, parts)
    else:
        _change_projections(surgeon, unit, parts, apart)
    if change.out_weight is not None and unit.out is not None:
        _set_weight(surgeon, unit.out.linear, change.out_weight)
        if change.out_bias is not None:
            set_bias(surgeon, unit.out.linear, change.out_bias)
    if change.v_map is not None and unit.out is not None:
        for spelling in unit.out.spellings:
            surgeon.set_width(spelling, change.v_map.shape[1])


def pin_scale(surgeon: Surgeon, unit: AttentionUnit) -> None:
    """Make the scale of the logits independent of the head's width."""
    for slot in unit.scale_slots:
        value = surgeon.graph.value(slot.name)
        assert value is not None, slot
        dtype = helper.tensor_dtype_to_np_dtype(surgeon.graph.types[slot.name])
        surgeon.replace_input(slot, surgeon.constant(f"{unit.key}.scale", np.asarray(value).astype(dtype)))
    if unit.core != "softmax" and not unit.node.attrs.get("scale"):
        surgeon.at(unit.node).attrs["scale"] = float(unit.scale)


def _change_packed_operator(surgeon: Surgeon, unit: AttentionUnit, parts: Sequence[Part]) -> None:
    """com.microsoft.Attention keeps its one weight; `qkv_hidden_sizes` says how it is cut."""
    _set_weight(surgeon, parts[0].operand.linear, joint_weight(surgeon.graph, parts))
    if bias := parts[0].operand.linear.bias:
        _set_joint_bias(surgeon, bias, parts)
    surgeon.at(unit.node).attrs["qkv_hidden_sizes"] = [unit.n_heads * part.width for part in parts]


def _set_joint_bias(surgeon: Surgeon, slot: Slot, parts: Sequence[Part]) -> None:
    surgeon.replace_stored(slot, _like(surgeon.graph, slot, joint_bias(surgeon.graph, parts)))


def _change_projections(surgeon: Surgeon, unit: AttentionUnit, parts: Sequence[Part], apart: bool) -> None:
    for product in changed_products(parts, apart=apart):
        chosen, linear = product.parts, product.parts[0].operand.linear
        if product.query is not None:
            _give_own_product(surgeon, product.query)
        _set_weight(surgeon, linear, joint_weight(surgeon.graph, chosen))
        if linear.bias is not None and linear.output_has_bias:
            _set_joint_bias(surgeon, linear.bias, chosen)
        total = sum(part.width * part.operand.n_heads for part in chosen)
        for node in linear.reshapes:
            surgeon.set_width(WidthSpelling(node, len(surgeon.graph.dims(node.output)) - 1, n_folded=1), total)
        if any(part.operand.is_fused for part in chosen):
            _part_fused(surgeon, unit, chosen)
    operator_bias = [p.operand.linear.bias for p in parts if not p.operand.linear.output_has_bias]
    if operator_bias and operator_bias[0] is not None:
        _set_joint_bias(surgeon, operator_bias[0], parts)
    for part in parts:
        if part.head_map is not None:
            _set_late_bias(surgeon, part)
            for spelling in part.operand.spellings:
                surgeon.set_width(spelling, part.width)
    if _wants_plain_keys(surgeon.graph, unit):
        for part in parts:
            if part.name in ("k", "v") and not part.operand.is_fused:
                _wire(surgeon, unit, part, surgeon.tensor(part.operand.linear.output or ""))


def _give_own_product(surgeon: Surgeon, query: Part) -> None:
    """A product, and the addition of a bias, for the queries alone: the same operators with fewer columns."""
    operand, graph = query.operand, surgeon.graph
    linear, source = operand.linear, operand.linear.output or ""
    weight = joint_weight(graph, [query]).astype(linear.read_weight(graph).dtype)
    stored = surgeon.constant(f"{source}_q_weight", weight if linear.transposed else weight.T)
    inputs, output = [surgeon.tensor(linear.input), stored], surgeon.variable(f"{source}_q")
    anchor = graph.producers[source]
    bias = None if linear.bias is None else _like(graph, linear.bias, joint_bias(graph, [query]))
    added = None if bias is None else surgeon.constant(f"{source}_q_bias", bias)
    if linear.bias is not None and linear.bias.node is linear.node:
        inputs, added = [*inputs, added], None
    product = output if added is None else surgeon.variable(f"{source}_q_product")
    surgeon.insert(linear.node.op, inputs, [product], anchor, **linear.node.attrs)
    if added is not None:
        surgeon.insert("Add", [product, added], [output], anchor)
    _lay_out(surgeon, query, output, anchor)


def _set_late_bias(surgeon: Surgeon, part: Part) -> None:
    slot = part.operand.late_bias
    if slot is not None:
        mapped = part.map_vector(part.operand.read_late_bias(surgeon.graph))
        surgeon.replace_stored(slot, _like(surgeon.graph, slot, mapped))


def _wants_plain_keys(graph: Graph, unit: AttentionUnit) -> bool:
    """MultiHeadAttention takes keys and values of two widths as [B, N, H*d] only, not as [B, H, N, d]."""
    return unit.core == "MultiHeadAttention" and len(graph.dims(unit.node.inputs[1])) == 4


def _wire(surgeon: Surgeon, unit: AttentionUnit, part: Part, tensor: Any) -> None:
    """Give a fused operator its operand as [B, N, H*d]."""
    slot = Slot(unit.node, "qkv".index(part.name))
    inputs = surgeon.at(unit.node).inputs
    while len(inputs) <= slot.idx:
        inputs.append(tensor)
    surgeon.replace_input(slot, tensor)


def _part_fused(surgeon: Surgeon, unit: AttentionUnit, chosen: Sequence[Part]) -> None:
    """One product, a Split, and for each operand a Reshape and a Transpose to the layout it had."""
    source = chosen[0].operand.linear.output or ""
    anchor = surgeon.graph.producers[source]
    pieces: list[Any] = [surgeon.tensor(source)]
    if len(chosen) > 1:
        widths = [part.width * part.operand.n_heads for part in chosen]
        pieces = [surgeon.variable(f"{source}_{part.name}") for part in chosen]
        surgeon.split(surgeon.tensor(source), widths, pieces, anchor)
    for part, piece in zip(chosen, pieces, strict=True):
        is_packed = unit.core == "MultiHeadAttention" and part.operand.boundary == part.operand.tensor
        is_key = part.name in ("k", "v") and _wants_plain_keys(surgeon.graph, unit)
        if is_key or (is_packed and part.operand.boundary_perm is None):
            _wire(surgeon, unit, part, piece)
        else:
            _lay_out(surgeon, part, piece, anchor)


def _lay_out(surgeon: Surgeon, part: Part, piece: Any, anchor: Node) -> None:
    """Make an operand's boundary tensor from its columns [*leading, H * width]."""
    operand = part.operand
    boundary = surgeon.drop_producer(operand.boundary)
    perm, heads = operand.boundary_perm, [operand.n_heads, part.width]
    if perm is None:
        heads = [operand.n_heads * part.width]
    if operand.leading is not None:
        shape = surgeon.leading_shape(operand.leading, heads)
        anchor = surgeon.before(operand.leading.node)
    elif perm is None:
        surgeon.insert("Identity", [piece], [boundary], anchor)
        return
    else:
        target = np.array([*[0] * (len(perm) - 2), *heads], dtype=np.int64)
        shape = surgeon.constant(f"{operand.boundary}_shape", target)
    laid_out = boundary if perm is None else surgeon.variable(f"{operand.boundary}_heads")
    surgeon.insert("Reshape", [piece, shape], [laid_out], anchor)
    if perm is not None:
        surgeon.insert("Transpose", [laid_out], [boundary], anchor, perm=list(perm))
