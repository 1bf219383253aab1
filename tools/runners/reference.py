"""The evaluator of the onnx package, in NumPy: what the standard says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx.reference import ReferenceEvaluator


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """An evaluator."""
    evaluator = ReferenceEvaluator(str(path))
    return lambda pixels: evaluator.run(None, {evaluator.input_names[0]: pixels})[0]
