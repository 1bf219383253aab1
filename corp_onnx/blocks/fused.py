"""com.microsoft.Attention: one operator that holds the projections of q, k and v besides the attention."""

from __future__ import annotations

import numpy as np

from corp_onnx.blocks.found import UNPLACED, Attention, QkPair, Skip, VoPair
from corp_onnx.blocks.linear import Mismatch, match_linear, residual_after
from corp_onnx.blocks.products import AttentionOutput, Linear, Operand
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot


def match_packed_attention(graph: Graph, node: Node) -> Attention | Mismatch:
    """The unit of a com.microsoft.Attention node: input x [B, N, d_model], weight [d_model, q + k + v], bias."""
    x = node.inputs[0]
    dims = graph.dims(node.inputs[1])
    if not graph.is_constant(node.inputs[1]) or len(dims) != 2:
        return Mismatch("expected a stored projection", node, 1)
    d_in, total = dims
    n_heads = int(node.attrs["num_heads"])
    widths = [int(w) for w in node.attrs.get("qkv_hidden_sizes", [total // 3] * 3)]
    if any(len(node.inputs) > i and node.inputs[i] for i in (4, 6)):
        return Mismatch("expected no cached keys (this is an encoder tool)", node, 1)
    if any(node.outputs[1:]):
        return Mismatch("expected no keys and values given out", node, 1)
    if node.attrs.get("do_rotary"):
        return Mismatch("q and k are rotated inside the operator", node, 2)
    bias = Slot(node, 2) if len(node.inputs) > 2 and node.inputs[2] else None
    linear = Linear(x, None, Slot(node, 1), False, bias, 0, False, d_in, total)
    n_tokens = graph.dims(x)[1]
    starts = np.cumsum([0, *widths])[:3]
    q, k, v = (
        Operand(
            linear, (start + np.arange(width)).reshape(n_heads, -1), False, n_tokens, "", "", None, None, (), ()
        )
        for start, width in zip(starts, widths, strict=True)
    )  # fmt: skip
    out = _output(graph, node, n_heads, widths[2])
    return Attention(
        key=UNPLACED,
        position=node.position,
        core="com.microsoft.Attention",
        node=node,
        n_heads=n_heads,
        d_qk=widths[0] // n_heads,
        d_v=widths[2] // n_heads,
        operands={"q": q, "k": k, "v": v},
        out=None if isinstance(out, Mismatch) else out,
        scale=float(node.attrs.get("scale", 0) or (widths[0] // n_heads) ** -0.5),
        scale_slots=(),
        qk=QkPair(q, k),
        vo=Skip("vo", node.position, str(out.node), out.reason, out.depth)
        if isinstance(out, Mismatch)
        else VoPair(v, out),
        spelling="packed qkv, com.microsoft.Attention",
    )


def _output(graph: Graph, node: Node, n_heads: int, width: int) -> AttentionOutput | Mismatch:
    users = graph.users(node.output) if node.output not in graph.outputs else ()
    linear = match_linear(graph, users[0][0]) if len(users) == 1 else Mismatch("expected one reader", node, 1)
    if isinstance(linear, Mismatch):
        return Mismatch("expected the output projection right after the operator", linear.node, 1)
    residual = residual_after(graph, linear.output or "", linear.d_out)
    return AttentionOutput(linear, np.arange(width).reshape(n_heads, -1), (), residual)
