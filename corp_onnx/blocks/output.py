"""From P @ V forward to the output projection: what pruning of values has to touch behind the product."""

from __future__ import annotations

import numpy as np

from corp_onnx.blocks.core import MAX_PATH, CoreMatch, view_operand
from corp_onnx.blocks.layout import Step, Traced, is_plain, number_places, passes, trace_path, width_spellings
from corp_onnx.blocks.linear import Mismatch, is_product, match_linear, residual_after
from corp_onnx.blocks.operand import Found
from corp_onnx.blocks.products import AttentionOutput
from corp_onnx.blocks.readers import find_reader
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot


def match_output(graph: Graph, core: CoreMatch, v: Found) -> AttentionOutput | Mismatch:
    """The output projection behind a core, with its input columns by head and dimension."""
    walked = _walk_output(graph, core)
    if isinstance(walked, Mismatch):
        return walked
    product, steps = walked
    linear = match_linear(graph, product)
    if isinstance(linear, Mismatch):
        return linear
    traced = trace_path(graph, core.output, steps)
    if isinstance(traced, Mismatch):
        return traced
    channel_idx = _read_columns(graph, core, v, traced, linear.input)
    if isinstance(channel_idx, Mismatch):
        return channel_idx
    d_head = channel_idx.shape[1]
    lookup = number_places((traced.n_columns,)) % d_head
    spellings = width_spellings(traced, steps, lookup, d_head)
    if isinstance(spellings, Mismatch):
        return spellings
    inside = {product, *(s.node for s in steps)}
    pinned = {Slot(s.node, 1) for s in spellings}
    for tensor in (core.output, *(s.tensor for s in steps)):
        if reader := find_reader(graph, tensor, traced.width_axes(tensor, lookup), inside, pinned):
            return reader
    return AttentionOutput(linear, channel_idx, spellings, residual_after(graph, linear.output or "", linear.d_out))


def _walk_output(graph: Graph, core: CoreMatch) -> tuple[Node, list[Step]] | Mismatch:
    """(output projection, steps to it)."""
    tensor, steps = core.output, []
    for _ in range(MAX_PATH):
        users = [u for u in graph.users(tensor) if u[0].op != "Shape"]
        if len(users) != 1:
            return Mismatch(f"expected one reader of the attention output, found {len(users)}", core.node, 1)
        node, idx = users[0]
        if is_product(graph, node) and idx == 0:
            return node, steps
        if not passes(node) or idx != 0:
            return Mismatch(f"{node.op} sits between the values and the output projection", node, 2)
        tensor = node.output
        steps.append(Step(node, tensor))
    return Mismatch("no output projection found", core.node, 1)


def _read_columns(graph: Graph, core: CoreMatch, v: Found, traced: Traced, tensor: str) -> np.ndarray | Mismatch:
    """Input columns of the output projection by head and dimension."""
    shape, (n_heads, d_head) = graph.shapes[core.output], v.operand.channel_idx.shape
    order = number_places(shape)
    seen = order if traced.n_columns == d_head else view_operand(order, f"heads{n_heads}")
    if int(np.prod(seen.shape[:-2])) != len(v.head_of_lead):
        return Mismatch("expected the attention output in the layout of the values", core.node, 1)
    heads = np.broadcast_to(v.head_of_lead.reshape(*seen.shape[:-2], 1, 1), seen.shape)
    label = np.empty(order.size, dtype=order.dtype)
    label[seen.reshape(-1)] = (heads * d_head + np.arange(d_head)).reshape(-1)
    arrived = label[traced.arrays[tensor]]
    arrived = arrived.reshape(-1, arrived.shape[-1])
    if np.any(arrived != arrived[:1]) or not is_plain(arrived[0], n_heads * d_head):
        return Mismatch("expected the heads side by side in front of the output projection", core.node, 2)
    return np.arange(n_heads * d_head).reshape(n_heads, d_head)
