"""What was found in a graph: the values that `find_blocks` returns and every later stage reads.

A block has two sites, an attention and an MLP; what can be pruned at a site are its units (units/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from corp_onnx.blocks.products import AttentionOutput, Linear, Operand, Residual, UpProjection
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot


@dataclass(frozen=True, slots=True, order=True)
class SiteKey:
    """Identity of an attention or MLP: its block, and which of the two. As text: `blocks.0.attn`."""

    block: int
    part: Literal["attn", "mlp"]

    def __str__(self) -> str:
        return f"blocks.{self.block}.{self.part}"


UNPLACED = SiteKey(-1, "mlp")
"""Of a site that was matched and has no place among the blocks yet."""


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    """An MLP: products `ups`, per-channel operators, product `down`.

    `hidden` is the tensor that `down` reads, last axis d_hidden. `per_channel` are stored vectors on the way (biases
    among them), `reshapes` and `splits` the nodes whose constants spell d_hidden.
    """

    key: SiteKey
    position: int
    hidden: str
    ups: tuple[UpProjection, ...]
    per_channel: tuple[Slot, ...]
    reshapes: tuple[Node, ...]
    splits: tuple[Node, ...]
    down: Linear
    residual: Residual
    d_hidden: int
    activation: str
    spelling: str

    @property
    def last(self) -> Linear:
        """The product that writes into the residual stream."""
        return self.down

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its products."""
        return (*(up.linear for up in self.ups), self.down)


Core = Literal["softmax", "Attention", "MultiHeadAttention", "com.microsoft.Attention"]


@dataclass(frozen=True, slots=True, eq=False)
class Skip:
    """Something that looked like a unit and is left alone: why, and at which node. Deeper is nearer to a match."""

    kind: str
    position: int
    node: str
    reason: str
    depth: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class QkPair:
    """Queries and keys that can change width together."""

    q: Operand
    k: Operand


@dataclass(frozen=True, slots=True, eq=False)
class VoPair:
    """Values and the output projection, whose width can change."""

    v: Operand
    out: AttentionOutput


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Attention: softmax(scale * q k' + ...) v, with the projections of q, k and v.

    Attributes:
        node: multiplies q and k' (or is the whole fused operator).
        operands: those whose projection was found, by letter; behind q, k and v what a fused projection holds besides
            and what stays as it is. In the order of a projection that they share.
        out: the output projection, where it was found.
        qk: what can change width, or why it can not.
        vo: the same of values.
        scale: the number that multiplies q k' in the graph as it stands.
        scale_slots: the factors of it that are computed at run time.
    """

    key: SiteKey
    position: int
    core: Core
    node: Node
    n_heads: int
    d_qk: int
    d_v: int
    operands: Mapping[str, Operand]
    out: AttentionOutput | None
    qk: QkPair | Skip
    vo: VoPair | Skip
    scale: float
    scale_slots: tuple[Slot, ...]
    spelling: str

    @property
    def last(self) -> Linear | None:
        """The product that writes into the residual stream."""
        return None if self.out is None else self.out.linear

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its products that were found; one that operands share is there for each."""
        out = () if self.out is None else (self.out.linear,)
        return (*(operand.linear for operand in self.operands.values()), *out)

    @property
    def residual(self) -> Residual | None:
        """The addition behind it."""
        return None if self.out is None else self.out.residual

    @property
    def skips(self) -> tuple[Skip, ...]:
        """What of it can not change width."""
        return tuple(pair for pair in (self.qk, self.vo) if isinstance(pair, Skip))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One transformer layer. `stream` is the residual stream after it."""

    idx: int
    attention: Attention | None
    mlp: Mlp | None
    stream: str | None

    @property
    def sites(self) -> tuple[Attention | Mlp, ...]:
        """What it has, in the order data meets them."""
        return tuple(site for site in (self.attention, self.mlp) if site is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Every block of a graph in order, and what was not recognised."""

    graph: Graph
    blocks: tuple[Block, ...]
    skipped: tuple[Skip, ...]

    @property
    def sites(self) -> tuple[Mlp | Attention, ...]:
        """Every MLP, then every attention, in the order of their blocks: that in which a graph is changed."""
        return (*self.mlps, *self.attentions)

    @property
    def mlps(self) -> tuple[Mlp, ...]:
        """Every MLP that can be pruned."""
        return tuple(b.mlp for b in self.blocks if b.mlp is not None)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention that was recognised, prunable or not."""
        return tuple(b.attention for b in self.blocks if b.attention is not None)
