"""Q, K or V of an attention: from what the product reads back to the projection, and which of its columns it is.

The layout is read off index tensors (layout.py). What a fused projection holds besides the recognised operands (queries
that are rotated or normed, say) is found forwards from it and stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from corp_onnx.blocks.core import MAX_PATH, CoreMatch, computed_slot, view_operand
from corp_onnx.blocks.layout import (
    Boundary,
    Step,
    Traced,
    dimension_lookup,
    find_boundary,
    move,
    number_places,
    passes,
    read_heads,
    scalar_operand,
    trace_path,
    width_spellings,
)
from corp_onnx.blocks.linear import Mismatch, is_channel_vector, is_product, match_linear
from corp_onnx.blocks.products import Linear, Operand
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import NORMS
from corp_onnx.graph.slots import Slot


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """An operand with what only the search needs: `steps` lead from the projection's output to the operand."""

    operand: Operand
    head_of_lead: np.ndarray
    scale: float
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    traced: Traced

    def resized(self) -> list[tuple[str, list[int]]]:
        """(tensor, axes that change): the projection's output, and the tensors that hold this operand alone."""
        operand = self.operand
        lookup = dimension_lookup(operand.channel_idx, operand.linear.d_out)
        source, tensors = operand.linear.output or "", [step.tensor for step in self.steps]
        if operand.is_fused:
            tensors = tensors[tensors.index(operand.boundary) :]
        return [(tensor, self.traced.width_axes(tensor, lookup)) for tensor in (source, *tensors)]

    def dropped(self) -> tuple[Node, ...]:
        """The nodes in front of the boundary of a fused projection, which a rewrite replaces."""
        if not self.operand.is_fused:
            return ()
        tensors = [step.tensor for step in self.steps]
        return tuple(step.node for step in self.steps[: tensors.index(self.operand.boundary) + 1])


def match_operand(graph: Graph, tensor: str, view: str, core: CoreMatch, letter: str) -> Found | Mismatch:
    """The operand that a core reads as `tensor`; a mismatch names it by its letter."""
    walked = _walk_operand(graph, tensor)
    if isinstance(walked, Mismatch):
        return Mismatch(f"{letter} {walked.reason}", walked.node, walked.depth)
    linear, steps = walked.linear, walked.steps
    source = linear.output or ""
    traced = trace_path(graph, source, steps)
    if isinstance(traced, Mismatch):
        return traced
    seen = view_operand(traced.arrays[tensor], view)
    heads = read_heads(traced, seen, core.node)
    if isinstance(heads, Mismatch):
        return heads
    boundary = find_boundary(traced, source, steps, heads.channel_idx)
    if view.startswith("packed"):
        boundary = Boundary(tensor, None, None)
    if boundary is None:
        return Mismatch(f"{letter}: the way it is cut out of the projection is not understood", core.node, 2)
    tensors = [source, *(s.tensor for s in steps)]
    after = steps[tensors.index(boundary.tensor) :]
    lookup = dimension_lookup(heads.channel_idx, traced.n_columns)
    spellings = width_spellings(traced, after, lookup, heads.channel_idx.shape[1])
    if isinstance(spellings, Mismatch):
        return spellings
    if walked.late_bias is not None and not _adds_in_order(traced, after, walked.late_bias, heads.channel_idx):
        return Mismatch(f"{letter} is changed by an Add that is no bias of its projection", walked.late_bias.node, 2)
    linear = _with_operator_bias(graph, linear, core, letter)
    operand = Operand(
        linear, heads.channel_idx, heads.token_major, seen.shape[-2], tensor, boundary.tensor, boundary.perm,
        boundary.leading, spellings, tuple(s.node for s in steps), walked.late_bias,
    )  # fmt: skip
    return Found(operand, heads.head_of_lead, walked.scale, walked.slots, tuple(steps), traced)


def _adds_in_order(traced: Traced, after: list[Step], bias: Slot, channel_idx: np.ndarray) -> bool:
    """Whether a vector is added behind the boundary, to the operand's columns side by side in their order."""
    here = [step.tensor for step in after if step.node is bias.node]
    if not here:
        return False
    columns = traced.columns(here[0]).reshape(-1, channel_idx.size)
    return bool(np.all(columns == channel_idx.reshape(-1)))


@dataclass(frozen=True, slots=True, eq=False)
class _Walked:
    """From an operand back to its projection: steps in forward order, and the scale on the way."""

    linear: Linear
    steps: list[Step]
    scale: float
    slots: tuple[Slot, ...]
    late_bias: Slot | None


def _walk_operand(graph: Graph, tensor: str) -> _Walked | Mismatch:
    steps: list[Step] = []
    scale, slots, late_bias = 1.0, (), None
    for _ in range(MAX_PATH):
        node = graph.producers.get(tensor)
        if node is None or graph.is_constant(tensor):
            reader = steps[-1].node if steps else graph.users(tensor)[0][0]
            return Mismatch("is stored or fed and not projected from the tokens (a learned query?)", reader, 2)
        if product := _projection(graph, node):
            linear = match_linear(graph, product)
            if isinstance(linear, Mismatch):
                return linear
            if linear.output != tensor:
                return Mismatch("leaves its projection before the bias", node, 2)
            return _Walked(linear, steps[::-1], scale, slots, late_bias)
        if late_bias is None and (scaled := scalar_operand(graph, node)):
            data, factor = scaled
            scale, slots = scale * factor, slots + computed_slot(graph, node, 1 - data)
        elif late_bias is None and (vector := _added_vector(graph, node)) is not None:
            data, late_bias = 1 - vector, Slot(node, vector)
        elif passes(node):
            data = 0
        else:
            return Mismatch(f"is changed by {_describe(node)} between its projection and the product", node, 2)
        steps.append(Step(node, tensor))
        tensor = node.inputs[data]
    return Mismatch(f"has no projection within {MAX_PATH} operators", steps[-1].node, 1)


