"""ONNX Runtime as a library: what is missing is said in a sentence, and what it says is made one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples import fixture_path

from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.run import runtime
from corp_onnx.run.runtime import explain_failure, first_sentence, import_runtime, resolve_provider
from corp_onnx.run.sessions import open_session


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expected = r"ONNX Runtime is not installed: pip install 'corp-onnx\[cpu\]', or 'corp-onnx\[gpu\]'"
    with pytest.raises(MissingExtraError, match=expected) as caught:
        import_runtime()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libonnxruntime.so: failed to map segment from shared object: Cannot allocate memory"),
        ModuleNotFoundError("No module named 'numpy._core'", name="numpy._core"),
        SystemError("initialization of onnxruntime_pybind11_state raised unreported exception"),
    ],
)
def test_onnxruntime_that_can_not_be_loaded(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is installed, so to install it is no advice: memory ran out, or half of it is missing."""

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "onnxruntime":
                raise error

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    expected = rf"ONNX Runtime is installed and can not be loaded \({re.escape(str(error))}\): free some memory, or"
    with pytest.raises(MissingExtraError, match=expected):
        import_runtime()


@pytest.mark.long
def test_telemetry_is_off(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 would keep a database and a device id at home, and a file where temporary ones lie."""
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": os.pathsep.join(sys.path)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    program = "import os, sys; from corp_onnx.cli import main; sys.exit(main(sys.argv[1:]))"
    model = str(fixture_path("timm_vit_dynamo23_fused"))
    done = subprocess.run([sys.executable, "-c", program, "inspect", model], env=clean | places, check=False)
    assert done.returncode == 0
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_telemetry_is_off_for_who_imported_it_before(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake = SimpleNamespace(disable_telemetry_events=lambda: calls.append("off"))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert import_runtime() is fake
    assert (calls, os.environ["ORT_DISABLE_TELEMETRY"]) == (["off"], "1")


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
        resolve_provider("directml")
    with pytest.raises(OptionError, match=r"finished files only .* OpenVINOExecutionProvider, and not here\.$"):
        resolve_provider("openvino:bf16")
    has.append("OpenVINOExecutionProvider")
    assert resolve_provider(has[-1]) == has[-1]
    with pytest.raises(OptionError, match=r"is called OpenVINOExecutionProvider\.$"):
        resolve_provider("openvino")
    with pytest.raises(OptionError, match=r"this onnxruntime has: cpu, cuda, tensorrt, OpenVINOExecutionProvider\."):
        resolve_provider("directml")


def test_first_sentence() -> None:
    noise = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input.\nsecond line"
    assert first_sentence(RuntimeError(noise)) == "Got invalid dimensions for input"
    assert first_sentence(ValueError("")) == "ValueError"
    assert str(explain_failure("a.onnx", RuntimeError(noise))) == (
        "a.onnx: ONNX Runtime failed while running it (Got invalid dimensions for input)."
    )


def test_a_silent_fallback_to_the_cpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CUDA's libraries are looked for in NVIDIA's packages before, and what is printed of that is kept back."""
    known = runtime.import_runtime()
    start, asked = known.InferenceSession, list[str]()

    def load() -> None:
        asked.append("libraries")
        sys.stdout.write("Failed to load libcublas.so")

    def fall_back(*given: Any, providers: list[tuple[str, object]], **more: Any) -> Any:
        asked.append(providers[0][0])
        return start(*given, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(known, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(known, "InferenceSession", fall_back)
    monkeypatch.setattr(known, "preload_dlls", load, raising=False)
    runtime.load_cuda.cache_clear()
    sentence = (
        r"^provider 'cuda' could not be started, and ONNX Runtime took CPUExecutionProvider instead; are the libraries "
        r"that CUDAExecutionProvider needs installed \(pip install 'onnxruntime-gpu\[cuda,cudnn\]'\)\?$"
    )
    for _ in range(2):
        with pytest.raises(OptionError, match=sentence):
            open_session(fixture_path("timm_vit_dynamo23_fused"), provider="cuda")
    assert asked == ["libraries", "CUDAExecutionProvider", "CUDAExecutionProvider"]
    assert capsys.readouterr().out == ""
    runtime.load_cuda.cache_clear()


@pytest.mark.parametrize(("exact", "expected"), [(True, {"use_tf32": "0"}), (False, {})])
def test_sums_and_checks_on_a_gpu_keep_every_digit(
    monkeypatch: pytest.MonkeyPatch, exact: bool, expected: dict[str, str]
) -> None:
    """With CUDA's default of 13 bits fewer, checks of a pruned model that is right fail."""
    seen: list[object] = []

    def refuse(*_: object, providers: list[object], **__: object) -> None:
        seen.extend(providers)
        raise RuntimeError

    known = runtime.import_runtime()
    monkeypatch.setattr(known, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(known, "InferenceSession", refuse)
    with pytest.raises(ModelError):
        open_session(fixture_path("timm_vit_dynamo23_fused"), provider="cuda", exact=exact)
    assert seen == [("CUDAExecutionProvider", expected)]
