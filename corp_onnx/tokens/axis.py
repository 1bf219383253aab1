"""Where the tokens of an operator's output stand in its inputs: one rule for each kind of operator.

Enters a node and the `TokenAxis` of its output; leaves, for every input that holds the same tokens, its slot and axis.
None where the operator mixes tokens along that axis, or is not known: nothing may be left out in front of it. A rule
looks at shapes of the probe run, never at names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import (
    ELEMENTWISE,
    FIRST_IS_DATA,
    FLOAT_GEMMS,
    FLOAT_MATMULS,
    NORMS,
    REDUCTIONS,
    RESHAPES,
    SKIP_NORMS,
    SOFTMAX_OVER_ONE_AXIS,
    SOFTMAXES,
)
from corp_onnx.graph.slots import Slot
from corp_onnx.tokens.counted import BlockedError, TokenAxis, reduced_axes, relabel

Sources = tuple[tuple[Slot, TokenAxis], ...]


def trace_token_axis(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """The inputs of a node in which the tokens of its output stand, or None."""
    rule = _find_rule(node)
    if rule is None or any(i and graph.shape(i) is None for i in node.inputs) or graph.captured(node):
        return None
    return rule(graph, node, tokens)


def _find_rule(node: Node) -> Callable[[Graph, Node, TokenAxis], Sources | None] | None:
    if node.op in ELEMENTWISE:
        return _elementwise
    if node.op in NORMS or node.op in SKIP_NORMS:
        return _norm
    if node.op in REDUCTIONS:
        return _reduction
    if node.op in RESHAPES:
        return _reshape
    if node.op in SOFTMAXES:
        return _softmax
    if node.op in FLOAT_MATMULS:
        return _matmul
    if node.op in FLOAT_GEMMS:
        return _gemm
    return {
        "Transpose": _transpose, "Slice": _slice, "Split": _split, "Concat": _concat, "Attention": _attention,
        "MultiHeadAttention": _multi_head,
    }.get(node.op)  # fmt: skip


def _aligned(graph: Graph, node: Node, idx: int, tokens: TokenAxis) -> Sources:
    """An input that meets the output by broadcasting: empty where it is the same for all tokens."""
    dims, out = graph.dims(node.inputs[idx]), graph.dims(node.output)
    axis = tokens.axis - (len(out) - len(dims))
    if axis < 0 or dims[axis] != out[tokens.axis]:
        return ()
    return _at(node, idx, tokens, axis)


def _at(node: Node, idx: int, tokens: TokenAxis, axis: int) -> Sources:
    return ((Slot(node, idx), replace(tokens, axis=axis)),)


def _elementwise(graph: Graph, node: Node, tokens: TokenAxis) -> Sources:
    n_data = 1 if node.op in FIRST_IS_DATA else len(node.inputs)
    return tuple(s for idx in range(n_data) if node.inputs[idx] for s in _aligned(graph, node, idx, tokens))


def _norm(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    if tokens.axis >= node.attrs.get("axis", -1) % len(graph.dims(node.output)):
        return None
    n_data = 2 if node.op in SKIP_NORMS else 1
    return tuple(s for idx in range(n_data) for s in _aligned(graph, node, idx, tokens))


def _softmax(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    flattens = graph.model.opset < SOFTMAX_OVER_ONE_AXIS
    axis = node.attrs.get("axis", 1 if flattens else -1) % len(graph.dims(node.output))
    mixes = tokens.axis >= axis if flattens else tokens.axis == axis
    return None if mixes else _aligned(graph, node, 0, tokens)


def _reduction(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    gone = reduced_axes(graph, node)
    if gone is None:
        return None
    rank = len(graph.dims(node.inputs[0]))
    axis = [a for a in range(rank) if node.attrs.get("keepdims", 1) or a not in gone][tokens.axis]
    return None if axis in gone else _at(node, 0, tokens, axis)


def _reshape(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """The order of the numbers stays: the input is the output in another shape."""
    try:
        return ((Slot(node, 0), relabel(tokens, graph.dims(node.output), graph.dims(node.inputs[0]))),)
    except BlockedError:
        return None


def _transpose(graph: Graph, node: Node, tokens: TokenAxis) -> Sources:
    rank = len(graph.dims(node.output))
    return _at(node, 0, tokens, list(node.attrs.get("perm", range(rank)[::-1]))[tokens.axis])


def _slice(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """Only where the tokens all come through."""
    dims, out = graph.dims(node.inputs[0]), graph.dims(node.output)
    axes = graph.value(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
    if axes is None or tokens.axis in {int(a) % len(dims) for a in axes.reshape(-1)}:
        return None
    return _at(node, 0, tokens, tokens.axis) if dims[tokens.axis] == out[tokens.axis] else None


def _split(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """Only along another axis; whether all parts are asked for the same tokens is the search's to see."""
    apart = node.attrs.get("axis", 0) % len(graph.dims(node.inputs[0]))
    return None if apart == tokens.axis else _at(node, 0, tokens, tokens.axis)


def _concat(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    if node.attrs["axis"] % len(graph.dims(node.output)) == tokens.axis:
        return None
    return tuple(s for idx in range(len(node.inputs)) for s in _at(node, idx, tokens, tokens.axis))


def _matmul(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """Rows of the output are rows of the first input."""
    out, first, second = (graph.dims(name) for name in (node.output, *node.inputs[:2]))
    turned = node.attrs.get("transA") or node.attrs.get("transBatchA")
    if min(len(first), len(second)) < 2 or turned or tokens.axis != len(out) - 2:
        return None
    return _at(node, 0, tokens, len(first) - 2)


def _gemm(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    if tokens.axis != 0 or node.attrs.get("transA"):
        return None
    added = _aligned(graph, node, 2, tokens) if len(node.inputs) > 2 and node.inputs[2] else ()
    return (*_at(node, 0, tokens, 0), *added)


def _attention(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """Opset 23: the rows of the output are the queries, [B, H, N, d] or [B, N, H*d]."""
    rank = len(graph.dims(node.inputs[0]))
    cached = any(name for name in (*node.inputs[4:], *node.outputs[1:]))
    if node.domain or cached or node.attrs.get("is_causal") or tokens.axis != rank - 2:
        return None
    return _at(node, 0, tokens, tokens.axis) + _mask_rows(graph, node, 3, tokens)


def _multi_head(graph: Graph, node: Node, tokens: TokenAxis) -> Sources | None:
    """com.microsoft: queries [B, N, H*d] apart from keys and values; its bias is [B, H, N, M]."""
    own = len(graph.dims(node.inputs[0])) == 3 and len(node.inputs) > 1 and node.inputs[1]
    cached = any(name for name in (*node.inputs[6:], *node.outputs[1:]))
    if not own or cached or node.attrs.get("unidirectional") or tokens.axis != 1:
        return None
    return _at(node, 0, tokens, 1) + _mask_rows(graph, node, 5, tokens)


def _mask_rows(graph: Graph, node: Node, idx: int, tokens: TokenAxis) -> Sources:
    if len(node.inputs) <= idx or not node.inputs[idx]:
        return ()
    dims = graph.dims(node.inputs[idx])
    return _at(node, idx, tokens, len(dims) - 2) if dims[-2] == tokens.n_tokens else ()
