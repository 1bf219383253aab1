"""--force over what an earlier run wrote, and a source that changes under a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from samples import EXTERNAL, OPERATOR, fixture_path, listing, write_photos

from corp_onnx import prune as stages
from corp_onnx.cli import main
from corp_onnx.precision import convert as conversion

Run = pytest.CaptureFixture[str]
DATA = f"{EXTERNAL}.onnx.data"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a model with its weights inside, one with them beside, and photos/."""
    shutil.copy(fixture_path(OPERATOR), tmp_path / "inside.onnx")
    shutil.copy(fixture_path(EXTERNAL), tmp_path / "beside.onnx")
    shutil.copy(fixture_path(EXTERNAL).with_name(DATA), tmp_path / DATA)
    write_photos(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(verb: str, model: str, output: str = "o.onnx") -> list[str]:
    options = ["--calib", "photos", "--preset", "paper"] if verb == "prune" else ["--int8", "dynamic"]
    return [verb, model, *options, "-o", output, "--force"]


def outputs(folder: Path) -> list[str]:
    return [name for name in listing(folder) if name.startswith("o.")]


def test_weights_beside_are_replaced(folder: Path, capfd: Run) -> None:
    """In the working directory, where onnx refuses a file of that name."""
    for _ in range(2):
        assert main(command("prune", "beside.onnx")) == 0, capfd.readouterr().err
        assert outputs(folder) == ["o.onnx", "o.onnx.data", "o.report.json"]
        onnx.checker.check_model("o.onnx")


@pytest.mark.parametrize("verb", ["prune", "convert"])
def test_weights_of_an_earlier_run_go_with_it(verb: str, folder: Path, capfd: Run) -> None:
    assert main(command("prune", "beside.onnx")) == 0, capfd.readouterr().err
    assert main(command(verb, "inside.onnx")) == 0, capfd.readouterr().err
    assert outputs(folder) == ["o.onnx", "o.report.json"]
    onnx.checker.check_model("o.onnx")


def test_a_file_that_the_earlier_model_does_not_name_stays(folder: Path, capfd: Run) -> None:
    shutil.copy("inside.onnx", "o.onnx")
    (folder / "o.onnx.data").write_text("theirs")
    assert main(command("convert", "inside.onnx")) == 0, capfd.readouterr().err
    assert (folder / "o.onnx.data").read_text() == "theirs"


def test_a_failing_run_leaves_the_earlier_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Run) -> None:
    """They come back when they were the last to go."""
    assert main(command("prune", "beside.onnx")) == 0
    before = {name: (folder / name).read_bytes() for name in outputs(folder)}
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if self.name == "o.onnx.data":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(command("convert", "inside.onnx")) == 130
    assert {name: (folder / name).read_bytes() for name in outputs(folder)} == before
    capfd.readouterr()


@pytest.mark.long
@pytest.mark.parametrize("verb", ["prune", "convert"])
@pytest.mark.parametrize(
    ("model", "changed"), [("inside.onnx", "inside.onnx"), ("beside.onnx", "beside.onnx"), ("beside.onnx", DATA)]
)
@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_source_that_changes_under_the_run(
    verb: str, model: str, changed: str, how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Run
) -> None:
    """At the very end: what was read and what would be described are not the same file any more."""
    room, moment = (stages, "to_json") if verb == "prune" else (conversion, "_describe")
    real = getattr(room, moment)

    def meddle(*args: object) -> object:
        Path("photos/000.png").replace(changed) if how == "replaced" else Path(changed).unlink()
        return real(*args)

    monkeypatch.setattr(room, moment, meddle)
    assert main(command(verb, model)) == 2
    sentence = (
        f"corp-onnx: {model}: was replaced or changed while the run read it, so nothing was written; run it again"
    )
    assert sentence in capfd.readouterr().err
    assert outputs(folder) == []
