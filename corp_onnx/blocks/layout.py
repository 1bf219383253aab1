"""Where every number of a tensor comes from: index tensors sent through the operators that only move data.

Between a projection and the attention product every exporter spells the same thing differently: reshape, transpose,
split, gather, squeeze, heads folded into the batch. Instead of reading the spelling, numbers that say "row r, column
c of the projection" travel the same way; what arrives tells which column is which dimension of which head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import Int

from corp_onnx.blocks.linear import Mismatch, is_scalar
from corp_onnx.graph import Graph, Node, evaluate_node
from corp_onnx.graph.operators import MOVES, PASS_THROUGH
from corp_onnx.graph.slots import Parting, WidthSpelling


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

    def width_axes(self, tensor: str, lookup: np.ndarray) -> list[int]:
        """The axes of a tensor along which a head's dimension changes; `lookup` gives it for every source column."""
        dims = lookup[self.columns(tensor)]
        return [axis for axis in range(dims.ndim) if _varies(np.moveaxis(dims, axis, 0))]

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
    arrays = {source: number_places(shape)}
    current = arrays[source]
    for step in steps:
        moved = move(graph, step, current)
        if isinstance(moved, Mismatch):
            return moved
        arrays[step.tensor] = current = moved
    return Traced(arrays, shape[-1])


def number_places(shape: tuple[int, ...]) -> np.ndarray:
    """The flat position of every number of a tensor; in four bytes, where they are enough, since all of it is moved."""
    size = math.prod(shape)
    return np.arange(size, dtype=np.int32 if size < 2**31 else np.int64).reshape(shape)


def move(graph: Graph, step: Step, array: np.ndarray) -> np.ndarray | Mismatch:
    """An index tensor behind one operator."""
    node = step.node
    if node.op not in MOVES:
        return array
    feeds: dict[str, np.ndarray | None] = {node.inputs[0]: array}
    feeds |= {name: graph.value(name) for name in node.inputs[1:] if name}
    if any(v is None for v in feeds.values()):
        return Mismatch("expected a known shape or index", node)
    return evaluate_node(node, feeds, graph.model.opset)[node.outputs.index(step.tensor)]


def _varies(array: np.ndarray) -> bool:
    """Whether it is another thing somewhere along its first axis."""
    return bool((array[1:] != array[:-1]).any())


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
    channel_idx = np.stack([np.frombuffer(key, dtype=cols.dtype) for key in heads]).astype(np.int64)
    if len(np.unique(channel_idx)) != channel_idx.size:
        return Mismatch("expected heads that share no projection column", node, 2)
    tokens = [rows[head_of_lead == head][:, :, 0] for head in range(len(heads))]
    order = np.arange(tokens[0].size)
    if all(np.array_equal(t, order.reshape(t.shape)) for t in tokens):
        return HeadMap(channel_idx, head_of_lead, token_major=False)
    if all(np.array_equal(t, order.reshape(t.shape[::-1]).T) for t in tokens):
        return HeadMap(channel_idx, head_of_lead, token_major=True)
    return Mismatch("expected images and tokens as the leading axes of the projection", node, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """The first tensor that holds one operand alone, and how it is made from the operand's columns.

    tensor = transpose(reshape(columns, [*leading, H, d]), perm); perm None means the plain [*leading, H*d]. `leading`
    is what parts the leading axis on the way, None where the projection's own are kept.
    """

    tensor: str
    perm: tuple[int, ...] | None
    leading: Parting | None


def find_boundary(traced: Traced, source: str, steps: list[Step], channel_idx: np.ndarray) -> Boundary | None:
    """The first tensor on a path that a Split, a Reshape and a Transpose can make from the operand's columns alone.

    Not behind an operator that does more than move numbers: everything in front of the boundary is replaced, so that a
    scale, a bias or a Cast there would be lost.
    """
    whole = traced.arrays[source]
    if is_plain(channel_idx, whole.shape[-1]):
        return Boundary(source, None, None)
    piece = whole[..., channel_idx]  # [*leading, H, d]
    partings: list[tuple[Parting | None, tuple[int, ...]]] = [(None, piece.shape[:-2])]
    for step in steps:
        if step.node.op not in MOVES | (PASS_THROUGH - {"Cast"}):  # a Cast rounds
            return None
        target = traced.arrays[step.tensor]
        if step.node.op == "Reshape" and piece.ndim == 3:
            pairs = [(axis, target.shape[axis : axis + 2]) for axis in (0, 1)]
            partings += [(Parting(step.node, axis), pair) for axis, pair in pairs if np.prod(pair) == len(piece)]
        for parting, leading in partings if target.size == piece.size else []:
            view = piece.reshape(*leading, *channel_idx.shape)
            if np.array_equal(view.reshape(*leading, -1), target):
                return Boundary(step.tensor, None, parting)
            for perm in permutations(range(view.ndim)):
                if np.array_equal(view.transpose(perm), target):
                    return Boundary(step.tensor, perm, parting)
    return None


def is_plain(channel_idx: np.ndarray, n_columns: int) -> bool:
    """Whether heads stand side by side in their order and fill all columns."""
    return np.array_equal(channel_idx.reshape(-1), np.arange(n_columns))


def width_spellings(
    traced: Traced, steps: list[Step], lookup: np.ndarray, d_head: int
) -> tuple[WidthSpelling, ...] | Mismatch:
    """The Reshapes on a path whose target spells a head's width, and at which axis.

    Args:
        lookup: dimension inside the head of every source column.
    """
    spellings: list[WidthSpelling] = []
    for step in steps:
        if step.node.op != "Reshape":
            continue
        shape = traced.arrays[step.tensor].shape
        axes = traced.width_axes(step.tensor, lookup) if d_head > 1 else [len(shape) - 1]
        if len(axes) != 1 or shape[axes[0]] % d_head:
            return Mismatch("expected a head's dimensions on one axis", step.node, 2)
        spellings.append(WidthSpelling(step.node, axes[0], shape[axes[0]] // d_head))
    return tuple(spellings)


def dimension_lookup(channel_idx: np.ndarray, n_columns: int) -> np.ndarray:
    """Dimension inside the head of every column; 0 for those of other operands."""
    lookup = np.zeros(n_columns, dtype=np.int32)
    lookup[channel_idx] = np.arange(channel_idx.shape[1])
    return lookup


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
