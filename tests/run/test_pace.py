"""How many calls of a session run side by side: never more images at a time than were asked for."""

from __future__ import annotations

import pytest

from corp_onnx.run.pace import Pace, choose_pace


@pytest.mark.parametrize(
    ("cores", "batch_size", "fixed", "expected"),
    [
        (1, 8, None, Pace(1, 8, None, 1)),
        (2, 8, None, Pace(2, 4, 1, 2)),
        (2, 1, None, Pace(1, 1, None, 1)),
        (2, 8, 1, Pace(2, 1, 1, 8)),
        (2, 8, 8, Pace(1, 8, None, 1)),
        (2, 8, 16, Pace(1, 16, None, 1)),
        (4, 8, 3, Pace(2, 3, 2, 2)),
        (16, 8, None, Pace(4, 2, 4, 4)),
    ],
)
def test_pace(cores: int, batch_size: int, fixed: int | None, expected: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert choose_pace(batch_size, fixed) == expected


def test_a_device_takes_one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("corp_onnx.run.pace.resolve_provider", lambda _: "CUDAExecutionProvider")
    assert choose_pace(8, None, "cuda") == Pace(1, 8, None, 1)
