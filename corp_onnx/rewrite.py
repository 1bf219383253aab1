"""Solutions -> a smaller graph: the only place where a model changes, always on a copy.

An MLP's products and per-channel vectors are sliced to the kept channels. A query/key solution is a linear map per
head, q' = M q, folded into the projection: W_Q' = M W_Q, b_Q' = M b_Q. A projection that holds q, k and v together is
followed by a Split, so that the three may differ in width; everything behind the split keeps its operators. The scale
of the logits is pinned to the number it had, whatever the exporter computes it from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float, Int

from corp_onnx.blocks import AttentionUnit, Blocks, Linear, MlpUnit, Operand, Slot, WidthSpelling
from corp_onnx.graph import Graph, Node
from corp_onnx.surgeon import Surgeon


@dataclass(frozen=True, slots=True, eq=False)
class MlpChange:
    """An MLP cut to `kept_idx`, with the weight [d_out, width] and bias [d_out] of its second product."""

    kept_idx: Int[np.ndarray, " width"]
    weight: Float[np.ndarray, "d_out width"]
    bias: Float[np.ndarray, " d_out"]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionChange:
    """Linear maps [n_heads, width, d_head] of a unit's heads; None leaves that operand as it is.

    With `v_map` goes the weight [d_out, n_heads * width], columns head by head, and bias of the output projection.
    """

    q_map: Float[np.ndarray, "h r d"] | None = None
    k_map: Float[np.ndarray, "h r d"] | None = None
    v_map: Float[np.ndarray, "h s d"] | None = None
    out_weight: Float[np.ndarray, "d_out hs"] | None = None
    out_bias: Float[np.ndarray, " d_out"] | None = None


Changes = Mapping[str, MlpChange | AttentionChange]
"""By the unit's key (`MlpUnit.key`, `AttentionUnit.key`)."""


def apply_changes(graph: Graph, blocks: Blocks, changes: Changes, metadata: dict[str, str]) -> onnx.ModelProto:
    """The model with every change in it; inputs, outputs and untouched nodes are those of the file.

    Args:
        metadata: properties to store in the result.
    """
    surgeon = Surgeon(graph)
    for unit in blocks.mlps:
        change = changes.get(unit.key)
        if isinstance(change, MlpChange):
            change_mlp(surgeon, unit, change)
    for unit in blocks.attentions:
        change = changes.get(unit.key)
        if isinstance(change, AttentionChange):
            change_attention(surgeon, unit, change)
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
        rank = len(surgeon.graph.dims(node.output))
        surgeon.set_width(WidthSpelling(node, rank - 1, n_folded=1), width)
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


def change_attention(surgeon: Surgeon, unit: AttentionUnit, change: AttentionChange) -> None:
    """Fold the maps into the projections and re-plumb what lies behind them."""
    operands = {"q": (unit.q, change.q_map), "k": (unit.k, change.k_map), "v": (unit.v, change.v_map)}
    present = {letter: (o, m) for letter, (o, m) in operands.items() if o is not None}
    pin_scale(surgeon, unit)
    if unit.core == "com.microsoft.Attention":
        _change_packed_operator(surgeon, unit, present)
    else:
        _change_projections(surgeon, unit, present)
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
        assert value is not None
        assert unit.q is not None
        dtype = unit.q.linear.read_weight(surgeon.graph).dtype
        surgeon.replace_input(slot, surgeon.constant(f"{unit.key}.scale", np.asarray(value).astype(dtype)))
    if unit.core != "softmax" and not unit.node.attrs.get("scale"):
        surgeon.at(unit.node).attrs["scale"] = float(unit.scale)


Present = Mapping[str, tuple[Operand, np.ndarray | None]]


def mapped_weight(graph: Graph, operand: Operand, head_map: np.ndarray | None) -> Float[np.ndarray, "hr d_in"]:
    """Rows of a projection for one operand, head by head, with the map folded in, in float64."""
    weight = operand.linear.read_weight(graph)[operand.channel_idx].astype(np.float64)  # [H, d, d_in]
    return (weight if head_map is None else head_map @ weight).reshape(-1, operand.linear.d_in)


def mapped_bias(graph: Graph, operand: Operand, head_map: np.ndarray | None) -> Float[np.ndarray, " hr"] | None:
    """The bias that goes with `mapped_weight`; None where the projection has none."""
    bias = operand.linear.read_bias(graph)
    if bias is None:
        return None
    heads = bias[operand.channel_idx].astype(np.float64)  # [H, d]
    return (heads if head_map is None else np.einsum("hrd,hd->hr", head_map, heads)).reshape(-1)


def _width(operand: Operand, head_map: np.ndarray | None) -> int:
    return operand.d_head if head_map is None else head_map.shape[1]


