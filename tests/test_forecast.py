"""What `--plan` foresees is what the run then does, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from samples import OPERATOR, fixture_path, listing, write_photos

from corp_onnx.checks.diet import Diet
from corp_onnx.cli.main import cli
from corp_onnx.errors import InputError, OptionError
from corp_onnx.forecast import Forecast, forecast_model
from corp_onnx.prune import prune_model
from corp_onnx.shelf import Shelf
from corp_onnx.sweep.sweep import find_calibration

MODEL = fixture_path(OPERATOR)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("plan") / "photos", 40)


@pytest.fixture(scope="module")
def foreseen(photos: Path) -> Forecast:
    return forecast_model(MODEL, photos, macs=0.6)


def test_widths_are_those_of_the_run(photos: Path, foreseen: Forecast, tmp_path: Path) -> None:
    done = prune_model(MODEL, photos, tmp_path / "small.onnx", macs=0.6)
    after = {unit.key: unit.width_after for unit in done.units}
    assert any(unit.width_after < unit.width_before for unit in foreseen.units)
    assert all(unit.width_after == after.get(unit.key, unit.width_before) for unit in foreseen.units)
    assert foreseen.merges == done.merges


def test_the_range_is_what_budgets_can_be(photos: Path, foreseen: Forecast) -> None:
    assert 0 < foreseen.smallest < 0.6 < foreseen.whole <= 1
    with pytest.raises(OptionError, match="asks for less than"):
        forecast_model(MODEL, photos, macs=foreseen.smallest - 0.01)


def test_time_from_nothing_is_more_than_from_a_file(foreseen: Forecast) -> None:
    assert 0 < foreseen.seconds_left < foreseen.seconds
    assert foreseen.loss >= 0


def test_where_memory_is_short_solutions_lie_in_a_file(
    photos: Path, foreseen: Forecast, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelves: list[Shelf] = []

    def make(limit: int | None) -> Shelf:
        shelves.append(Shelf(limit))
        return shelves[-1]

    monkeypatch.setattr("corp_onnx.case.choose_diet", lambda *_: Diet(4, 0, 1, 0))
    monkeypatch.setattr("corp_onnx.forecast.Shelf", make)
    monkeypatch.setattr("corp_onnx.shelf.LARGE_BYTES", 1024)
    monkeypatch.setattr("corp_onnx.shelf.CHUNK_BYTES", 2**16)
    assert forecast_model(MODEL, photos, macs=0.6).units == foreseen.units
    assert shelves[0].n_written > 0
    assert shelves[0].n_bytes == 0


@pytest.mark.parametrize(
    "size", [{}, {"preset": "paper"}, {"min_agreement": 0.9}, {"macs": 0.6, "allocate": "uniform"}]
)
def test_sizes_that_need_no_plan(photos: Path, size: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="--plan shares a budget out: give --macs or --params"):
        forecast_model(MODEL, photos, **size)  # type: ignore[arg-type]


def test_on_the_terminal_and_nothing_is_written(photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(cli, ["prune", str(MODEL), "--calib", str(photos), "--macs", "0.6", "--plan"])
    assert result.exit_code == 0, result.exception
    assert "feasible: 4" in result.stdout
    assert "nothing was written." in result.stdout
    assert " -> " in result.stdout
    assert listing(tmp_path) == []


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 0 calibration files"):
        find_calibration(tmp_path)
