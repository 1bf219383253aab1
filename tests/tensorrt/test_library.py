"""Which TensorRT is taken of those that are there, and what each is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt
import pytest

from corp_onnx.errors import MissingExtraError, OptionError
from corp_onnx.tensorrt.blueprint import EngineSettings, require_offered
from corp_onnx.tensorrt.library import MODULES, Library, Messages, find_library


class Flags:
    """The builder's flags of a library that takes every precision from the file."""

    TF32 = 1


class ComputeCapability:
    NONE, CURRENT, SM120, SM75, SM86 = range(5)


def rtx() -> Any:
    module: Any = ModuleType("tensorrt_rtx")
    module.__version__, module.BuilderFlag, module.ComputeCapability = "1.7.1", Flags, ComputeCapability
    return module


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (module for modules in MODULES.values() for module in modules):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_rtx_bindings"])
def test_the_one_that_is_there(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, rtx())
    for found in (find_library(), find_library("tensorrt-rtx"), find_library(ahead=True)):
        assert (found.name, found.title) == ("tensorrt-rtx", "TensorRT for RTX 1.7.1")
    with pytest.raises(MissingExtraError, match=r"^TensorRT's Python API is not installed \(no module tensorrt\): pip"):
        find_library("tensorrt")


def test_of_two_the_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.tensorrt("10.16.1.11"))
    assert find_library(ahead=True).name == "tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx())
    assert (find_library().name, find_library(ahead=True).name) == ("tensorrt", "tensorrt-rtx")


def test_none_is_there() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'corp-onnx\[tensorrt-rtx\]'; where only .* --trtexec"):
        find_library()
    sentence = (
        r"^TensorRT for RTX is not installed \(no module tensorrt_rtx or tensorrt_rtx_bindings\): pip install "
        r"'corp-onnx\[tensorrt-rtx\]'; it needs no GPU to build\.$"
    )
    with pytest.raises(MissingExtraError, match=sentence):
        find_library("tensorrt-rtx")


def test_a_name_that_none_has() -> None:
    with pytest.raises(OptionError, match=r"^--library must be tensorrt or tensorrt-rtx; found trt\.$"):
        find_library("trt")  # type: ignore[arg-type]


def test_bindings_that_need_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is missing inside them is not the library that is missing."""
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    (tmp_path / "tensorrt_rtx.py").write_text("import tensorrt_rtx_libs_of_another_place")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sentence = r"^TensorRT for RTX's Python bindings are installed and its libraries are not found \(No module named .*"
    with pytest.raises(MissingExtraError, match=sentence):
        find_library("tensorrt-rtx")


def test_what_each_offers() -> None:
    ten, eleven = (Library("tensorrt", fake_tensorrt.tensorrt(v)) for v in ("10.16.1.11", "11.4.0.106"))
    assert (ten.precisions, eleven.precisions) == ({"FP16", "INT8"}, frozenset())
    assert ten.capabilities == eleven.capabilities == ()
    assert ten.keeps_timings
    ahead = Library("tensorrt-rtx", rtx())
    assert (ahead.precisions, ahead.capabilities) == (frozenset(), ("SM75", "SM86", "SM120"))
    assert not ahead.keeps_timings


def test_what_one_does_not_offer() -> None:
    ahead = Library("tensorrt-rtx", rtx())
    require_offered(EngineSettings(gpus=("SM86", "SM120")), ahead)
    sentence = r"^--gpu: TensorRT for RTX 1\.7\.1 does not build for SM90, H100; it builds for SM75, SM86, SM120\.$"
    with pytest.raises(OptionError, match=sentence):
        require_offered(EngineSettings(gpus=("SM90", "SM86", "H100")), ahead)
    sentence = r"^TensorRT for RTX 1\.7\.1 keeps no timing cache: .* Leave --timing-cache out\.$"
    with pytest.raises(OptionError, match=sentence):
        require_offered(EngineSettings(timing_cache=Path("k.cache")), ahead)


def test_messages_are_cut_to_the_first_reason() -> None:
    assert Messages([], []).describe() == "it gives no reason"
    assert Messages(["a reason. \nmore", "a consequence"], []).describe() == "a reason"
