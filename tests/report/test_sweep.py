"""A sweep on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.cli.main import cli


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("sweep") / "photos", 24)


def invoke(photos: Path, output: Path, *more: str) -> tuple[str, str]:
    arguments = ["sweep", str(fixture_path(OPERATOR)), "--calib", str(photos), "-o", str(output), *more]
    result = CliRunner().invoke(cli, arguments, prog_name="corp-onnx")
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout, result.stderr


def test_a_table_a_mark_and_one_recommendation(photos: Path, tmp_path: Path) -> None:
    printed, progress = invoke(photos, tmp_path / "s", "--budgets", "0.8,0.1", "--no-merge")
    assert "best-0.8" in printed
    assert printed.count("not made: --macs 0.1 asks for less") == 1
    assert "no point keeps 90% of the answers" in printed
    assert "2 points in" in printed
    assert "point" in progress


def test_json_is_the_record(photos: Path, tmp_path: Path) -> None:
    printed, _ = invoke(photos, tmp_path / "s", "--fractions", "0.5", "--targets", "mlp", "--json")
    stored = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert json.loads(printed)["points"] == stored["points"]
    assert [point["name"] for point in stored["points"]] == ["dense", "mlp-compensated-energy-0.5"]


def test_numbers_that_are_none(photos: Path, tmp_path: Path) -> None:
    arguments = ["sweep", str(fixture_path(OPERATOR)), "--calib", str(photos), "-o", str(tmp_path), "--budgets", "half"]
    result = CliRunner().invoke(cli, arguments)
    assert "--budgets takes numbers separated by commas; found half" in str(result.exception)
