"""ONNX Runtime's session with a device of its own, as far as an IO binding goes; it notes what happens."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np


class FakeNative:
    def __init__(self, log: list[str], failure: Exception | None = None) -> None:
        self.log, self.failure = log, failure

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"name": "logits"})()]

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self.log)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        if self.failure is not None:
            raise self.failure
        self.log.append(f"run to {binding.where}")


class FakeBinding:
    def __init__(self, log: list[str]) -> None:
        self.log, self.where = log, ""

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        assert (name, value.device) == ("x", "cuda")

    def bind_output(self, name: str, device: str) -> None:
        assert name == "logits"
        self.where = device

    def synchronize_outputs(self) -> None:
        self.log.append("wait")


class FakeValue:
    """Put a list into `log` with monkeypatch, so that it is gone after the test."""

    log: ClassVar[list[str]] = []

    def __init__(self, device: str) -> None:
        self.device = device

    @staticmethod
    def ortvalue_from_numpy(_array: np.ndarray, device: str, _index: int) -> FakeValue:
        return FakeValue(device)

    def update_inplace(self, _array: np.ndarray) -> None:
        self.log.append("copy")
