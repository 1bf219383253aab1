"""`corp-onnx bench` as a person meets it: options, tables and JSON on stdout, one sentence for every error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from samples import FIXED, OPERATOR, TEXT, fixture_path, run_cli

from corp_onnx.cli import main

Run = pytest.CaptureFixture[str]
FAST = ("--provider", "cpu", "--threads", "1", "--repeats", "3", "--warmup", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: the same model under two names."""
    for name in ("dense.onnx", "small.onnx"):
        shutil.copy(fixture_path(OPERATOR), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
class TestOutput:
    def test_json_says_how_it_was_measured(self, capfd: Run) -> None:
        assert main(["bench", "dense.onnx", "small.onnx", "--batch", "2,1", *FAST, "--seed", "7", "--json"]) == 0
        out, err = capfd.readouterr()
        found = json.loads(out)
        assert [(r["model"], r["batch"]) for r in found["rows"]] == [
            ("dense.onnx", 2), ("small.onnx", 2), ("dense.onnx", 1), ("small.onnx", 1)
        ]  # fmt: skip
        assert found["schedule"] == {"repeats": 3, "seconds": 10.0, "warmup": 1, "seed": 7}
        assert found["session"]["threads"] == found["environment"]["threads"] == 1
        assert found["session"]["config"] == {"session.force_spinning_stop": "1"}
        assert found["models"][0]["sha256"] == found["models"][1]["sha256"]
        assert found["rows"][1]["ideal"] == 1.0
        assert err == ""

    def test_a_table_for_each_batch(self, capfd: Run) -> None:
        assert main(["bench", "dense.onnx", "small.onnx", *FAST]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("cpu")] == [
            "cpu, batch 1, 3 rounds",
            "cpu, batch 8, 3 rounds",
        ]
        assert [line.split()[0] for line in lines if " of 1.00" in line] == ["small.onnx"] * 2
        assert "dense.onnx is float32, small.onnx is float32" in lines
        assert ", 1 round of warm-up; " in lines[-1]
        assert " 1 thread, graph optimisation all, sequential; " in lines[-1]

    def test_a_fixed_batch_is_said(self, capfd: Run) -> None:
        assert main(["bench", str(fixture_path(FIXED)), *FAST]) == 0
        assert f"{fixture_path(FIXED)} has a fixed batch of 1, so it is measured there." in capfd.readouterr().out

    @pytest.mark.long
    def test_as_a_process(self, folder: Path) -> None:
        done = run_cli("bench", "dense.onnx", *FAST, "--batch", "2", cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("cpu, batch 2, 3 rounds\n")


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ("dense.onnx --batch 0", "expected numbers of images separated by commas, as in 1,8; found '0'"),
            ("dense.onnx --batch 1,x", "found '1,x'"),
            ("dense.onnx --batch ,", "found ','"),
            ("dense.onnx --repeats 5 --seconds 2", "both say how long to measure; give one of them"),
            ("dense.onnx --seconds 0", "--seconds must be a positive number; found 0"),
            ("dense.onnx --provider cpu,npu", "provider 'npu' is not available here; this onnxruntime has: cpu"),
            ("nothing.onnx", "nothing.onnx: no such file. Give the path of an .onnx file"),
            (".", ".: is a folder. Give the path of an .onnx file"),
            ("cut.onnx", "cut.onnx: ONNX Runtime can not load it"),
            ("cut.plan", "TensorRT"),
            ("dense.onnx text.onnx", "dense.onnx takes [batch, 3, 8, 8] and text.onnx takes [batch, 16] and"),
        ],
    )
    def test_a_sentence_and_exit_code_2(self, arguments: str, sentence: str, folder: Path, capfd: Run) -> None:
        (folder / "cut.onnx").write_bytes(fixture_path(OPERATOR).read_bytes()[:9000])
        (folder / "cut.plan").write_bytes(b"ftrt")
        shutil.copy(fixture_path(TEXT), folder / "text.onnx")
        assert main(["bench", *arguments.split()]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert sentence in err
        assert "Traceback" not in err
