"""The operands of an attention with the maps of their heads, as arithmetic: what every projection holds after a change.

A projection that several operands share holds them one behind the other, each head by head; what it holds besides keeps
its width. Nothing here touches a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.blocks import Attention, Operand, QkPair
from corp_onnx.graph import Graph, Node


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One operand of an attention with the map of every head, and the heads that stay; None keeps them as they are.

    `name` is for new tensors.
    """

    name: str
    operand: Operand
    head_map: Float[np.ndarray, "h r d"] | None
    heads_idx: Int[np.ndarray, " kept"] | None = None

    @property
    def changes(self) -> bool:
        """Whether anything of it changes."""
        return self.head_map is not None or self.heads_idx is not None

    @property
    def width(self) -> int:
        """Of one head after the change."""
        return self.operand.d_head if self.head_map is None else self.head_map.shape[1]

    @property
    def n_heads(self) -> int:
        """After the change."""
        return self.operand.n_heads if self.heads_idx is None else len(self.heads_idx)

    def map_heads(self, heads: Float[np.ndarray, "h d n"]) -> Float[np.ndarray, "hr n"]:
        """Rows by head and dimension after the change, in float64, head after head."""
        wide = heads.astype(np.float64)
        mapped = wide if self.head_map is None else self.head_map @ wide
        kept = mapped if self.heads_idx is None else mapped[self.heads_idx]
        return kept.reshape(-1, heads.shape[-1])

    def map_vector(self, heads: Float[np.ndarray, "h d"]) -> Float[np.ndarray, " hr"]:
        """A bias by head after the change, in float64."""
        wide = heads.astype(np.float64)
        mapped = wide if self.head_map is None else np.einsum("hrd,hd->hr", self.head_map, wide)
        return (mapped if self.heads_idx is None else mapped[self.heads_idx]).reshape(-1)


@dataclass(frozen=True, slots=True, eq=False)
class ChangedProduct:
    """A projection that changes: the parts that stay in it, and the queries where they get a product of their own."""

    parts: tuple[Part, ...]
    query: Part | None = None


def changed_products(parts: Sequence[Part], *, apart: bool = False) -> list[ChangedProduct]:
    """The projections of an attention that change.

    Args:
        apart: take the queries out of the product that they share, and so change that in any case.
    """
    by_product: dict[Node, list[Part]] = {}
    for part in parts:
        by_product.setdefault(part.operand.linear.node, []).append(part)
    changed: list[ChangedProduct] = []
    for shared in by_product.values():
        if apart and shared[0].name == "q" and len(shared) > 1:
            changed.append(ChangedProduct(tuple(shared[1:]), shared[0]))
        elif any(part.changes for part in shared):
            changed.append(ChangedProduct(tuple(shared)))
    return changed


def can_stand_apart(site: Attention) -> bool:
    """Whether the queries share a product with other operands, and could have one of their own."""
    if not isinstance(site.qk, QkPair) or site.core not in ("softmax", "Attention"):
        return False
    linear = site.qk.q.linear
    sharing = sum(operand.linear.node is linear.node for operand in site.operands.values())
    shared = sharing > 1 and linear.node.op in ("MatMul", "Gemm")
    return shared and not linear.reshapes and (linear.bias is None or linear.output_has_bias)


def joint_weight(graph: Graph, parts: Sequence[Part]) -> Float[np.ndarray, "d_out d_in"]:
    """The weight of one projection: its parts one behind the other, each head by head, maps folded in, in float64."""
    rows: list[np.ndarray] = []
    for part in parts:
        rows.append(part.map_heads(part.operand.linear.read_weight(graph)[part.operand.channel_idx]))  # [H, d, d_in]
    return np.concatenate(rows)


def joint_bias(graph: Graph, parts: Sequence[Part]) -> Float[np.ndarray, " d_out"]:
    """The bias that goes with `joint_weight`; of a projection that has one."""
    rows: list[np.ndarray] = []
    for part in parts:
        bias = part.operand.linear.read_bias(graph)
        assert bias is not None, part.name
        rows.append(part.map_vector(bias[part.operand.channel_idx]))
    return np.concatenate(rows)
