"""What changes in an attention, as a value: maps of its heads, and another output projection.

A map per head, q' = M q, gives W_Q' = M W_Q and b_Q' = M b_Q (parts.py, projections.py). Queries and keys, and values,
are units of one such site and share this change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.blocks import Attention, SiteKey
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.units.base import Change
from corp_onnx.units.edits import remove_branch, set_bias, set_weight
from corp_onnx.units.expected import Expected
from corp_onnx.units.facts import projection_cost
from corp_onnx.units.parts import Part, changed_products, joint_bias, joint_weight
from corp_onnx.units.projections import HeadCounts, change_projections, pin_scale, respell
from corp_onnx.units.scale import Scalars, bypass_scalars, find_scalars


@dataclass(frozen=True, slots=True, eq=False)
class AttentionChange(Change):
    """Linear maps of the heads of an attention; None leaves that operand as it is.

    Attributes:
        q_map: of every head, those that go as well; the same for `k_map` and `v_map`.
        out_weight: of the output projection, columns head by head of those that stay; `out_bias` is its bias.
        apart: take the queries out of a product that they share, so that they can be computed for fewer tokens.
        heads_idx: the heads that stay, ascending; None keeps all. Where none stays, the attention becomes the addition
            of `out_bias`.
        head_counts: where the number of heads is spelled (units/heads.py), if heads go.
        scalars: the operators of the scale (units/scale.py), where `q_map` holds it and they go.
    """

    site: Attention
    q_map: Float[np.ndarray, "h r d"] | None = None
    k_map: Float[np.ndarray, "h r d"] | None = None
    v_map: Float[np.ndarray, "h s d"] | None = None
    out_weight: Float[np.ndarray, "d_out hs"] | None = None
    out_bias: Float[np.ndarray, " d_out"] | None = None
    apart: bool = False
    heads_idx: Int[np.ndarray, " kept"] | None = None
    head_counts: HeadCounts = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)

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
        return tuple(
            Part(name, operand, maps.get(name), self.heads_idx if name in maps else None)
            for name, operand in self.site.operands.items()
        )

    @property
    def removes(self) -> bool:
        """Whether no head stays."""
        return self.heads_idx is not None and len(self.heads_idx) == 0

    def edit(self, surgeon: Surgeon) -> None:
        """Fold the maps into the projections and re-plumb what lies behind them."""
        site, out = self.site, self.site.out
        if self.removes and out is not None and self.out_bias is not None:
            remove_branch(surgeon, out.linear, self.out_bias)
            return
        if self.q_map is not None and not self.scalars:
            pin_scale(surgeon, site)
        change_projections(surgeon, site, self.parts, apart=self.apart, head_counts=self.head_counts)
        bypass_scalars(surgeon, self.scalars)
        if self.out_weight is not None and out is not None:
            set_weight(surgeon, out.linear, self.out_weight)
            if self.out_bias is not None:
                set_bias(surgeon, out.linear, self.out_bias)
        values = next((part for part in self.parts if part.name == "v" and part.changes), None)
        if values is not None and out is not None:
            on_ways = {node for operand in site.operands.values() for node in operand.path}
            behind = {node: axes for node, axes in self.head_counts.items() if node not in on_ways}
            respell(surgeon, values, out.spellings, behind)

    def join(self, other: AttentionChange) -> AttentionChange:
        """Every field from the later one, where it says something."""
        fields = ("q_map", "k_map", "v_map", "out_weight", "out_bias", "heads_idx")
        said = {name: getattr(other, name) for name in fields if getattr(other, name) is not None}
        counts = {**self.head_counts, **other.head_counts}
        return replace(self, **said, apart=self.apart or other.apart, head_counts=counts)

    def whole(self, graph: Graph) -> AttentionChange:
        """Identity maps in place of the maps."""
        eye = [None if m is None else _identity(m.shape[0], m.shape[2]) for m in (self.q_map, self.k_map, self.v_map)]
        if self.scalars and eye[0] is not None:
            eye[0] = self.site.scale * eye[0]
        out = self.site.out if self.v_map is not None or self.heads_idx is not None else None
        weight = None if out is None else out.linear.read_weight(graph)[:, out.channel_idx.reshape(-1)]
        bias = None if out is None else out.linear.read_bias(graph)
        every = None if self.heads_idx is None else np.arange(self.site.n_heads)
        return replace(
            self, q_map=eye[0], k_map=eye[1], v_map=eye[2], out_weight=weight, out_bias=bias, heads_idx=every
        )

    def padded(self) -> AttentionChange:
        """Zero rows in the maps, zero columns in the output projection."""
        maps = [_pad_map(m) for m in (self.q_map, self.k_map, self.v_map)]
        return AttentionChange(
            self.site, *maps, out_weight=self._padded_weight(), out_bias=self.out_bias, scalars=self.scalars
        )

    def fold_scale(self, graph: Graph) -> AttentionChange:
        """The same with the scale of the logits in the weights of the queries, where that is possible."""
        scalars = {} if self.removes else find_scalars(graph, self.site)
        if not scalars:
            return self
        q_map = _identity(self.site.n_heads, self.site.d_qk) if self.q_map is None else self.q_map
        return replace(self, q_map=self.site.scale * q_map, scalars=scalars)

    def _padded_weight(self) -> np.ndarray | None:
        if self.out_weight is None or (self.v_map is None and self.heads_idx is None):
            return self.out_weight
        n_heads = self.site.n_heads
        d_head = self.site.d_v if self.v_map is None else max(self.site.d_v, self.v_map.shape[1])
        kept = np.arange(n_heads) if self.heads_idx is None else self.heads_idx
        weight = np.zeros((len(self.out_weight), n_heads, d_head))
        if len(kept):
            heads = self.out_weight.reshape(len(self.out_weight), len(kept), -1)  # [d_out, H', s]
            weight[:, kept, : heads.shape[2]] = heads
        return weight.reshape(len(weight), -1)

    def products(self, graph: Graph) -> Iterator[Expected]:
        """The projections that change, and the output projection.

        Queries that got a product of their own can not be seen by their old name.
        """
        if self.removes:
            return
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


def first_dimensions(n_heads: int, d_head: int, width: int) -> Float[np.ndarray, "h width d"]:
    """The map of every head that keeps its first dimensions."""
    return _identity(n_heads, d_head)[:, :width]


def _identity(n_heads: int, d_head: int) -> np.ndarray:
    return np.broadcast_to(np.eye(d_head), (n_heads, d_head, d_head))


def _pad_map(head_map: np.ndarray | None) -> np.ndarray | None:
    if head_map is None:
        return None
    missing = max(head_map.shape[2] - head_map.shape[1], 0)  # none where a head became wider than it was
    return np.pad(head_map, ((0, 0), (0, missing), (0, 0)))


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
