"""The heart of an attention: which tensors meet in softmax(scale * q k' + ...) v, and how the product sees them.

A core is a Softmax between two products of computed tensors, or one fused operator (`Attention` of opset 23,
com.microsoft's MultiHeadAttention). Masks, biases, casts, guards and scales around the Softmax are walked through.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from corp_onnx.blocks.found import Core
from corp_onnx.blocks.layout import passes, scalar_operand
from corp_onnx.blocks.linear import Mismatch, is_product
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import ATTENTIONS, FLOAT_MATMULS, SOFTMAX_OVER_ONE_AXIS
from corp_onnx.graph.slots import Slot

MAX_PATH = 24
"""Operators between a projection and the product; the longest seen has eleven."""

OPERATORS = frozenset({"Attention", "MultiHeadAttention"})
"""Fused attention that is taken apart; what else of `ATTENTIONS` there is is named in a report and left alone."""

ADDED = {"Add": "mask or bias", "Sub": "mask", "Where": "mask", "Max": "guard", "Min": "guard"}


@dataclass(frozen=True, slots=True, eq=False)
class CoreMatch:
    """The attention product: the tensors it multiplies and how it sees them.

    `views` say how the index tensors of q, k and v become [lead..., tokens, d_head] (see `view_operand`); `output` is
    P @ V; `slots` are factors of the scale that are computed at run time.
    """

    core: Core
    node: Node
    q: str
    k: str
    v: str
    views: tuple[str, str, str]
    n_heads: int | None
    output: str
    scale: float
    slots: tuple[Slot, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Logits:
    """Where the walk from a softmax back to q k' arrived, and what it passed."""

    product: Node
    scale: float = 1.0
    slots: tuple[Slot, ...] = ()
    tags: tuple[str, ...] = ()


def is_core(node: Node) -> bool:
    """Whether a node can be the heart of an attention."""
    if node.op in ATTENTIONS:
        return node.domain in ("", "com.microsoft")
    return node.op == "Softmax"


def match_core(graph: Graph, node: Node) -> CoreMatch | Mismatch | None:
    """The core at a node for which `is_core` holds; None when a Softmax is no attention."""
    if node.op == "Softmax":
        return _match_softmax(graph, node)
    if node.op not in OPERATORS:
        return Mismatch(f"the fused operator {node.op} is not known here", node, 1)
    return _match_operator(graph, node)


def _match_softmax(graph: Graph, softmax: Node) -> CoreMatch | Mismatch | None:
    values = _follow_probabilities(graph, softmax)
    logits = _walk_logits(graph, softmax.inputs[0])
    if isinstance(logits, Mismatch):
        return logits
    if logits is None:
        if isinstance(values, Mismatch):
            return None
        return Mismatch("expected a product of queries and keys behind the softmax, found none", softmax, 1)
    if isinstance(values, Mismatch):
        return values
    rank = len(graph.dims(softmax.output))
    axis = softmax.attrs.get("axis", -1 if graph.model.opset >= SOFTMAX_OVER_ONE_AXIS else 1)
    if axis not in (-1, rank - 1):
        return Mismatch(f"expected a softmax over the last axis, found axis {axis}", softmax)
    product = logits.product
    q_view = "columns" if product.attrs.get("transA") else "rows"
    k_view = "rows" if product.attrs.get("transB") else "columns"
    scale = logits.scale * product.attrs.get("alpha", 1.0)
    q, k = product.inputs[:2]
    return CoreMatch(
        "softmax", product, q, k, values.inputs[1], (q_view, k_view, "rows"), None, values.output, scale,
        logits.slots, logits.tags,
    )  # fmt: skip


def _walk_logits(graph: Graph, tensor: str, depth: int = 0) -> _Logits | Mismatch | None:
    """From the input of a softmax back to q k'; None when there is no such product."""
    node = graph.producers.get(tensor)
    if node is None or depth > MAX_PATH or graph.is_constant(tensor):
        return None
    if node.op in FLOAT_MATMULS:
        stored = all(graph.is_constant(i) for i in node.inputs)  # one of them may be: a learned query
        return None if stored or is_product(graph, node) else _Logits(node)
    if node.op == "Einsum":
        return Mismatch("expected queries and keys to meet in a MatMul, found an Einsum", node, 1)
    if scaled := scalar_operand(graph, node):
        data, factor = scaled
        found = _walk_logits(graph, node.inputs[data], depth + 1)
        if not isinstance(found, _Logits):
            return found
        slots = found.slots + computed_slot(graph, node, 1 - data)
        return replace(found, scale=found.scale * factor, slots=slots, tags=(*found.tags, "scaled logits"))
    if node.op in ADDED:
        names = node.inputs[:1] if node.op == "Sub" else node.inputs
        hits = [hit for name in names if name and (hit := _walk_logits(graph, name, depth + 1))]
        found = hits[0] if len(hits) == 1 else None
        return replace(found, tags=(*found.tags, ADDED[node.op])) if isinstance(found, _Logits) else found
    if passes(node) or node.op in ("Expand", "Clip"):  # Clip guards logits, Expand widens masks
        return _walk_logits(graph, node.inputs[0], depth + 1)
    return None


