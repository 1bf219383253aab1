"""TVM: Relax's ONNX front end, compiled with LLVM as it comes, without tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled module of a fixed batch."""
    proto = onnx.load(str(path))
    stored = {tensor.name for tensor in proto.graph.initializer}
    name = next(v.name for v in proto.graph.input if v.name not in stored)
    module = from_onnx(proto, shape_dict={name: list(shape)})
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target("llvm")), tvm.cpu())

    def answer(pixels: np.ndarray) -> np.ndarray:
        out = machine["main"](tvm.runtime.tensor(pixels))
        return (out if hasattr(out, "numpy") else out[0]).numpy()

    return answer
