"""Progress without a terminal: plain lines, also where a stage runs more than once."""

from __future__ import annotations

import pytest

from corp_onnx.cli import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False, raising=False)
    return now


def test_stage_that_begins_again_is_counted_anew(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.show_progress() as progress:
        for _ in range(2):
            for done in range(1, 25):
                clock[0] += 2.0
                progress("refit", done, 24)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "refit: 6/24 units, 0.5 units/s, 36 s left"
    assert lines.count("refit: 24/24 units, 0.5 units/s") == 2


def test_short_stage_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.show_progress() as progress:
        for done in range(8, 65, 8):
            clock[0] += 0.1
            progress("calibrate", done, 64)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stage", "things"),
    [
        ("bench cpu, batch 8", "rounds"),
        ("engine: Building Engine", "steps"),
        ("probe", "units"),
        ("calibrate", "images"),
    ],
)
def test_what_a_stage_counts(stage: str, things: str, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.show_progress() as progress:
        progress(stage, 1, 3)
        clock[0] += 20.0
        progress(stage, 2, 3)
    assert capsys.readouterr().err == f"{stage}: 2/3 {things}, 0.1 {things}/s, 20 s left\n"