def _projection(graph: Graph, node: Node) -> Node | None:
    """The product whose output, with its bias added, is what a node gives."""
    if is_product(graph, node):
        return node
    stored = [idx for idx, name in enumerate(node.inputs) if graph.is_constant(name)]
    if node.op != "Add" or len(stored) != 1:
        return None
    behind = graph.producers.get(node.inputs[1 - stored[0]])
    while behind is not None and behind.op == "Reshape":
        behind = graph.producers.get(behind.inputs[0])
    if behind is None or not is_product(graph, behind):
        return None
    linear = match_linear(graph, behind)
    return behind if isinstance(linear, Mismatch) or linear.output == node.output else None


def _added_vector(graph: Graph, node: Node) -> int | None:
    """The input of an Add that is a stored vector along the last axis."""
    width = graph.dims(node.output)[-1] if node.op == "Add" and graph.dims(node.output) else 0
    return next((i for i, name in enumerate(node.inputs) if width and is_channel_vector(graph, name, width)), None)


def _describe(node: Node) -> str:
    if node.op in NORMS:
        return f"a norm ({node.op})"
    if node.op in ("Concat", "RotaryEmbedding"):
        return f"{node.op} (a rotary embedding?)"
    return node.op


def _with_operator_bias(graph: Graph, linear: Linear, core: CoreMatch, letter: str) -> Linear:
    """MultiHeadAttention carries the bias of all three projections as its input 3: q, k and v one after the other."""
    node = core.node
    if core.core != "MultiHeadAttention" or len(node.inputs) < 4 or not node.inputs[3] or linear.bias is not None:
        return linear
    total = int(np.prod(graph.dims(node.inputs[3])))
    offset = 0 if linear.d_out == total else {"q": 0, "k": linear.d_out, "v": total - linear.d_out}[letter]
    return replace(linear, bias=Slot(node, 3), bias_offset=offset, output_has_bias=False)


def find_rest(graph: Graph, found: list[Found], core: Node) -> tuple[Operand, ...] | Mismatch:
    """What the fused projection of some operands holds besides them, each part as an operand that keeps its width.

    Tensors that hold several parts must only be moved on: they do not exist any more once the parts differ in width.

    Args:
        found: operands of one projection.
        core: the attention operator, which may read packed operands: it is wired anew.
    """
    linear = found[0].operand.linear
    source = linear.output or ""
    known = np.concatenate([f.operand.channel_idx.reshape(-1) for f in found])
    boundaries = {f.operand.boundary for f in found}
    shape = graph.shapes[source]
    todo: list[tuple[str, np.ndarray, tuple[Step, ...]]] = [(source, number_places(shape), ())]
    parts: list[Operand] = []
    while todo:
        tensor, array, steps = todo.pop()
        if tensor in boundaries:
            continue
        columns = np.flatnonzero(np.bincount(array.reshape(-1) % shape[-1], minlength=shape[-1]))
        is_part = not np.isin(columns, known).any()
        if is_part and (part := _read_part(graph, found[0].operand, steps, columns)):
            parts.append(part)
            continue
        for node, idx in graph.users(tensor):
            if node is core or (node.op == "Shape" and tensor == source):
                continue
            if not passes(node) or idx != 0 or tensor in graph.outputs:
                return Mismatch(f"{node} reads parts of it together", node, 2)
            for name in node.outputs:
                moved = move(graph, Step(node, name), array)
                if isinstance(moved, Mismatch):
                    return moved
                todo.append((name, moved, (*steps, Step(node, name))))
    held = np.concatenate([known, *(p.channel_idx.reshape(-1) for p in parts)])
    if not np.array_equal(np.sort(held), np.arange(shape[-1])):
        return Mismatch("expected every column of the fused projection to be read once", linear.node, 2)
    return tuple(parts)


def _read_part(graph: Graph, known: Operand, steps: tuple[Step, ...], columns: np.ndarray) -> Operand | None:
    """A part of a fused projection that is not understood further; None where it is not cut out plainly yet."""
    source, tensor = known.linear.output or "", steps[-1].tensor
    traced = trace_path(graph, source, list(steps))
    if isinstance(traced, Mismatch):
        return None
    for n_rows in dict.fromkeys((1, *traced.arrays[tensor].shape)):
        if len(columns) % n_rows:
            continue
        channel_idx = columns.reshape(n_rows, -1)
        boundary = find_boundary(traced, source, list(steps), channel_idx)
        if boundary is not None and boundary.tensor == tensor:
            return Operand(
                known.linear, channel_idx, known.token_major, known.n_tokens, tensor, boundary.tensor, boundary.perm,
                boundary.leading, (), tuple(s.node for s in steps),
            )  # fmt: skip
    return None