def computed_slot(graph: Graph, node: Node, idx: int) -> tuple[Slot, ...]:
    """The slot of a scale, when the scale is computed and not stored."""
    return () if graph.is_constant(node.inputs[idx]) else (Slot(node, idx),)


def _follow_probabilities(graph: Graph, softmax: Node) -> Node | Mismatch:
    """From the softmax forward to the product with the values, through dropout, casts and an IsNaN guard."""
    tensor = softmax.output
    for _ in range(MAX_PATH):
        users = [(n, i) for n, i in graph.users(tensor) if n.op not in ("IsNaN", "Shape")]
        if len(users) != 1:
            return Mismatch(f"expected one reader of the attention weights, found {len(users)}", softmax, 1)
        node, idx = users[0]
        if node.op == "MatMul" and idx == 0 and not graph.is_constant(node.inputs[1]):
            return node
        if not (passes(node) or node.op == "Where" or (scalar_operand(graph, node) is not None)):
            return Mismatch("expected the attention weights to meet the values in a MatMul", node, 1)
        tensor = node.output
    return Mismatch("no product with the values found", softmax, 1)


def _match_operator(graph: Graph, node: Node) -> CoreMatch | Mismatch:
    """The `Attention` operator of opset 23, or com.microsoft's MultiHeadAttention."""
    core: Core = "Attention" if node.op == "Attention" else "MultiHeadAttention"
    q, k, v = ([*node.inputs, "", ""])[:3]
    shape, k_shape, attrs = graph.dims(q), graph.dims(k), node.attrs
    n_heads = int(attrs.get("q_num_heads", attrs.get("num_heads", shape[1] if len(shape) > 2 else 1)))
    if problem := _operator_problem(graph, node, n_heads):
        return problem
    d_qk = graph.dims(q)[-1] // (n_heads if len(shape) == 3 else 1)
    scale = float(attrs.get("scale", 0) or d_qk**-0.5)
    if len(shape) == 5:  # com.microsoft: query holds q, k and v as [B, N, H, 3, d]
        views = ("packed0/3", "packed1/3", "packed2/3")
        return CoreMatch(core, node, q, q, q, views, n_heads, node.output, scale, (), ("packed qkv",))
    if len(k_shape) == 5:
        views = (f"heads{n_heads}", "packed0/2", "packed1/2")
        return CoreMatch(core, node, q, k, k, views, n_heads, node.output, scale, (), ("packed kv",))
    q_view, k_view, v_view = ("rows" if len(graph.dims(t)) == 4 else f"heads{n_heads}" for t in (q, k, v))
    return CoreMatch(core, node, q, k, v, (q_view, k_view, v_view), n_heads, node.output, scale)


def _operator_problem(graph: Graph, node: Node, n_heads: int) -> Mismatch | None:
    if node.attrs.get("softcap"):
        return Mismatch("expected no soft cap on the logits", node, 1)
    if any(node.inputs[i] for i in ((4, 5) if node.op == "Attention" else (6, 7)) if i < len(node.inputs)):
        return Mismatch("expected no cached keys (this is an encoder tool)", node, 1)
    if any(node.outputs[1:]):
        return Mismatch("expected the attention output alone, found keys, values or logits given out as well", node, 1)
    n_key_heads = int(node.attrs.get("kv_num_heads", n_heads))
    if n_key_heads != n_heads:
        return Mismatch(f"expected one key head for each query head, found {n_heads} and {n_key_heads}", node, 2)
    packed = len(graph.dims(node.inputs[0])) == 5 or (len(node.inputs) > 1 and len(graph.dims(node.inputs[1])) == 5)
    if packed and len(node.inputs) > 3 and node.inputs[3] and node.op == "MultiHeadAttention":
        return Mismatch("expected no bias inside an operator with packed inputs", node, 1)
    return None


def view_operand(array: np.ndarray, view: str) -> np.ndarray:
    """An operand as [lead..., tokens, d_head], whatever its attention operator reads.

    Views: `rows` [.., N, d]; `columns` [.., d, N]; `heads<H>` [B, N, H*d]; `packed<i>/<n>` [B, N, H, n, d].
    """
    if view == "rows":
        return array
    if view == "columns":
        return np.swapaxes(array, -1, -2)
    if view.startswith("heads"):
        n_heads = int(view[5:])
        return array.reshape(*array.shape[:-1], n_heads, -1).swapaxes(-2, -3)
    return array[..., int(view[6]), :].swapaxes(-2, -3)
