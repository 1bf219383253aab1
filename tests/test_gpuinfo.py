"""The name of a GPU, from a stand-in for CUDA's driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from corp_onnx.gpuinfo import DRIVER, name_gpu
from corp_onnx.results import describe_environment

NAME = b"NVIDIA Something"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    name_gpu.cache_clear()
    yield
    name_gpu.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, n_devices: int) -> None:
    def name(buffer: Any, size: int, _device: Any) -> int:
        assert size == len(buffer)
        buffer.value = NAME
        return 0

    driver = SimpleNamespace(
        cuInit=lambda _flags: 0, cuDeviceGet=lambda _device, idx: 0 if idx < n_devices else 101, cuDeviceGetName=name
    )

    def load(path: str) -> Any:
        assert path == DRIVER
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1)
    assert name_gpu() == NAME.decode()


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    assert not name_gpu()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str) -> Any:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert not name_gpu()


@pytest.mark.parametrize("provider", ["cuda", "CUDAExecutionProvider", "cpu, tensorrt", "engine"])
def test_figures_of_a_gpu_name_it(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    pretend(monkeypatch, 1)
    assert describe_environment(provider).machine.endswith(f", {NAME.decode()}")
    assert NAME.decode() not in describe_environment("cpu").machine
