"""What was found in a graph: the values that `find_blocks` returns and every later stage reads.

A block has two sites, an attention and an MLP; what can be pruned at a site are its units (units/). Weight layout is
normalised here: whatever the file stores, a `Linear` is output = input @ weight.T + bias with weight [d_out, d_in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Parting, Slot, WidthSpelling


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
class Linear:
    """A weight product with its bias, output = input @ weight.T + bias.

    `weight` is read as [d_out, d_in] when `transposed`, else [d_in, d_out]. `bias` is None when there is none; it may
    sit in a later operator (MultiHeadAttention), then it is the part of that vector from `bias_offset` on and `output`
    does not hold it yet (`output_has_bias`). `output` is None for a projection inside a fused attention operator.
    `reshapes` stand between the product and its bias (tokens were flattened) and may spell d_out in their targets.
    """

    input: str
    output: str | None
    weight: Slot
    transposed: bool
    bias: Slot | None
    bias_offset: int
    output_has_bias: bool
    d_in: int
    d_out: int
    reshapes: tuple[Node, ...] = ()

    @property
    def node(self) -> Node:
        """The product."""
        return self.weight.node

    def read_weight(self, graph: Graph) -> Float[np.ndarray, "d_out d_in"]:
        """The weight in the file's own precision, [d_out, d_in]."""
        value = graph.constant(self.weight.name)
        assert value is not None, self.weight.name
        return value if self.transposed else value.T

    def read_dense(self, graph: Graph) -> tuple[Float[np.ndarray, "d_out d_in"], Float[np.ndarray, " d_out"]]:
        """Weight and bias in float64; zeros where it has no bias."""
        bias = self.read_bias(graph)
        weight = self.read_weight(graph).astype(np.float64)
        return weight, np.zeros(self.d_out) if bias is None else bias.astype(np.float64)

    def read_bias(self, graph: Graph) -> Float[np.ndarray, " d_out"] | None:
        """The bias in the file's own precision, or None."""
        if self.bias is None:
            return None
        value = graph.constant(self.bias.name)
        assert value is not None, self.bias.name
        return value.reshape(-1)[self.bias_offset : self.bias_offset + self.d_out]


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """The addition stream = skip + scale * branch, where the branch is the output of a unit's last product.

    `scale` reads LayerScale's vector [d_model], None where there is none. `skip` is None where it is no such addition:
    a norm or a gate stands in between, or it is inside SkipLayerNormalization, whose `bias` may stand in for the
    product's own and whose `stream` is already normalised.
    """

    stream: str
    skip: str | None
    scale: Slot | None
    bias: Slot | None


@dataclass(frozen=True, slots=True, eq=False)
class UpProjection:
    """The product in front of an MLP's nonlinearity; `channel_idx` [k, d_hidden] are its output columns.

    One row, or two (gate and value) where a gated MLP packs both into one product.
    """

    linear: Linear
    channel_idx: Int[np.ndarray, "k d_hidden"]


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


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """Q, K or V on its way from a projection to the attention product.

    Args:
        linear: the projection (shared by all three where they are fused).
        channel_idx: the columns of the projection's output, by head and dimension.
        token_major: whether the leading axes of the projection's output are (tokens, images), not (images, tokens).
        n_tokens: tokens of an image (or window) in the probe run.
        tensor: what the attention product reads.
        boundary: the first tensor that holds this operand alone; equals the projection's output when not fused.
        boundary_perm: boundary = transpose(reshape(columns, [*leading, H, d]), perm); None when it is the plain
            [*leading, H*d].
        leading: what parts the projection's leading axis on the way; None where the boundary has the same ones.
        late_bias: a stored vector [n_heads * d_head] that is added to this operand alone, behind the boundary.
        spellings: the Reshapes between boundary and tensor whose target spells the width.
        path: every node between the projection's output and `tensor`.
    """

    linear: Linear
    channel_idx: Int[np.ndarray, "n_heads d_head"]
    token_major: bool
    n_tokens: int
    tensor: str
    boundary: str
    boundary_perm: tuple[int, ...] | None
    leading: Parting | None
    spellings: tuple[WidthSpelling, ...]
    path: tuple[Node, ...]
    late_bias: Slot | None = None

    @property
    def n_heads(self) -> int:
        """Heads."""
        return self.channel_idx.shape[0]

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.channel_idx.shape[1]

    @property
    def projection(self) -> str:
        """The tensor of the projection's output; a name of our own where a fused operator keeps it inside."""
        return self.linear.output or f"corp_onnx.projection/{self.linear.node.output}"

    def read_late_bias(self, graph: Graph) -> Float[np.ndarray, "n_heads d_head"]:
        """The vector that is added behind the boundary, by head; zeros where there is none."""
        if self.late_bias is None:
            return np.zeros(self.channel_idx.shape, dtype=np.float32)
        value = graph.constant(self.late_bias.name)
        assert value is not None, self.late_bias.name
        return value.reshape(self.channel_idx.shape)

    @property
    def is_fused(self) -> bool:
        """Whether the projection's output holds more than this operand, or holds it in another order."""
        return self.boundary != self.linear.output


@dataclass(frozen=True, slots=True, eq=False)
class AttentionOutput:
    """The way from P @ V to the output projection: what VO pruning has to touch.

    `channel_idx` are the input columns of `linear` (W_O) by head and dimension; `residual` is the addition after it.
    """

    linear: Linear
    channel_idx: Int[np.ndarray, "n_heads d_head"]
    spellings: tuple[WidthSpelling, ...]
    residual: Residual | None


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
