"""Budgets of time from the command line: what is measured, kept, read again, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from samples import FIXED, OPERATOR, fixture_path, write_photos

from corp_onnx.cli import main
from corp_onnx.latency import measure, parts, stopwatch
from corp_onnx.latency.turns import Schedule

Run = pytest.CaptureFixture[str]

FASTER = "1.0001"
"""As fast as any cut is: these graphs take microseconds, and a test asks nothing of the clock."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 24)
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    shutil.copy(fixture_path(FIXED), tmp_path / "fixed.onnx")
    for module, name in ((measure, "WHOLE"), (parts, "PARTS"), (stopwatch, "TRIAL")):
        monkeypatch.setattr(module, name, Schedule(repeats=3, warmup=1))
    return tmp_path


def prune(*options: str, model: str = "vit.onnx") -> int:
    return main(["prune", model, "--calib", "photos", "-o", "small.onnx", "--align", "2", "--force", *options])


def spoil(path: Path, **place: object) -> None:
    table = json.loads(path.read_text())
    table["place"] |= place
    path.write_text(json.dumps(table))


def by_macs(path: Path) -> None:
    """A table that any clock agrees with: everything that can be cut takes nearly all of the time."""
    table = json.loads(path.read_text())
    table |= {"whole": table["dense"], "merge": 0.0, "token_gain": 1.0}
    for unit in table["units"].values():
        full = table["dense"] / len(table["units"])
        unit["seconds"] = [full * width / unit["widths"][-1] for width in unit["widths"]]
    path.write_text(json.dumps(table))


class TestTables:
    @pytest.mark.long
    def test_a_table_is_written_and_read_again(self, folder: Path, capfd: Run) -> None:
        code = prune("--speedup", FASTER, "--times", "t.json", "--no-merge")
        said = capfd.readouterr()
        if code != 0:  # a clock of microseconds may say that no width is faster
            assert code == 2
            assert "times as fast is more than pruning can reach" in said.err
            assert not (folder / "t.json").exists()
            pytest.skip("on this machine no cut of this graph is faster")
        table = json.loads((folder / "t.json").read_text())
        assert table["place"]["batch"] == 1
        by_macs(folder / "t.json")
        spoil(folder / "t.json", machine="elsewhere")
        kept = (folder / "t.json").read_bytes()
        assert prune("--speedup", "1.2", "--times", "t.json", "--no-merge") == 0
        said = capfd.readouterr()
        assert "by the table 1.20 times as fast as the dense model (asked: 1.2 times)" in said.out
        assert "was not measured: the times are of another machine" in said.err
        assert (folder / "t.json").read_bytes() == kept
        report = json.loads((folder / "small.report.json").read_text())
        assert report["speed"]["measured"] is None
        assert "elsewhere" in report["speed"]["place"]

    def test_batch_and_threads_are_those_of_the_table(self, folder: Path, capfd: Run) -> None:
        write_table(folder / "t.json")
        assert prune("--speedup", "1.2", "--times", "t.json", "--at-batch", "8") == 2
        assert "--at-batch 8: --times t.json was measured with 1" in capfd.readouterr().err
        assert prune("--speedup", "1.2", "--times", "t.json", "--at-threads", "3") == 2
        assert "was measured with every core" in capfd.readouterr().err


def write_table(path: Path) -> None:
    """Of the fixture, without measuring: by hand."""
    units = {
        f"blocks.{block}.{name}": {"widths": [2, width], "seconds": [0.001, 0.01]}
        for block in range(2)
        for name, width in (("mlp", 24), ("attn.qk", 10), ("attn.vo", 10))
    }
    place = {"machine": "m", "provider": "CPUExecutionProvider", "runtime": "r", "batch": 1, "threads": None}
    path.write_text(
        json.dumps(
            {"schema": 1, "place": place, "dense": 0.1, "whole": 0.1, "merge": 0.0, "token_gain": 1.0, "units": units}
        )
    )


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (["--speedup", "0.5"], "--speedup is how many times as fast and must be above 1; found 0.5."),
            (["--latency", "fast"], "--latency is a time, as in 12ms or 0.5s; found fast."),
            (["--latency", "-1ms"], "--latency is a time, as in 12ms, and must be above 0"),
            (["--speedup", "2", "--macs", "0.5"], "exclude each other"),
            (["--macs", "0.5", "--at-batch", "4"], "--at-batch goes with --speedup or --latency"),
            (["--macs", "0.5", "--times", "t.json"], "--times goes with --speedup or --latency"),
            (["--speedup", "2", "--preset", "paper"], "the paper's method takes fractions"),
            (["--speedup", "100"], "100 times as fast is more than pruning can reach on this model here"),
            (["--latency", "10s"], "so nothing has to go; ask for less"),
        ],
    )
    def test_what_can_not_be_is_said(self, folder: Path, capfd: Run, options: list[str], sentence: str) -> None:
        assert prune(*options) == 2
        assert sentence in capfd.readouterr().err
        assert not list(folder.glob("small*"))

    def test_a_file_that_is_no_table(self, folder: Path, capfd: Run) -> None:
        (folder / "t.json").write_text("{}")
        assert prune("--speedup", "1.2", "--times", "t.json") == 2
        assert "is no table of times that prune wrote" in capfd.readouterr().err
        (folder / "small.onnx").mkdir()
        assert prune("--speedup", "1.2", "--times", "t.json") == 2

    @pytest.mark.usefixtures("folder")
    def test_a_fixed_batch_decides(self, capfd: Run) -> None:
        assert prune("--speedup", "1.2", "--at-batch", "4", model="fixed.onnx") == 2
        assert "takes 1 at a time; leave it out" in capfd.readouterr().err
