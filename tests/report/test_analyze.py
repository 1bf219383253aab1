"""An analysis on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.cli.main import cli


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("analyze")
    photos = write_photos(folder / "photos", 24)
    studies = [word for name in ("depth", "seeds", "shift") for word in ("--study", name)]
    arguments = ["analyze", str(fixture_path(OPERATOR)), "--calib", str(photos), *studies, "--seeds", "2"]
    result = CliRunner().invoke(cli, arguments, prog_name="corp-onnx")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_the_columns_of_the_appendix(printed: str) -> None:
    heads = " ".join(printed.split("───")[0].split())
    assert heads == "effective rank k95 activation MLP dimension rank ratio k95 ratio sparsity"
    assert "0           24" in printed


def test_losses_say_at_which_width(printed: str) -> None:
    assert "(16)" in printed
    assert "lost with this unit alone cut to the width beside it" in printed


def test_studies_say_what_was_cut(printed: str) -> None:
    assert "study of depth: paper, 50% of every MLP and query/key head removed, no refit" in printed
    assert "mean and standard deviation over 2 draws" in printed
    assert "as they are    contrast" in printed


def test_fits_into_eighty_columns(printed: str) -> None:
    rows = [line for line in printed.splitlines() if line.startswith(("─", "0 ", "1 ", "seed", "as they"))]
    assert max(map(len, rows)) <= 80


@pytest.mark.long
def test_a_page_and_plots_of_all_of_it(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 24)
    studies = [word for name in ("depth", "images", "seeds", "shift") for word in ("--study", name)]
    result = CliRunner().invoke(cli, [
        "analyze", str(fixture_path(OPERATOR)), "--calib", str(photos), *studies, "--seeds", "2",
        "--html", str(tmp_path / "page.html"), "--plots", str(tmp_path / "plots"), "--json",
    ])  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    names = {"redundancy", "spectra", "losses", *(f"study-{s['name']}" for s in found["studies"])}
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == names
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= len(names)
    for unit in found["units"]:
        assert f"{unit['rank_ratio']:.1%}" in page
