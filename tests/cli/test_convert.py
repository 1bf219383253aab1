"""`corp-onnx convert`: what it prints, and one sentence for each thing a person can get wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from samples import FIXED, GUESS, OPERATOR, fixture_path, listing, write_photos

from corp_onnx.cli import main
from corp_onnx.precision.convert import ConvertSettings, convert_model
from corp_onnx.results import to_json

Run = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a model and photographs."""
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    write_photos(tmp_path / "photos", 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_static_in_words(folder: Path, capfd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corp_onnx.precision.processor.has_whole_sums", lambda: True)
    assert main(["convert", "vit.onnx", "--int8", "static", "--calib", "photos", "--keep-float", "1"]) == 0
    out, err = capfd.readouterr()
    assert err == f"warning: {GUESS}\n"
    lines = out.splitlines()
    assert re.fullmatch(r"vit\.onnx: \d+\.\d MB in float32 -> \d+\.\d MB \(\d+\.\d%\)", lines[0])
    how = "int8, static, int8 activations, scales from 9 images by percentile"
    assert re.fullmatch(how + r": 8 of 12 products, \d+\.\d% of the multiply-accumulates", lines[1])
    assert lines[2].startswith("  float32: 1 Conv (an integer convolution is slower on a CPU")
    assert lines[3].startswith("  float32: 2 Attention (its products have no weights")
    assert re.fullmatch(
        r"  float32: \w+ '.+' \(among the most sensitive: alone it moves the answers by \S+\)", lines[4]
    )
    assert re.match(
        r"on 3 images: agreement \d+\.\d% \[\d+\.\d, \d+\.\d\], KL \d\.\d{4}, error \d+\.\d%, answers off by at most",
        lines[5],
    )
    assert lines[6].startswith("checks passed: loading, structure, signature, answers; ")
    assert lines[7:] == ["converted -> vit.int8.onnx"]
    assert "vit.int8.onnx" in listing(folder)


@pytest.mark.usefixtures("folder")
def test_fp16_in_words(capfd: Run) -> None:
    assert main(["convert", "vit.onnx", "--fp16", "--io", "float16"]) == 0
    out, _ = capfd.readouterr()
    assert (
        "float16, inputs and outputs float16\n  float32: 5 LayerNormalization\non 4 rows of noise: answers off" in out
    )


@pytest.mark.usefixtures("folder")
def test_a_fixed_batch_of_one_is_one_row(capfd: Run) -> None:
    assert main(["convert", str(fixture_path(FIXED)), "--fp16", "-o", "a.onnx"]) == 0
    assert "\non 1 row of noise: answers off by" in capfd.readouterr().out


@pytest.mark.usefixtures("folder")
def test_json_is_the_result_of_the_function(capfd: Run) -> None:
    assert main(["convert", "vit.onnx", "--int8", "dynamic", "-o", "a.onnx", "--images", "photos", "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    settings = ConvertSettings("int8-dynamic")
    expected = json.loads(to_json(convert_model("vit.onnx", "b.onnx", settings=settings, images="photos")))
    for found in (printed, expected):
        found.pop("stages")
        found.pop("command")
        found["converted"].pop("path")
    assert printed == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("", r"give --fp16, --int8 dynamic\|static, or --int8 static with --fp16; found neither"),
        (
            "--fp16 --int8 dynamic",
            r"--fp16 beside --int8 goes with --int8 static; --int8 dynamic leaves the rest in float32",
        ),
        ("--int8 static", r"--int8 static measures on images: give --calib"),
        ("--int8 static --calib nowhere", r"nowhere: no such folder or file; give a folder of images"),
        ("--int8 dynamic --calib photos", r"--calib is for --int8 static and --keep-float"),
        ("--int8 dynamic --io float16", r"--io float16 goes with --fp16"),
        ("--fp16 -o vit.onnx --force", r"vit\.onnx: is the model itself; give another -o"),
        ("--fp16 -o half.ort", r"needs a name that ends in \.onnx"),
        ("--fp16 -o photos/a.onnx/b.onnx", r"photos/a\.onnx is not a folder; give another -o"),
        ("--fp16 --images nowhere", r"nowhere: no such folder or file; give a folder of images"),
    ],
)
def test_wrong_use(options: str, sentence: str, folder: Path, capfd: Run) -> None:
    shutil.copy("vit.onnx", "photos/a.onnx")
    before = listing(folder)
    assert main(["convert", "vit.onnx", *options.split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(sentence, err), err
    assert err.startswith("corp-onnx: ")
    assert err.count("\n") == 1
    assert listing(folder) == before


def test_existing_files_are_kept(folder: Path, capfd: Run) -> None:
    (folder / "vit.fp16.onnx").write_text("mine")
    assert main(["convert", "vit.onnx", "--fp16"]) == 2
    assert "vit.fp16.onnx: exists already; give another -o, or --force to replace it." in capfd.readouterr().err
    assert (folder / "vit.fp16.onnx").read_text() == "mine"
    assert main(["convert", "vit.onnx", "--fp16", "--force"]) == 0