def _change_packed_operator(surgeon: Surgeon, unit: AttentionUnit, present: Present) -> None:
    """com.microsoft.Attention keeps its one weight; `qkv_hidden_sizes` says how it is cut."""
    graph = surgeon.graph
    linear = present["q"][0].linear
    _set_weight(surgeon, linear, np.concatenate([mapped_weight(graph, o, m) for o, m in present.values()]))
    if linear.bias is not None:
        bias = np.concatenate([b for b in (mapped_bias(graph, o, m) for o, m in present.values()) if b is not None])
        surgeon.replace_stored(linear.bias, _like(graph, linear.bias, bias))
    widths = [unit.n_heads * _width(o, m) for o, m in present.values()]
    surgeon.at(unit.node).attrs["qkv_hidden_sizes"] = widths


def _change_projections(surgeon: Surgeon, unit: AttentionUnit, present: Present) -> None:
    graph = surgeon.graph
    by_product: dict[Node, list[str]] = {}
    for letter, (operand, _) in present.items():
        by_product.setdefault(operand.linear.node, []).append(letter)
    operator_bias = unit.core == "MultiHeadAttention" and any(
        o.linear.bias is not None and o.linear.bias.node is unit.node for o, _ in present.values()
    )
    for letters in by_product.values():
        chosen = {letter: present[letter] for letter in letters}
        if all(m is None for _, m in chosen.values()):
            continue
        linear = present[letters[0]][0].linear
        _set_weight(surgeon, linear, np.concatenate([mapped_weight(graph, o, m) for o, m in chosen.values()]))
        if linear.bias is not None and not operator_bias:
            parts = [mapped_bias(graph, o, m) for o, m in chosen.values()]
            bias = np.concatenate([p for p in parts if p is not None])
            surgeon.replace_stored(linear.bias, _like(graph, linear.bias, bias))
        if any(o.is_fused for o, _ in chosen.values()):
            _part_fused(surgeon, unit, chosen)
    if operator_bias:
        slot = next(o.linear.bias for o, _ in present.values() if o.linear.bias is not None)
        parts = [mapped_bias(graph, o, m) for o, m in present.values()]
        surgeon.replace_stored(slot, _like(graph, slot, np.concatenate([p for p in parts if p is not None])))
    for operand, head_map in present.values():
        if head_map is not None:
            for spelling in operand.spellings:
                surgeon.set_width(spelling, head_map.shape[1])


def _part_fused(surgeon: Surgeon, unit: AttentionUnit, chosen: Present) -> None:
    """One product, a Split, and for each operand a Reshape and a Transpose to the layout it had."""
    linear = next(iter(chosen.values()))[0].linear
    widths = [_width(o, m) * o.n_heads for o, m in chosen.values()]
    source = linear.output or ""
    anchor = surgeon.graph.producers[source]
    sizes = surgeon.constant(f"{source}_sizes", np.array(widths, dtype=np.int64))
    pieces = [surgeon.variable(f"{source}_{letter}") for letter in chosen]
    split_inputs = [surgeon.tensor(source), sizes]
    attrs: dict[str, object] = {"axis": -1}
    if surgeon.graph.model.opset < 13:
        split_inputs, attrs = split_inputs[:1], {"axis": -1, "split": widths}
    surgeon.insert("Split", split_inputs, list(pieces), anchor, **attrs)
    for (letter, (operand, head_map)), piece in zip(chosen.items(), pieces, strict=True):
        if unit.core == "MultiHeadAttention" and operand.boundary == operand.tensor and operand.boundary_perm is None:
            slot = Slot(unit.node, "qkv".index(letter))
            gs_node = surgeon.at(unit.node)
            while len(gs_node.inputs) <= slot.idx:
                gs_node.inputs.append(piece)
            surgeon.replace_input(slot, piece)
            continue
        _lay_out(surgeon, operand, piece, _width(operand, head_map), anchor)


def _lay_out(surgeon: Surgeon, operand: Operand, piece: object, width: int, anchor: Node) -> None:
    """Make an operand's boundary tensor from its columns [*leading, H * width]."""
    boundary = surgeon.drop_producer(operand.boundary)
    if operand.boundary_perm is None:
        surgeon.insert("Identity", [piece], [boundary], anchor)  # type: ignore[list-item]
        return
    n_leading = len(operand.boundary_perm) - 2
    leading = [-1, operand.n_tokens] if operand.splits_tokens else [0] * n_leading
    target = np.array([*leading, operand.n_heads, width], dtype=np.int64)
    shape = surgeon.constant(f"{operand.boundary}_shape", target)
    heads = surgeon.variable(f"{operand.boundary}_heads")
    surgeon.insert("Reshape", [piece, shape], [heads], anchor)  # type: ignore[list-item]
    surgeon.insert("Transpose", [heads], [boundary], anchor, perm=list(operand.boundary_perm))
