"""MNN behind its own converter, called without the program `mnnconvert`.

That one installs another package with the pip that it finds on the PATH, to report what was converted over the network.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import MNN
import numpy as np
import onnx

from runners.child import THREADS


def load(path: Path, shape: tuple[int, ...], folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A module; its own session for precision 'high', which is float32."""
    converted = folder / "model.mnn"
    asked = ["mnnconvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(converted), "--bizCode", "x"]
    command = [sys.executable, "-c", "import sys, MNN, _tools; _tools.mnnconvert(sys.argv[1:])", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not converted.exists():
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ValueError(f"its converter ends with {done.returncode}, its last line: {(said or ['nothing'])[-1]}")
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs, outputs = [v.name for v in graph.input if v.name not in stored], [v.name for v in graph.output]
    manager = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": THREADS},))
    module = MNN.nn.load_module_from_file(str(converted), inputs, outputs, runtime_manager=manager)

    def answer(pixels: np.ndarray) -> np.ndarray:
        placed = MNN.expr.placeholder(list(pixels.shape), MNN.expr.NCHW)
        placed.write(pixels)
        out = MNN.expr.convert(module.forward([placed])[0], MNN.expr.NCHW)
        return np.array(out.read(), np.float32)

    return answer
