"""The edit of an attention: projections of other widths, and the way from them to the attention product.

A projection that holds q, k and v together is followed by a Split, so that the three may differ in width; everything
behind the split keeps its operators. The scale of the logits is pinned to the number it had, whatever the exporter
computes it from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import helper

from corp_onnx.blocks import Attention
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot, WidthSpelling
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.units.edits import set_weight, shape_like
from corp_onnx.units.parts import Part, changed_products, joint_bias, joint_weight


def respell(surgeon: Surgeon, part: Part, spellings: Iterable[WidthSpelling], head_counts: HeadCounts) -> None:
    """Let targets spell the new width of an operand, and its number of heads; a target is spelled once, for both."""
    old, new = part.operand.n_heads, part.n_heads
    sizes: dict[Node, dict[int, int]] = {}
    for spelling in spellings:
        n_folded = spelling.n_folded // old * new if spelling.n_folded % old == 0 and new < old else spelling.n_folded
        sizes.setdefault(spelling.node, {})[spelling.axis] = n_folded * part.width
    for node, axes in head_counts.items():
        if part.heads_idx is not None:
            sizes.setdefault(node, {}).update(dict.fromkeys(axes, new))
    for node, entries in sizes.items():
        surgeon.respell(node, entries)


def pin_scale(surgeon: Surgeon, site: Attention) -> None:
    """Make the scale of the logits independent of the head's width."""
    for slot in site.scale_slots:
        value = surgeon.graph.value(slot.name)
        assert value is not None, slot
        dtype = helper.tensor_dtype_to_np_dtype(surgeon.graph.types[slot.name])
        surgeon.replace_input(slot, surgeon.constant(f"{site.key}.scale", np.asarray(value).astype(dtype)))
    if site.core != "softmax" and not site.node.attrs.get("scale"):
        surgeon.at(site.node).attrs["scale"] = float(site.scale)


def _change_packed_operator(surgeon: Surgeon, site: Attention, parts: Sequence[Part]) -> None:
    """com.microsoft.Attention keeps its one weight; `qkv_hidden_sizes` says how it is cut."""
    set_weight(surgeon, parts[0].operand.linear, joint_weight(surgeon.graph, parts))
    if bias := parts[0].operand.linear.bias:
        _set_joint_bias(surgeon, bias, parts)
    surgeon.at(site.node).attrs["qkv_hidden_sizes"] = [part.n_heads * part.width for part in parts]
    if parts[0].heads_idx is not None:
        surgeon.at(site.node).attrs["num_heads"] = parts[0].n_heads


def _set_joint_bias(surgeon: Surgeon, slot: Slot, parts: Sequence[Part]) -> None:
    surgeon.replace_stored(slot, shape_like(surgeon.graph, slot, joint_bias(surgeon.graph, parts)))


HeadCounts = Mapping[Node, tuple[int, ...]]
"""Reshapes whose target spells the number of heads alone, and at which axes."""


def change_projections(
    surgeon: Surgeon, site: Attention, parts: Sequence[Part], *, apart: bool, head_counts: HeadCounts
) -> None:
    """Fold the maps into the projections and re-plumb what lies behind them; queries leave them where `apart`."""
    if site.core == "com.microsoft.Attention":
        _change_packed_operator(surgeon, site, parts)
        return
    for product in changed_products(parts, apart=apart):
        chosen, linear = product.parts, product.parts[0].operand.linear
        if product.query is not None:
            _give_own_product(surgeon, product.query)
        set_weight(surgeon, linear, joint_weight(surgeon.graph, chosen))
        if linear.bias is not None and linear.output_has_bias:
            _set_joint_bias(surgeon, linear.bias, chosen)
        total = sum(part.width * part.n_heads for part in chosen)
        for node in linear.reshapes:
            surgeon.set_width(WidthSpelling(node, len(surgeon.graph.dims(node.output)) - 1, n_folded=1), total)
        if any(part.operand.is_fused for part in chosen):
            _part_fused(surgeon, site, chosen)
    operator_bias = [p.operand.linear.bias for p in parts if not p.operand.linear.output_has_bias]
    if operator_bias and operator_bias[0] is not None:
        _set_joint_bias(surgeon, operator_bias[0], parts)
    for part in parts:
        if part.changes:
            _set_late_bias(surgeon, part)
            on_way = {node: axes for node, axes in head_counts.items() if node in part.operand.path}
            respell(surgeon, part, part.operand.spellings, on_way)
    if _wants_plain_keys(surgeon.graph, site):
        for part in parts:
            if part.name in ("k", "v") and not part.operand.is_fused:
                _wire(surgeon, site, part, surgeon.tensor(part.operand.linear.output or ""))


def _give_own_product(surgeon: Surgeon, query: Part) -> None:
    """A product, and the addition of a bias, for the queries alone: the same operators with fewer columns."""
    operand, graph = query.operand, surgeon.graph
    linear, source = operand.linear, operand.linear.output or ""
    weight = joint_weight(graph, [query]).astype(linear.read_weight(graph).dtype)
    stored = surgeon.constant(f"{source}_q_weight", weight if linear.transposed else weight.T)
    inputs, output = [surgeon.tensor(linear.input), stored], surgeon.variable(f"{source}_q")
    anchor = graph.producers[source]
    bias = None if linear.bias is None else shape_like(graph, linear.bias, joint_bias(graph, [query]))
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
        surgeon.replace_stored(slot, shape_like(surgeon.graph, slot, mapped))


def _wants_plain_keys(graph: Graph, site: Attention) -> bool:
    """MultiHeadAttention takes keys and values of two widths as [B, N, H*d] only, not as [B, H, N, d]."""
    return site.core == "MultiHeadAttention" and len(graph.dims(site.node.inputs[1])) == 4


def _wire(surgeon: Surgeon, site: Attention, part: Part, tensor: Any) -> None:
    """Give a fused operator its operand as [B, N, H*d]."""
    slot = Slot(site.node, "qkv".index(part.name))
    inputs = surgeon.at(site.node).inputs
    while len(inputs) <= slot.idx:
        inputs.append(tensor)
    surgeon.replace_input(slot, tensor)


def _part_fused(surgeon: Surgeon, site: Attention, chosen: Sequence[Part]) -> None:
    """One product, a Split, and for each operand a Reshape and a Transpose to the layout it had."""
    source = chosen[0].operand.linear.output or ""
    anchor = surgeon.graph.producers[source]
    pieces: list[Any] = [surgeon.tensor(source)]
    if len(chosen) > 1:
        widths = [part.width * part.n_heads for part in chosen]
        pieces = [surgeon.variable(f"{source}_{part.name}") for part in chosen]
        surgeon.split(surgeon.tensor(source), widths, pieces, anchor)
    for part, piece in zip(chosen, pieces, strict=True):
        is_packed = site.core == "MultiHeadAttention" and part.operand.boundary == part.operand.tensor
        is_key = part.name in ("k", "v") and _wants_plain_keys(surgeon.graph, site)
        if is_key or (is_packed and part.operand.boundary_perm is None):
            _wire(surgeon, site, part, piece)
        else:
            _lay_out(surgeon, part, piece, anchor)


def _lay_out(surgeon: Surgeon, part: Part, piece: Any, anchor: Node) -> None:
    """Make an operand's boundary tensor from its columns [*leading, H * width]."""
    operand = part.operand
    boundary = surgeon.drop_producer(operand.boundary)
    perm, heads = operand.boundary_perm, [part.n_heads, part.width]
    if perm is None:
        heads = [part.n_heads * part.width]
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
