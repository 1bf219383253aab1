"""Progress as a person sees it: in words, in lines where there is no terminal."""

from __future__ import annotations

import re
import time

import pytest

from corp_onnx.cli import console
from corp_onnx.progress import Moment, Phase


def moment(**changes: object) -> Moment:
    values = {"stage": "calibrate", "done": 120, "total": 448, "things": "images", "seconds": 20.0} | {
        "stage_seconds": 12.0, "left": 80.0,
    } | changes  # fmt: skip
    return Moment(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "calibrate: 120 of 448 images, 10.0 images/s; 20% of the run, about 80 s left"),
        ({"left": None}, "calibrate: 120 of 448 images, 10.0 images/s"),
        ({"left": None, "total": 0, "done": 0, "stage": "load"}, "load ..."),
        ({"done": 0}, "calibrate: 0 of 448 images; 20% of the run, about 80 s left"),
        ({"total": 0, "done": 0, "stage": "verify"}, "verify; 20% of the run, about 80 s left"),
        ({"stage": "refit 2 of at most 3", "done": 3, "total": 24, "things": "units", "left": 180.0},
         "refit 2 of at most 3: 3 of 24 units, 4.0 s each; 10% of the run, about 3 min left"),
    ],
)  # fmt: skip
def test_where_a_run_is(changes: dict[str, object], line: str) -> None:
    assert console.describe_moment(moment(**changes)) == line


def test_a_slow_phase_never_goes_at_no_units_a_second() -> None:
    slow = console.describe_phase(moment(done=1, total=24, things="units", stage_seconds=40.0))
    assert slow == "calibrate: 1 of 24 units, 40.0 s each"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"), (36000, "10 h 0 min")],
)
def test_times_as_people_say_them(seconds: float, said: str) -> None:
    assert console.spell_seconds(seconds) == said


class TestLines:
    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(console, "PLAIN_SECONDS", 0.02)

    def test_one_every_while_also_where_nothing_is_counted(self, capsys: pytest.CaptureFixture[str]) -> None:
        with console.show_progress() as run:
            run.plan([Phase("calibrate", 1), Phase("verify", 1)])
            with run.enter("calibrate", 4) as count:
                count(4)
            with run.enter("verify"):
                time.sleep(0.2)
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert len(lines) >= 3
        assert all(re.fullmatch(r"verify; \d+% of the run, about \d+ s left", line) for line in lines[1:]), lines

    def test_nothing_is_said_between_phases_and_behind_the_last(self, capsys: pytest.CaptureFixture[str]) -> None:
        with console.show_progress() as run:
            with run.enter("load"):
                pass
            time.sleep(0.1)
        time.sleep(0.1)
        assert capsys.readouterr().err == ""

    def test_an_interrupt_ends_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(KeyboardInterrupt), console.show_progress() as run, run.enter("load"):
            raise KeyboardInterrupt
        time.sleep(0.1)
        assert capsys.readouterr().err == ""

    def test_nobody_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise BrokenPipeError

        monkeypatch.setattr(console.click, "echo", refuse)
        with console.show_progress() as run, run.enter("load"):
            time.sleep(0.1)


def test_short_runs_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.show_progress() as run, run.enter("calibrate", 16) as count:
        count(16)
    assert capsys.readouterr().err == ""
