"""Where every number of a tensor comes from: index tensors sent through the operators that only move data.

Between a projection and the attention product every exporter spells the same thing differently: reshape, transpose,
split, gather, squeeze, heads folded into the batch. Instead of reading the spelling, numbers that say "row r, column
c of the projection" travel the same way; what arrives tells which column is which dimension of which head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Int

from corp_onnx.blocks.linear import PASS_THROUGH, Mismatch, is_scalar
from corp_onnx.blocks.units import WidthSpelling
from corp_onnx.graph import Graph, Node, evaluate_node

MOVES = frozenset({"Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that move numbers without changing them; data is input 0, the rest says how."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operator on a path, and the tensor of it that the path goes on with."""

    node: Node
    tensor: str


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """The index tensor at every tensor of a path: flat positions into the tensor that the path started from."""

    arrays: dict[str, np.ndarray]
    n_columns: int

    def columns(self, tensor: str) -> np.ndarray:
        """Column (last-axis position in the source) of every number of a tensor."""
        return self.arrays[tensor] % self.n_columns

    def rows(self, tensor: str) -> np.ndarray:
        """Flattened leading position in the source of every number of a tensor."""
        return self.arrays[tensor] // self.n_columns


def trace_path(graph: Graph, source: str, steps: list[Step], shape: tuple[int, ...] | None = None) -> Traced | Mismatch:
    """Send an index tensor from `source` along `steps`.

    Args:
        shape: of the source, where it differs from the tensor's own (a view of it).
    """
    shape = shape or graph.shapes[source]
    arrays = {source: np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)}
    current = arrays[source]
    for step in steps:
        if step.node.op in MOVES:
            feeds: dict[str, np.ndarray | None] = {step.node.inputs[0]: current}
            feeds |= {name: graph.value(name) for name in step.node.inputs[1:] if name}
            if any(v is None for v in feeds.values()):
                return Mismatch("expected a known shape or index", step.node)
            outputs = evaluate_node(step.node, feeds, graph.model.opset)
            current = outputs[step.node.outputs.index(step.tensor)]
        arrays[step.tensor] = current
    return Traced(arrays, shape[-1])


@dataclass(frozen=True, slots=True, eq=False)
class HeadMap:
    """Columns by head and dimension, and the order of the leading axes."""

    channel_idx: Int[np.ndarray, "n_heads d_head"]
    head_of_lead: Int[np.ndarray, " lead"]
    token_major: bool


def read_heads(traced: Traced, view: np.ndarray, node: Node) -> HeadMap | Mismatch:
    """The heads in an operand's index view [lead..., n_tokens, d_head]."""
    n_tokens, d_head = view.shape[-2:]
    flat = view.reshape(-1, n_tokens, d_head)
    cols, rows = flat % traced.n_columns, flat // traced.n_columns
    if np.any(cols != cols[:, :1]) or np.any(rows != rows[..., :1]):
        return Mismatch("expected one projection column for each dimension of a head", node, 2)
    heads: dict[bytes, int] = {}
    head_of_lead = np.array([heads.setdefault(c.tobytes(), len(heads)) for c in cols[:, 0]])
    channel_idx = np.stack([np.frombuffer(key, dtype=np.int64) for key in heads])
    if len(np.unique(channel_idx)) != channel_idx.size:
        return Mismatch("expected heads that share no projection column", node, 2)
    tokens = rows[head_of_lead == 0][:, :, 0]
    order = np.arange(tokens.size)
    if np.array_equal(tokens, order.reshape(tokens.shape)):
        return HeadMap(channel_idx, head_of_lead, token_major=False)
    if np.array_equal(tokens, order.reshape(tokens.shape[::-1]).T):
        return HeadMap(channel_idx, head_of_lead, token_major=True)
    return Mismatch("expected images and tokens as the leading axes of the projection", node, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """The first tensor that holds one operand alone, and how it is made from the operand's columns.

    tensor = transpose(reshape(columns, [*leading, H, d]), perm); perm None means the plain [*leading, H*d].
    """

    tensor: str
    perm: tuple[int, ...] | None
    splits_tokens: bool


def find_boundary(traced: Traced, tensors: list[str], channel_idx: np.ndarray, n_tokens: int) -> Boundary | None:
    """The first tensor on a path that a Split, a Reshape and a Transpose can make from the operand's columns alone.

    Args:
        tensors: the path in forward order; the first is the projection's output.
    """
    whole = traced.arrays[tensors[0]]
    if channel_idx.size == whole.shape[-1]:
        return Boundary(tensors[0], None, splits_tokens=False)
    piece = whole[..., channel_idx]  # [*leading, H, d]
    for tensor in tensors[1:]:
        target = traced.arrays[tensor]
        if target.size != piece.size:
            continue
        if np.array_equal(piece.reshape(*piece.shape[:-2], -1), target):
            return Boundary(tensor, None, splits_tokens=False)
        for splits in (False, True) if piece.ndim == 3 else (False,):
            view = piece.reshape(-1, n_tokens, *piece.shape[1:]) if splits else piece
            for perm in permutations(range(view.ndim)):
                if np.array_equal(view.transpose(perm), target):
                    return Boundary(tensor, perm, splits)
    return None


def width_spellings(
    traced: Traced, steps: list[Step], dimension_of: dict[int, int], d_head: int
) -> tuple[WidthSpelling, ...] | Mismatch:
    """The Reshapes on a path whose target spells a head's width, and at which axis.

    Args:
        dimension_of: dimension inside the head of every source column.
    """
    lookup = np.zeros(traced.n_columns, dtype=np.int64)
    for column, dim in dimension_of.items():
        lookup[column] = dim
    spellings: list[WidthSpelling] = []
    for step in steps:
        if step.node.op != "Reshape":
            continue
        dims = lookup[traced.columns(step.tensor)]
        axes = [a for a in range(dims.ndim) if d_head > 1 and np.any(np.diff(dims, axis=a))]
        if d_head == 1:
            axes = [dims.ndim - 1]
        if len(axes) != 1 or dims.shape[axes[0]] % d_head:
            return Mismatch("expected a head's dimensions on one axis", step.node, 2)
        spellings.append(WidthSpelling(step.node, axes[0], dims.shape[axes[0]] // d_head))
    return tuple(spellings)


def scalar_operand(graph: Graph, node: Node) -> tuple[int, float] | None:
    """(index of the data input, factor) of a multiplication or division by one number; None when it is not one."""
    if node.op not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    for data in (0, 1) if node.op == "Mul" else (0,):
        other = node.inputs[1 - data]
        if is_scalar(graph, other) and not is_scalar(graph, node.inputs[data]):
            value = graph.value(other)
            if value is not None:
                number = float(np.asarray(value, dtype=np.float64).reshape(-1)[0])
                return data, (number if node.op == "Mul" else 1.0 / number)
    return None


def passes(node: Node) -> bool:
    """Whether a node hands its first input on, moved or not."""
    return node.op in MOVES or node.op in PASS_THROUGH
