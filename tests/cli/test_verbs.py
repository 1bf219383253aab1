"""What every verb prints and where: results on stdout, the rest on stderr, `--json` equal to the Python function."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import pytest
from samples import GUESS, OPERATOR, fixture_path, listing, paper, run_cli, write_photos

import corp_onnx
from corp_onnx.cli import main
from corp_onnx.cli.main import cli
from corp_onnx.cli.verbs import SHORT_HELP, VerbGroup, Verbs
from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import open_images
from corp_onnx.inspect import inspect_model
from corp_onnx.prune import prune_model
from corp_onnx.results import to_json
from corp_onnx.settings import PAPER, Budget, Fractions, Method

Run = pytest.CaptureFixture[str]
PRUNE = ("prune", "vit.onnx", "--calib", "photos", "--preset", "paper")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model and photographs."""
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    write_photos(tmp_path / "photos", 16)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestInspect:
    @pytest.mark.usefixtures("folder")
    def test_json_is_the_result_of_the_function(self, capfd: Run) -> None:
        assert main(["inspect", "vit.onnx", "--json"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out) == json.loads(to_json(inspect_model("vit.onnx")))
        assert err == ""

    def test_writes_nothing(self, folder: Path, capfd: Run) -> None:
        before = listing(folder)
        assert main(["inspect", "vit.onnx"]) == 0
        assert listing(folder) == before
        assert capfd.readouterr().err == ""


class TestPrune:
    def test_json_is_the_report_and_the_result_of_the_function(self, folder: Path, capfd: Run) -> None:
        assert main([*PRUNE, "-o", "small.onnx", "--json"]) == 0
        out, err = capfd.readouterr()
        printed = json.loads(out)
        assert printed == json.loads((folder / "small.report.json").read_text(encoding="utf-8"))
        result = prune_model("vit.onnx", "photos", "again.onnx", settings=paper())
        assert comparable(printed) == comparable(json.loads(to_json(result)))
        assert (folder / "small.onnx").read_bytes() == (folder / "again.onnx").read_bytes()
        warned = [line for line in err.splitlines() if not line.startswith("memory: ")]
        assert warned == [f"warning: {w}" for w in printed["warnings"]]

    def test_options_reach_the_settings(self, folder: Path, capfd: Run) -> None:
        options = (
            "--mlp 0.25 --attn 0.75 --rank magnitude --ridge 0.01 --no-compensation --images 10 --batch 3 --seed 5 "
            "--resize 9 --interpolation bilinear --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --json "
            "-o o.onnx --report r.json"
        )
        assert main([*PRUNE, *options.split()]) == 0
        found = json.loads(capfd.readouterr().out)
        method = replace(PAPER, widths=Fractions(0.25, 0.75), rank="magnitude", ridge=0.01, compensate=False)
        assert found["settings"]["method"] == json.loads(json.dumps(asdict(method)))
        assert (found["settings"]["n_images"], found["settings"]["batch_size"], found["settings"]["seed"]) == (10, 3, 5)
        assert found["calibration"]["n_images"] + found["calibration"]["n_held_out"] == 10
        recipe = found["calibration"]["recipe"]
        assert (recipe["resize"], recipe["interpolation"]) == (9, "bilinear")
        assert (recipe["mean"], recipe["std"]) == ([0.5] * 3, [0.25] * 3)
        assert listing(folder)[0] == "o.onnx"
        assert found["report_path"] == "r.json"

    def test_files_left_out_are_named_on_stderr_and_the_run_goes_on(self, folder: Path, capfd: Run) -> None:
        good = folder / "photos" / "000.png"
        (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + good.read_bytes()[:40])
        (folder / "photos" / "notes.txt").write_text("no image")
        assert main([*PRUNE, "--json"]) == 0
        out, err = capfd.readouterr()
        found = json.loads(out)
        assert found["calibration"]["n_images"] + found["calibration"]["n_held_out"] == 16
        assert {name for name, _ in found["calibration"]["skipped"]} == {"broken.jpg", "notes.txt"}
        assert "warning: 2 files gave no image and were left out: " in err
        assert "notes.txt (not an image)" in err
        assert "broken.jpg (" in err

    @pytest.mark.usefixtures("folder")
    def test_no_warning_on_stdout(self, capfd: Run) -> None:
        assert main([*PRUNE]) == 0
        out, err = capfd.readouterr()
        assert "warning" not in out
        assert [line for line in err.splitlines() if not line.startswith("memory: ")] == [
            "warning: only 13 calibration images; a few hundred give a better model.",
            "warning: only 3 images, held back from the others, say how good the model still is; 500 images in all "
            "would leave 100.",
            f"warning: {GUESS}",
        ]
        assert out.splitlines()[-1] == "report: vit.pruned.report.json"

    @pytest.mark.usefixtures("folder")
    def test_default_preset_and_a_budget(self, capfd: Run) -> None:
        """The default method on the same folder: under the budget, with its report."""
        assert main(["prune", "vit.onnx", "--calib", "photos", "--macs", "0.8", "--align", "2", "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        method = Method(widths=Budget("macs", 0.8), align=2)
        assert found["settings"]["method"] == json.loads(json.dumps(asdict(method)))
        assert found["pruned"]["macs"] <= 0.8 * found["dense"]["macs"]
        assert all(check["passed"] for check in found["checks"])

    @pytest.mark.usefixtures("folder")
    def test_budget_that_unread_tokens_meet_alone(self, capfd: Run) -> None:
        """They are 34 % of this small model: no unit is cut, and no empty table is shown."""
        assert main(["prune", "vit.onnx", "--calib", "photos", "--macs", "0.7"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0].split() == ["dense", "pruned", "kept"]
        assert any(line.startswith("pruned 0 of 6 units (left whole: ") for line in lines)
        assert any("saves 34.2% of the dense MACs and changes no answer." in line for line in lines)


def comparable(report: dict[str, Any]) -> dict[str, Any]:
    """A report without its own time, memory and file names."""
    own = ("stages", "peak_memory_bytes", "expected_memory_bytes", "report_path", "command")
    kept = {k: v for k, v in report.items() if k not in own}
    return kept | {"pruned": {k: v for k, v in report["pruned"].items() if k != "path"}}


class TestEvaluate:
    @pytest.mark.usefixtures("folder")
    def test_json_is_the_result_of_the_function(self, capfd: Run) -> None:
        assert main([*PRUNE, "-o", "small.onnx"]) == 0
        capfd.readouterr()
        assert main(["evaluate", "small.onnx", "--images", "photos", "--reference", "vit.onnx", "--json"]) == 0
        out, err = capfd.readouterr()
        expected = evaluate_models(["small.onnx"], open_images("photos", labels="folders"), reference="vit.onnx")
        assert json.loads(out) == json.loads(expected.to_json())
        assert json.loads(out) == json.loads(evaluate_models(["small.onnx"], "photos", reference="vit.onnx").to_json())
        lines = err.splitlines()
        assert lines[0].startswith("warning: only 16 images say how good the models are, and intervals are wide")
        assert lines[1].startswith("warning: preprocessing: guessed (ImageNet, 8) when the model was pruned; give --p")
        assert lines[2] == "warning: no top-1 and top-5: 000.png lies in no class folder of photos."
        assert len(lines) == 3

    def test_damaged_files_are_one_warning(self, folder: Path, capfd: Run) -> None:
        for i in range(5):
            (folder / "photos" / f"note{i}.txt").write_text("no image")
        shutil.copy("vit.onnx", "same.onnx")
        assert main(["evaluate", "vit.onnx", "--images", "photos", "--reference", "same.onnx", "--json"]) == 0
        out, err = capfd.readouterr()
        assert len(json.loads(out)["skipped"]) == 5
        (damaged,) = (line for line in err.splitlines() if "no image" in line)
        assert damaged.startswith("warning: 5 files gave no image and were left out: note0.txt (not an image), ")
        assert damaged.endswith(" and 2 more.")

    @pytest.mark.usefixtures("folder")
    def test_quantised_models_take_preprocessing_options(self, capfd: Run) -> None:
        """They can not be pruned, but they can be evaluated."""
        shutil.copy(fixture_path("timm_vit_ts17_qdq"), "int8.onnx")
        options = ["--reference", "vit.onnx", "--crop-pct", "1", "--json"]
        assert main(["evaluate", "int8.onnx", "--images", "photos", *options]) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["scores"][0]["recipe"]["crop_pct"] == 1


class TestEntry:
    def test_version(self, capfd: Run) -> None:
        assert main(["--version"]) == 0
        assert capfd.readouterr().out == f"corp-onnx, version {corp_onnx.__version__}\n"

    @pytest.mark.parametrize("arguments", [[], ["-h"]])
    def test_without_arguments_help_is_shown(self, arguments: list[str], capfd: Run) -> None:
        code = main(arguments)
        out, err = capfd.readouterr()
        assert "Usage: corp-onnx" in out + err
        assert re.search(r"prune +Make a model smaller", out + err)
        assert code == (0 if arguments else 2)

    def test_as_a_process(self, folder: Path) -> None:
        done = run_cli("inspect", "vit.onnx", "--json", cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["n_blocks"] == 2
        done = run_cli("inspect", "nothing.onnx", cwd=folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "corp-onnx: nothing.onnx: no such file. Give the path of an .onnx file.\n"


class TestLoading:
    def test_every_verb_is_found_under_its_name(self) -> None:
        """And says in its line what `--help` says of it without loading it."""
        verbs = Verbs()
        assert sorted(verbs) == sorted(SHORT_HELP)
        for name, command in verbs.items():
            assert command.name == name
            assert command.get_short_help_str(200) == SHORT_HELP[name]
            assert SHORT_HELP[name].endswith(".")
        assert "none" not in verbs
        assert cli.get_command(click.Context(cli), "none") is None
        with pytest.raises(KeyError):
            verbs["none"]

    def test_a_verb_is_completed_without_loading_one(self) -> None:
        group = VerbGroup("corp-onnx", commands=Verbs())
        found = group.shell_complete(click.Context(group), "e")
        assert [(item.value, item.help) for item in found] == [
            (name, SHORT_HELP[name]) for name in ("engine", "evaluate", "export")
        ]
        assert [item.value for item in group.shell_complete(click.Context(group), "--he")] == ["--help"]
        assert not vars(group.commands)["_loaded"]

    @pytest.mark.parametrize(
        ("words", "loaded"),
        [("--help", set[str]()), ("--version", set[str]()), ("prone", set[str]()), ("inspect --help", {"inspect"})],
    )
    def test_nothing_is_loaded_that_is_not_asked_for(self, words: str, loaded: set[str]) -> None:
        """Neither NumPy, nor another verb."""
        program = (
            "import contextlib, sys\n"
            "from corp_onnx.cli import main\n"
            f"main({words.split()!r})\n"
            "print(sorted(m for m in sys.modules if m == 'numpy' or m.startswith('corp_onnx.cli.')), file=sys.stderr)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        found = set(re.findall(r"'(numpy|corp_onnx\.cli\.\w+)'", done.stderr.splitlines()[-1]))
        verbs = {name.rpartition(".")[2] for name in found} & SHORT_HELP.keys()
        assert verbs == loaded
        assert ("numpy" in found) == bool(loaded)
