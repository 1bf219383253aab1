"""A sweep on the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.cli.main import cli
from corp_onnx.report.curves import draw_fractions
from corp_onnx.report.pages.common import read_facts
from corp_onnx.report.parts import Facts
from corp_onnx.report.theme import write_spec
from corp_onnx.sweep import Sweep


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("sweep") / "photos", 24)


def invoke(photos: Path, output: Path, *more: str) -> tuple[str, str]:
    arguments = ["sweep", str(fixture_path(OPERATOR)), "--calib", str(photos), "-o", str(output), *more]
    result = CliRunner().invoke(cli, arguments, prog_name="corp-onnx")
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout, result.stderr


def test_a_table_a_mark_and_one_recommendation(photos: Path, tmp_path: Path) -> None:
    printed, _ = invoke(photos, tmp_path / "s", "--budgets", "0.8,0.1", "--no-merge")
    assert "best-0.8" in printed
    assert printed.count("not made: --macs 0.1 asks for less") == 1
    assert "no point keeps 90% of the answers" in printed
    assert "2 points in" in printed
    assert sorted(p.name for p in (tmp_path / "s").glob("*.svg")) == [
        "curve-held-back-agreement.svg",
        "curve-held-back-kl.svg",
    ]


def test_json_is_the_record(photos: Path, tmp_path: Path) -> None:
    printed, _ = invoke(photos, tmp_path / "s", "--fractions", "0.5", "--targets", "mlp", "--json")
    stored = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert json.loads(printed)["points"] == stored["points"]
    assert [point["name"] for point in stored["points"]] == ["dense", "mlp-compensated-energy-0.5"]


def test_numbers_that_are_none(photos: Path, tmp_path: Path) -> None:
    arguments = ["sweep", str(fixture_path(OPERATOR)), "--calib", str(photos), "-o", str(tmp_path), "--budgets", "half"]
    result = CliRunner().invoke(cli, arguments)
    assert "--budgets takes numbers separated by commas; found half" in str(result.exception)


def test_the_page_shows_the_numbers_of_the_record(photos: Path, tmp_path: Path) -> None:
    invoke(photos, tmp_path / "s", "--budgets", "0.8", "--presets", "best,paper", "--no-merge")
    page = (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    stored = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert "o point keeps 90% of the answers" in page
    for point in stored["points"][1:]:
        assert point["name"] in page
        assert f"{point['kept_macs']:.1%}" in page
    assert page.count("<svg") >= 2


def test_without_the_extra_the_points_are_made_and_it_says_what_is_missing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    _, said = invoke(photos, tmp_path / "s", "--budgets", "0.8", "--no-merge")
    assert (
        "no plots and no page: pages and cards need altair, which is not installed; pip install 'corp-onnx[report]'."
        in said
    )
    assert (tmp_path / "s" / "sweep.csv").is_file()
    assert not list((tmp_path / "s").glob("*.svg"))


@pytest.mark.long
def test_a_figure_is_its_data(photos: Path, tmp_path: Path) -> None:
    invoke(
        photos, tmp_path / "s", "--fractions", "0.25,0.5", "--targets", "mlp,both", "--variants", "compensated,plain"
    )
    result = read_facts(Sweep, Facts(json.loads((tmp_path / "s" / "sweep.json").read_text())))
    spec = write_spec(draw_fractions(result, "agreement", False, 720))
    shown = {(row["point"], row["value"]) for row in list_rows(spec)}
    assert shown == {(p.name, 100 * p.kept.value) for p in result.points if p.kept is not None}
    assert len(spec["hconcat"]) == 2


def list_rows(spec: Any) -> list[dict[str, Any]]:
    """Everything that a specification holds as data."""
    if isinstance(spec, list):
        return [row for part in spec for row in list_rows(part)]
    if not isinstance(spec, dict):
        return []
    own = spec["data"].get("values", []) if isinstance(spec.get("data"), dict) else []
    named = [row for rows in spec.get("datasets", {}).values() for row in rows]
    return [
        *own,
        *named,
        *(row for key, part in spec.items() if key not in ("data", "datasets") for row in list_rows(part)),
    ]
