"""Runs with and without transfers, on a stand-in for a device."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from devices import FakeNative, FakeValue

from corp_onnx.errors import ModelError
from corp_onnx.run.device import bind_device
from corp_onnx.run.sessions import Session

FEEDS = {"x": np.zeros((2, 3), np.float32)}
SENTENCE = r"^m\.onnx: ONNX Runtime failed while running it \(Failed to allocate memory\)\.$"
FULL = RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory.\nmore")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("onnxruntime.OrtValue", FakeValue)
    monkeypatch.setattr(FakeValue, "log", found)
    return found


def test_what_each_way_of_running_pays_for(log: list[str]) -> None:
    bound = bind_device(Session(FakeNative(log), "m.onnx"), FEEDS, "cuda")
    assert log == []
    bound.run()
    assert log == ["copy", "run to cpu", "wait"]
    log.clear()
    bound.resident()
    assert log == ["run to cuda", "wait"]


def test_a_failing_run_is_a_sentence(log: list[str]) -> None:
    bound = bind_device(Session(FakeNative(log, FULL), "m.onnx"), FEEDS, "cuda")
    for run in (bound.run, bound.resident):
        with pytest.raises(ModelError, match=SENTENCE):
            run()


@pytest.mark.usefixtures("log")
def test_a_device_without_room_for_the_batch_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise FULL

    monkeypatch.setattr("onnxruntime.OrtValue", SimpleNamespace(ortvalue_from_numpy=fail))
    with pytest.raises(ModelError, match=SENTENCE):
        bind_device(Session(FakeNative([]), "m.onnx"), FEEDS, "cuda")
