"""The graphs of tests/fixtures are what the table in tools/fixtures says; read without the exporters."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FIXTURES, TOOLS = ROOT / "tests" / "fixtures", ROOT / "tools"


@pytest.fixture
def tables(monkeypatch):
    """The modules of tools/fixtures that need no PyTorch."""
    monkeypatch.syspath_prepend(TOOLS)
    from fixtures import manifest, rows

    return rows, manifest


@pytest.fixture(scope="module")
def entries():
    return json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))["fixtures"]


def test_the_manifest_says_what_the_table_says(tables, entries) -> None:
    """Row by row and in its order; versions, sizes and errors are of the export."""
    rows, _ = tables
    assert [entry["name"] for entry in entries] == [row.name for row in rows.ROWS]
    for row, entry in zip(rows.ROWS, entries, strict=True):
        assert asdict(row.facts) == entry["expect"], row.name
        for name in ("library", "model", "exporter", "opset", "batch", "runs", "runs_reason", "note", "tolerance"):
            assert getattr(row, name) == entry[name], f"{row.name}: {name}"
        finished_by = entry["options"].get("finished_by", "").partition(" ")[0]
        assert (row.dtype, row.alive, row.finished_by) == (
            entry["options"]["dtype"], entry["options"]["alive"], finished_by), row.name  # fmt: skip
        assert row.keywords.items() <= entry["options"].items(), row.name


def test_every_file_of_the_manifest_is_there_and_no_other(entries) -> None:
    named = {name for entry in entries for name in (entry["file"], *entry["external_data"])}
    assert {path.name for path in FIXTURES.iterdir()} - {"manifest.json", "README.md"} == named


def test_the_readme_is_that_of_the_manifest(tables, entries, tmp_path: Path) -> None:
    """`python tools/export_fixtures.py --table` changes nothing."""
    _, manifest = tables
    manifest.write_table(tmp_path / "README.md", entries)
    assert (tmp_path / "README.md").read_bytes() == (FIXTURES / "README.md").read_bytes()


def test_the_table_calls_functions_that_the_machinery_has(tables) -> None:
    """By their source: the machinery imports PyTorch."""
    rows, _ = tables
    owners = {"build": ("timm_models", "other_models", "handmade"), "finish": ("finish",), "graph": ("handmade",)}
    for part, modules in owners.items():
        known = {name for module in modules for name in functions_of(TOOLS / "fixtures" / f"{module}.py")}
        called = {c.function for row in rows.ROWS if (c := getattr(row, part)) is not None}
        assert called
        assert called <= known


def functions_of(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


def test_rows_are_listed_without_the_exporters(entries) -> None:
    program = [sys.executable, "-c", "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
               "sys.path.insert(0, 'tools'); runpy.run_path(sys.argv[0], run_name='__main__')"]  # fmt: skip
    done = subprocess.run(
        [*program, "tools/export_fixtures.py", "--list"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [entry["name"] for entry in entries]
