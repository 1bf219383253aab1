"""A TensorRT engine in words. Enters the result of a build; leaves the text that stdout gets."""

from __future__ import annotations

from corp_onnx.errors import clean_text
from corp_onnx.tensorrt.engine import EngineResult, EngineTensor
from corp_onnx.tensorrt.library import TITLES


def describe_engine(result: EngineResult) -> str:
    """Size, versions, precision, a line an input, and trtexec's own measurement where there is one."""
    typed = "strongly typed" if result.strongly_typed else "TensorRT chooses"
    lines = [
        f"{result.path}: {result.n_bytes / 1e6:.1f} MB, {TITLES[result.library]} {result.tensorrt}, "
        f"{result.runs_on}, {result.precision} ({typed}), {result.seconds:.0f} s",
        *(_describe_input(tensor) for tensor in result.inputs),
    ]
    if result.measured is not None and result.measured.throughput is not None:
        times = ", ".join(f"{t.name} {1e3 * t.median:.3f} ms" for t in result.measured.times)
        lines.append(f"trtexec, median at the shape it chose: {times}; {result.measured.throughput:.1f} batches/s")
    lines.append(f"description: {result.description}")
    return "\n".join(map(clean_text, lines))


def _describe_input(tensor: EngineTensor) -> str:
    if tensor.minimum is None or tensor.optimum is None or tensor.maximum is None:
        return f"{tensor.name}: {_join(tensor.shape)}"
    return f"{tensor.name}: {_join(tensor.minimum)} to {_join(tensor.maximum)}, best at {_join(tensor.optimum)}"


def _join(shape: tuple[int | None, ...]) -> str:
    return " x ".join(map(str, shape))
