"""ONNX Runtime on the CPU: what the others are held against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from runners.child import THREADS


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]
