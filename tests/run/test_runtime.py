"""ONNX Runtime as a library: what is missing is said in a sentence, and what it says is made one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from corp_onnx.errors import MissingExtraError, OptionError
from corp_onnx.run import runtime
from corp_onnx.run.runtime import explain_failure, first_sentence, import_runtime, resolve_provider


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expected = r"ONNX Runtime is not installed: pip install 'corp-onnx\[cpu\]', or 'corp-onnx\[gpu\]'"
    with pytest.raises(MissingExtraError, match=expected) as caught:
        import_runtime()
    assert caught.value.exit_code == 2


def test_provider_that_is_not_there() -> None:
    with pytest.raises(OptionError, match=r"provider 'cuda' is not available here; this onnxruntime has: cpu"):
        resolve_provider("cuda")


def test_names_of_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    has = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider", "OwnExecutionProvider"]
    fake = SimpleNamespace(get_available_providers=lambda: has)
    monkeypatch.setattr(runtime, "import_runtime", lambda: fake)
    assert [resolve_provider(p) for p in ("CPU", "cuda", "TensorRT")] == [has[2], has[1], has[0]]
    assert resolve_provider("OwnExecutionProvider") == "OwnExecutionProvider"
    with pytest.raises(OptionError, match=r"this onnxruntime has: cpu, cuda, tensorrt"):
        resolve_provider("openvino")


def test_first_sentence() -> None:
    noise = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input.\nsecond line"
    assert first_sentence(RuntimeError(noise)) == "Got invalid dimensions for input"
    assert first_sentence(ValueError("")) == "ValueError"
    assert str(explain_failure("a.onnx", RuntimeError(noise))) == (
        "a.onnx: ONNX Runtime failed while running it (Got invalid dimensions for input)."
    )
