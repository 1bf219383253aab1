"""Products that were found, and the way to them: weight layout is normalised here.

Whatever the file stores, a `Linear` is output = input @ weight.T + bias with weight [d_out, d_in].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Parting, Slot, WidthSpelling


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
        value = graph.stored(self.weight.name)
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
        value = graph.stored(self.bias.name)
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
        value = graph.stored(self.late_bias.name)
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
