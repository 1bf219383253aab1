"""What changes in an attention, as a value: maps of its heads, and another output projection.

A map per head, q' = M q, gives W_Q' = M W_Q and b_Q' = M b_Q (parts.py, projections.py). Queries and keys, and values,
are units of one such site and share this change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Attention, SiteKey
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.units.base import Change
from corp_onnx.units.edits import set_bias, set_weight
from corp_onnx.units.facts import projection_cost
from corp_onnx.units.parts import Part, changed_products, joint_bias, joint_weight
from corp_onnx.units.products import Expected
from corp_onnx.units.projections import change_projections, pin_scale


@dataclass(frozen=True, slots=True, eq=False)
class AttentionChange(Change):
    """Linear maps [n_heads, width, d_head] of the heads of an attention; None leaves that operand as it is.

    With `v_map` goes the weight [d_out, n_heads * width], columns head by head, and bias of the output projection.
    `apart` takes the queries out of a product that they share, so that they can be computed for fewer tokens.
    """

    site: Attention
    q_map: Float[np.ndarray, "h r d"] | None = None
    k_map: Float[np.ndarray, "h r d"] | None = None
    v_map: Float[np.ndarray, "h s d"] | None = None
    out_weight: Float[np.ndarray, "d_out hs"] | None = None
    out_bias: Float[np.ndarray, " d_out"] | None = None
    apart: bool = False

    @property
    def key(self) -> SiteKey:
        """Of the site."""
        return self.site.key

    @classmethod
    def none(cls, site: Attention, graph: Graph) -> AttentionChange:
        """The change that keeps everything."""
        return cls(site)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every operand, in the order in which a shared projection holds them after the change."""
        maps = {"q": self.q_map, "k": self.k_map, "v": self.v_map}
        return tuple(Part(name, operand, maps.get(name)) for name, operand in self.site.operands.items())

    def edit(self, surgeon: Surgeon) -> None:
        """Fold the maps into the projections and re-plumb what lies behind them."""
        site, out = self.site, self.site.out
        if self.q_map is not None:
            pin_scale(surgeon, site)
        change_projections(surgeon, site, self.parts, self.apart)
        if self.out_weight is not None and out is not None:
            set_weight(surgeon, out.linear, self.out_weight)
            if self.out_bias is not None:
                set_bias(surgeon, out.linear, self.out_bias)
        if self.v_map is not None and out is not None:
            for spelling in out.spellings:
                surgeon.set_width(spelling, self.v_map.shape[1])

    def join(self, other: AttentionChange) -> AttentionChange:
        """Every field from the later one, where it says something."""
        fields = ("q_map", "k_map", "v_map", "out_weight", "out_bias")
        said = {name: getattr(other, name) for name in fields if getattr(other, name) is not None}
        return replace(self, **said, apart=self.apart or other.apart)

    def whole(self, graph: Graph) -> AttentionChange:
        """Identity maps in place of the maps."""
        eye = [None if m is None else np.broadcast_to(np.eye(m.shape[2]), (m.shape[0], m.shape[2], m.shape[2]))
               for m in (self.q_map, self.k_map, self.v_map)]  # fmt: skip
        out = self.site.out if self.v_map is not None else None
        weight = None if out is None else out.linear.read_weight(graph)[:, out.channel_idx.reshape(-1)]
        bias = None if out is None else out.linear.read_bias(graph)
        return AttentionChange(self.site, *eye, out_weight=weight, out_bias=bias, apart=self.apart)

    def padded(self) -> AttentionChange:
        """Zero rows in the maps, zero columns in the output projection."""
        weight = self.out_weight
        if weight is not None and self.v_map is not None:
            n_heads, width, d_head = self.v_map.shape
            heads = weight.reshape(len(weight), n_heads, width)  # [d_out, H, s]
            weight = np.pad(heads, ((0, 0), (0, 0), (0, d_head - width))).reshape(len(weight), -1)
        maps = [_pad_map(m) for m in (self.q_map, self.k_map, self.v_map)]
        return AttentionChange(self.site, *maps, out_weight=weight, out_bias=self.out_bias)

    def products(self, graph: Graph) -> Iterator[Expected]:
        """The projections that change, and the output projection.

        Queries that got a product of their own can not be seen by their old name.
        """
        for product in changed_products(self.parts, apart=self.apart):
            parts, linear = product.parts, product.parts[0].operand.linear
            bias = joint_bias(graph, parts) if linear.bias is not None and linear.output_has_bias else None
            yield Expected(self.site.key, linear, joint_weight(graph, parts), bias)
        if self.out_weight is not None and self.site.out is not None:
            bias = self.site.out.linear.read_bias(graph) if self.out_bias is None else self.out_bias
            yield Expected(self.site.key, self.site.out.linear, self.out_weight, bias)

    def last_product(self, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        """The output projection."""
        assert self.site.out is not None
        weight, bias = self.site.out.linear.read_dense(graph)
        return weight if self.out_weight is None else self.out_weight, bias if self.out_bias is None else self.out_bias

    def with_product(self, weight: np.ndarray, bias: np.ndarray) -> AttentionChange:
        """Another output projection over the same heads."""
        return replace(self, out_weight=weight, out_bias=bias)


def _pad_map(head_map: np.ndarray | None) -> np.ndarray | None:
    if head_map is None:
        return None
    return np.pad(head_map, ((0, 0), (0, head_map.shape[2] - head_map.shape[1]), (0, 0)))


def count_tokens(site: Attention) -> int:
    """Tokens of an image or window, as far as an operand was recognised."""
    for letter in ("q", "v"):
        if letter in site.operands:
            return site.operands[letter].n_tokens
    return 0


def core_macs(graph: Graph, cost: Cost, site: Attention) -> tuple[int, int]:
    """MACs of q k' and of P v."""
    letters = [site.operands[letter] for letter in "qkv" if letter in site.operands]
    if site.core == "softmax":
        values = site.operands.get("v")
        readers = [n for n, i in graph.users(values.tensor) if n.op == "MatMul" and i == 1] if values else []
        return cost.by_node.get(site.node.output, 0), sum(cost.by_node.get(n.output, 0) for n in readers)
    inside = [operand for operand in letters if operand.linear.output is None]
    total = cost.by_node.get(site.node.output, 0) - sum(projection_cost(graph, cost, o)[1] for o in inside)
    share = site.d_qk / (site.d_qk + site.d_v)
    return round(total * share), total - round(total * share)
