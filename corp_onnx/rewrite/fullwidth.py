"""Changes at full width, for the checks: the identity, and a solution padded with zeros.

Enters a graph with the changes that were solved; leaves changes that keep every shape. The padded ones compute exactly
what the solved ones do,

    [M; 0] q, [N; 0] k:  q' M' N k + 0        [W~ 0] x  with zero columns at the channels that go

so a graph that depends on a width by accident (a scale computed from the head size, a constant that spells it) answers
differently at the two widths.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import AttentionUnit, Blocks, MlpUnit
from corp_onnx.graph import Graph
from corp_onnx.rewrite.surgery import AttentionChange, Changes, MlpChange


def identity_changes(graph: Graph, blocks: Blocks, changes: Changes) -> dict[str, MlpChange | AttentionChange]:
    """For every unit that changes, the change that removes nothing."""
    whole: dict[str, MlpChange | AttentionChange] = {}
    for unit in blocks.mlps:
        if unit.key in changes:
            whole[unit.key] = MlpChange(
                np.arange(unit.d_hidden), unit.down.read_weight(graph), _bias_or_zero(graph, unit)
            )
    for unit in blocks.attentions:
        change = changes.get(unit.key)
        if isinstance(change, AttentionChange):
            whole[unit.key] = _identity_attention(graph, unit, change)
    return whole


def _bias_or_zero(graph: Graph, unit: MlpUnit) -> Float[np.ndarray, " d_out"]:
    bias = unit.down.read_bias(graph)
    return np.zeros(unit.down.d_out) if bias is None else bias


def _identity_attention(graph: Graph, unit: AttentionUnit, change: AttentionChange) -> AttentionChange:
    eye = [None if m is None else np.broadcast_to(np.eye(m.shape[2]), (m.shape[0], m.shape[2], m.shape[2]))
           for m in (change.q_map, change.k_map, change.v_map)]  # fmt: skip
    out = unit.out.linear if unit.out is not None and change.v_map is not None else None
    weight = None if out is None or unit.out is None else out.read_weight(graph)[:, unit.out.channel_idx.reshape(-1)]
    return AttentionChange(*eye, out_weight=weight, out_bias=None if out is None else out.read_bias(graph))


def pad_changes(blocks: Blocks, changes: Changes) -> dict[str, MlpChange | AttentionChange]:
    """The same solutions at full width, zeros where something was removed."""
    padded: dict[str, MlpChange | AttentionChange] = {}
    for unit in blocks.mlps:
        change = changes.get(unit.key)
        if isinstance(change, MlpChange):
            weight = np.zeros((len(change.bias), unit.d_hidden))
            weight[:, change.kept_idx] = change.weight
            padded[unit.key] = MlpChange(np.arange(unit.d_hidden), weight, change.bias)
    for unit in blocks.attentions:
        change = changes.get(unit.key)
        if isinstance(change, AttentionChange):
            padded[unit.key] = _pad_attention(change)
    return padded


def _pad_attention(change: AttentionChange) -> AttentionChange:
    weight = change.out_weight
    if weight is not None and change.v_map is not None:
        n_heads, width, d_head = change.v_map.shape
        heads = weight.reshape(len(weight), n_heads, width)  # [d_out, H, s]
        weight = np.pad(heads, ((0, 0), (0, 0), (0, d_head - width))).reshape(len(weight), -1)
    maps = [_pad_map(m) for m in (change.q_map, change.k_map, change.v_map)]
    return AttentionChange(*maps, out_weight=weight, out_bias=change.out_bias)


def _pad_map(head_map: np.ndarray | None) -> np.ndarray | None:
    if head_map is None:
        return None
    return np.pad(head_map, ((0, 0), (0, head_map.shape[2] - head_map.shape[1]), (0, 0)))
