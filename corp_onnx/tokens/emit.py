"""New nodes in a row behind a node of the graph: what merge.py and follow.py write with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from corp_onnx.graph import Node
from corp_onnx.graph.surgeon import Surgeon

REDUCE_AXES_AS_INPUT = 18
"""Operator set from which on ReduceMax takes its axes as an input."""

FLOAT32 = int(TensorProto.FLOAT)


@dataclass(frozen=True, slots=True, eq=False)
class Emitter:
    """New nodes in a row behind a node of the graph."""

    surgeon: Surgeon
    place: Node
    prefix: str

    def __call__(self, op: str, *inputs: Any, name: str = "", **attrs: Any) -> Any:
        """The output of a new node."""
        return self.several(op, (name or op,), *inputs, **attrs)[0]

    def several(self, op: str, names: Sequence[str], *inputs: Any, **attrs: Any) -> list[Any]:
        """The outputs of a new node."""
        outputs = [self.surgeon.variable(f"{self.prefix}/{name}") for name in names]
        self.surgeon.insert(op, list(inputs), outputs, self.place, **attrs)
        return outputs

    def ints(self, *values: Any) -> Any:
        """A stored vector of positions or sizes."""
        return self.surgeon.constant(f"{self.prefix}/idx", np.array(values, dtype=np.int64).reshape(-1))

    def count(self, value: int) -> Any:
        """A stored number without axes, as onnx's own evaluator wants the depth of a OneHot."""
        return self.surgeon.constant(f"{self.prefix}/idx", np.array(value, dtype=np.int64))

    def floats(self, values: Any, like: str = "") -> Any:
        """A stored tensor in float32, or in the type of a tensor of the graph."""
        types = self.surgeon.graph.types
        kind = onnx.helper.tensor_dtype_to_np_dtype(types[like]) if like else np.dtype(np.float32)
        return self.surgeon.constant(f"{self.prefix}/number", np.asarray(values).astype(kind))

    def cast(self, tensor: Any, to: int, came: int) -> Any:
        """A tensor in another type; itself where it has that."""
        return tensor if to == came else self("Cast", tensor, to=to)

    def reduce_max(self, x: Any, axis: int) -> Any:
        """The largest numbers along an axis, which stays with size 1."""
        if self.surgeon.graph.model.opset >= REDUCE_AXES_AS_INPUT:
            return self("ReduceMax", x, self.ints(axis), keepdims=1)
        return self("ReduceMax", x, axes=[axis], keepdims=1)
