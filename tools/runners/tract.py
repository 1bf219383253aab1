"""tract, in Rust, through its own Python package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tract


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A model of a fixed batch, as tract's own guide has it."""
    model = tract.onnx().load(str(path))
    model.set_input_fact(0, ",".join(map(str, shape)) + ",f32")
    for position in range(model.output_count()):
        model.set_output_fact(position, None)
    runnable = model.into_model().into_runnable()
    return lambda pixels: runnable.run([pixels])[0].to_numpy()
