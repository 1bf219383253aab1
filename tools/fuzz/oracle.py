"""Whether two ONNX files compute the same, by plain ONNX Runtime on noise. A program: a spoilt model may end it.

    python -m fuzz.oracle SOURCE RESULT TOLERANCE     exit code 0 the same, 3 not, 4 the source does not run

TOLERANCE is relative to the largest answer of the source; with `shapes` only loading, names and shapes are compared.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime

SAME, DIFFERENT, UNKNOWN = 0, 3, 4
UNSET = 2
"""Rows where a batch is dynamic."""


def main(source: str, result: str, tolerance: str) -> int:
    """Prints what differs."""
    onnxruntime.set_default_logger_severity(4)
    try:
        first = _open(source)
        feeds = {value.name: _noise(value) for value in first.get_inputs()}
        expected = first.run(None, feeds)
    except Exception:  # whatever ONNX Runtime says: there is nothing to compare with
        return UNKNOWN
    names = [value.name for value in first.get_outputs()]
    try:
        second = _open(result)
        found = second.run(names, {value.name: feeds[value.name] for value in second.get_inputs()})
    except Exception as error:
        print(f"the result does not run: {str(error).splitlines()[0][:200]}")
        return DIFFERENT
    for name, one, other in zip(names, expected, found, strict=True):
        reason = compare(one, other, None if tolerance == "shapes" else float(tolerance))
        if reason:
            print(f"output {name[:40]!r} differs: {reason}")
            return DIFFERENT
    return SAME


def compare(expected: np.ndarray, found: np.ndarray, tolerance: float | None) -> str:
    """What differs; empty where nothing does. NaN and infinities must be the same ones."""
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
        return "" if type(expected) is type(found) else "another kind of value"
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    if tolerance is None or expected.dtype.kind not in "fiu":
        return ""
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return "other numbers are not finite"
    finite = np.isfinite(expected)
    scale = max(float(np.abs(expected[finite]).max(initial=0)), 1e-30)
    off = float(np.abs(expected[finite] - found[finite]).max(initial=0)) / scale
    return f"by {off:.2g} of its largest" if off > tolerance else ""


def _open(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(Path(path).resolve(), options, providers=["CPUExecutionProvider"])


def _noise(value: onnxruntime.NodeArg) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(value.name.encode()))
    shape = [dim if isinstance(dim, int) and dim > 0 else (UNSET if i == 0 else 8) for i, dim in enumerate(value.shape)]
    if value.type == "tensor(float)":
        return rng.standard_normal(shape).astype(np.float32)
    if value.type in ("tensor(float16)", "tensor(double)"):
        return rng.standard_normal(shape).astype({"tensor(double)": np.float64}.get(value.type, np.float16))
    if value.type in ("tensor(int64)", "tensor(int32)"):
        return rng.integers(0, 2, shape).astype({"tensor(int64)": np.int64}.get(value.type, np.int32))
    if value.type == "tensor(bool)":
        return rng.integers(0, 2, shape).astype(bool)
    raise ValueError(value.type)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
