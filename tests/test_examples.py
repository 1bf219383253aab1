"""The programs in examples/: they prepare photographs as corp-onnx does, and answer as it does. Triton's own test runs
its client against a server (tests/triton/test_server.py).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from PIL import Image
from samples import DEMO, ROOT

from corp_onnx.cli.main import cli
from corp_onnx.images.crop import crop_image, normalize_crops
from corp_onnx.images.recipe import Recipe
from corp_onnx.prune import prune_model
from corp_onnx.settings import BEST, Budget, PruneSettings

CLASSIFY = ROOT / "examples" / "onnxruntime" / "classify.py"
CLIENT = ROOT / "examples" / "triton" / "client.py"
OPENVINO = ROOT / "examples" / "openvino" / "classify.py"
BUILD = ROOT / "examples" / "web" / "build.py"
COMPILE = ROOT / "examples" / "cpp" / "build.py"
PAGES = [p for p in sorted((ROOT / "examples").rglob("*.md")) if "node_modules" not in p.parts]


def load_program(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("size", [(50, 70), (70, 50), (33, 33), (301, 97)])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(size=(32, 32)),
        Recipe(size=(32, 32), resize=40, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3),
        Recipe(size=(24, 36), crop_pct=0.875, interpolation="lanczos"),
        Recipe(size=(32, 32), crop_pct=1.0, mean=(0.4,), std=(0.2,), channels="L"),
        Recipe(size=(24, 36), resize=(24, 36), fit="squash", interpolation="box"),
        Recipe(size=(30, 30), resize=37, fit="squash", crop_rounding="down"),
        Recipe(size=(31, 31), resize=34, crop_rounding="down"),
        Recipe(size=(32, 40), crop_pct=1.0, fit="letterbox", fill=(114, 100, 90), interpolation="hamming"),
        Recipe(size=(33, 33), crop_pct=0.9, fit="letterbox", fill=(9,), mean=(0.4,), std=(0.2,), channels="L"),
        Recipe(size=(32, 32), resize=25),
    ],
)
def test_photographs_are_prepared_as_everywhere(recipe: Recipe, size: tuple[int, int], mode: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
    expected = normalize_crops(crop_image(image, recipe)[None], recipe)
    found = load_program(CLASSIFY).prepare_image(image, json.loads(recipe.to_json()))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_all_programs_prepare_photographs_alike() -> None:
    """Each is one file to copy, so the function stands in both."""
    functions = [
        next(n for n in ast.parse(p.read_text(encoding="utf-8")).body if getattr(n, "name", "") == "prepare_image")
        for p in (CLASSIFY, CLIENT, OPENVINO)
    ]
    assert len({ast.dump(function) for function in functions}) == 1


@pytest.mark.parametrize("program", [CLASSIFY, CLIENT, OPENVINO])
def test_programs_stand_alone(program: Path) -> None:
    assert "import corp_onnx" not in program.read_text(encoding="utf-8")
    assert "from corp_onnx" not in program.read_text(encoding="utf-8")


@pytest.mark.parametrize("program", [CLASSIFY, pytest.param(OPENVINO, marks=pytest.mark.openvino)])
def test_classify_names_the_digits(program: Path) -> None:
    images = [sorted((DEMO.parent / "test" / str(digit)).iterdir())[0] for digit in range(10)]
    done = run_program(program, DEMO, *images)
    assert done.returncode == 0, done.stderr
    blocks = [done.stdout.splitlines()[i : i + 6] for i in range(0, 60, 6)]
    assert [block[0] for block in blocks] == [str(image) for image in images]
    first = [block[1].split()[-1] for block in blocks]
    assert sum(name == str(digit) for digit, name in enumerate(first)) >= 9
    shares = [float(line.split("%")[0]) for line in blocks[0][1:]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.openvino
def test_classify_with_openvino_answers_as_with_onnx_runtime(tmp_path: Path) -> None:
    """In float32, for a pruned file with its metadata; and nothing is written into the home folder."""
    pruned = tmp_path / "small.onnx"
    method = replace(BEST, widths=Budget("macs", 0.5), refit=False)
    prune_model(DEMO, DEMO.parent / "calib", pruned, settings=PruneSettings(method, n_images=64))
    images = sorted((DEMO.parent / "test" / "3").iterdir())[:4]
    expected = run_program(CLASSIFY, pruned, *images).stdout
    command = [sys.executable, str(OPENVINO), str(pruned), *map(str, images), "--precision", "f32"]
    (tmp_path / "home").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("program", [CLASSIFY, pytest.param(OPENVINO, marks=pytest.mark.openvino)])
def test_classify_explains_itself(program: Path, tmp_path: Path) -> None:
    bare = onnx.load(DEMO)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "notes.txt").write_text("no image")
    for arguments, sentence in (
        ((tmp_path / "nothing.onnx", CLASSIFY), "nothing.onnx"),
        ((tmp_path / "notes.txt", CLASSIFY), "notes.txt"),
        ((DEMO, tmp_path / "notes.txt"), "cannot identify image file"),
        ((tmp_path / "bare.onnx", CLASSIFY), "does not say how photographs are prepared"),
    ):
        done = run_program(program, *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


def test_a_web_page_is_put_together(tmp_path: Path) -> None:
    """Beside a model that lies there already, too; the runtime's files are stood in for."""
    (tmp_path / "dist").mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (tmp_path / "dist" / name).touch()
    (tmp_path / "site").mkdir()
    model = tmp_path / "site" / "demo.onnx"
    model.write_bytes(DEMO.read_bytes())
    options = ("-o", tmp_path / "site", "--runtime", tmp_path / "dist")
    done = run_program(BUILD, model, *options)
    assert done.returncode == 0, done.stderr
    (described,) = json.loads((tmp_path / "site" / "models.json").read_text(encoding="utf-8"))["models"]
    assert (described["name"], described["file"]) == ("demo", "demo.onnx")
    (tmp_path / "notes.onnx").write_text("no model")
    done = run_program(BUILD, tmp_path / "notes.onnx", *options)
    assert done.returncode == 2
    assert "notes.onnx: is no ONNX file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in C++, where OpenVINO (CORP_ONNX_OPENVINO, an environment; else this one) and a compiler are."""
    environment = os.environ.get("CORP_ONNX_OPENVINO")
    python = str(Path(environment) / "bin" / "python") if environment else sys.executable
    if subprocess.run([python, "-c", "import openvino"], capture_output=True, check=False).returncode:
        pytest.skip("no openvino here: make test-cpp installs it")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler here: CXX names one, or g++")
    program = tmp_path_factory.mktemp("cpp") / "classify"
    done = subprocess.run([python, str(COMPILE), "-o", str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return program


def test_cpp_answers_as_python_does(compiled: Path, tmp_path: Path) -> None:
    """A pruned file with merged tokens, digits and photographs of any shape: the same names, and shares to 0.1 %."""
    small = tmp_path / "small.onnx"
    prune_model(DEMO, DEMO.parent / "calib", small, macs=0.5, refit=False)
    photographs = [tmp_path / f"{i}.ppm" for i in range(6)]
    digits = [sorted((DEMO.parent / "test" / str(digit)).iterdir())[1] for digit in range(4)]
    for image, photograph in zip(digits, photographs, strict=False):
        Image.open(image).convert("RGB").save(photograph)
    for photograph, size in zip(photographs[4:], [(90, 50), (37, 64)], strict=True):
        noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(photograph)
    found = subprocess.run([compiled, small, *photographs], capture_output=True, text=True, timeout=60, check=True)
    expected = run_program(CLASSIFY, small, *photographs)
    assert expected.returncode == 0, expected.stderr
    lines = [text.split() for text in found.stdout.splitlines()], [t.split() for t in expected.stdout.splitlines()]
    assert len(lines[0]) == 6 * len(photographs)
    for one, other in zip(*lines, strict=True):
        assert len(one) == len(other)
        if len(one) == 2 and one[0].endswith("%"):
            assert float(one[0][:-1]) == pytest.approx(float(other[0][:-1]), abs=0.25)
        else:
            assert one == other


def test_cpp_explains_itself(compiled: Path, tmp_path: Path) -> None:
    bare = onnx.load(DEMO)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    (tmp_path / "notes.ppm").write_text("no image")
    for arguments, sentence in (
        ((), "usage: classify"),
        ((tmp_path / "nothing.onnx", "x.ppm"), "nothing.onnx"),
        ((tmp_path / "bare.onnx", "x.ppm"), "does not say how photographs are prepared"),
        ((DEMO, tmp_path / "notes.ppm"), "expected a binary PPM"),
    ):
        done = subprocess.run([compiled, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert sentence in done.stderr


def test_the_command_of_the_page_prints_what_it_shows() -> None:
    """Shares differ by machine in their last digit; the names and their order do not."""
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    ((command, shown),) = re.findall(r"^```console\n\$ python (.*)\n((?:.*\n)*?)^```", text, re.MULTILINE)
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [line.split()[-1] for line in shown.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_of_the_pages_exist(page: Path) -> None:
    """The options of every `corp-onnx` and `client.py` line, and every file that a page links to."""
    text = page.read_text(encoding="utf-8")
    for verb, rest in re.findall(r"^corp-onnx (\w+) (.*)$", text, re.MULTILINE):
        assert set(re.findall(r"(?<= )--?[a-z-]+", rest)) <= {o for p in cli.commands[verb].params for o in p.opts}
    described = " ".join(run_program(CLIENT, "--help").stdout.split())
    for rest in re.findall(r"client\.py (.*)$", text, re.MULTILINE):
        assert all(option in described for option in re.findall(r"--[a-z]+", rest))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / link).exists(), link
