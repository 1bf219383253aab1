"""What every spoiler draws with: one element of a list, one node with something to spoil."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

T = TypeVar("T")

Rng = np.random.Generator

Spoiler = Callable[[onnx.ModelProto, Rng], None]
"""Changes a model in place."""


class DoesNotApplyError(Exception):
    """The fixture has nothing that this way could spoil."""


def pick(rng: Rng, among: Sequence[T]) -> T:
    """One of them."""
    if not among:
        raise DoesNotApplyError
    return among[int(rng.integers(len(among)))]


def pick_node(
    model: onnx.ModelProto, rng: Rng, wanted: Callable[[onnx.NodeProto], object] = lambda _: True
) -> onnx.NodeProto:
    """A node for which `wanted` holds."""
    return pick(rng, [node for node in model.graph.node if wanted(node)])


def pick_weight(model: onnx.ModelProto, rng: Rng, *, floats: bool = True, rank: int = 0) -> TensorProto:
    """A stored tensor: of floats, of at least this rank, inside the file unless there is none."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    fitting = [t for t in model.graph.initializer if len(t.dims) >= rank and (t.data_type in kinds or not floats)]
    inline = [t for t in fitting if t.data_location != TensorProto.EXTERNAL]
    return pick(rng, inline or fitting)


def pick_inner(model: onnx.ModelProto, rng: Rng) -> str:
    """A tensor that a node writes and that is no output of the graph."""
    outputs = {value.name for value in model.graph.output}
    return pick(rng, [name for node in model.graph.node for name in node.output if name and name not in outputs])


def stored_array(tensor: TensorProto) -> np.ndarray:
    """The numbers of a tensor inside the file; zeros for one whose numbers lie outside."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return np.zeros(tuple(tensor.dims), np.float32)
    return numpy_helper.to_array(tensor).copy()


def store_array(tensor: TensorProto, array: np.ndarray) -> None:
    """Replace what a tensor holds, keep its name."""
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def replace_reads(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    """Let nodes read another tensor."""
    for node in nodes:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def shuffle_field(field: object, order: Sequence[int]) -> None:
    """Put a repeated field into another order."""
    kept = [type(field[i])() for i in order]  # type: ignore[index]
    for copy, i in zip(kept, order, strict=True):
        copy.CopyFrom(field[i])  # type: ignore[index]
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]
