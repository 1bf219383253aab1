"""examples/web in a headless Chromium: the page answers for the demo's digits what ONNX Runtime answers in Python.

`make test-web` installs what this needs: onnxruntime-web from npm and playwright, which drives the system's Chromium.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from samples import DEMO, ROOT, paper

from corp_onnx.images.crop import crop_image, normalize_crops
from corp_onnx.images.recipe import Recipe
from corp_onnx.prune import prune_model
from corp_onnx.run.sessions import open_session
from corp_onnx.settings import BEST, Budget, PruneSettings

pytestmark = pytest.mark.browser

WEB = ROOT / "examples" / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RUNTIME = WEB / "node_modules" / "onnxruntime-web" / "dist"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
WAIT = 60_000  # milliseconds that a step may take


@pytest.fixture(scope="module", autouse=True)
def _parts() -> None:
    found = {
        "Chromium (apt-get install chromium)": CHROMIUM,
        "onnxruntime-web (npm install in examples/web)": RUNTIME.exists(),
        "playwright (pip install playwright)": importlib.util.find_spec("playwright"),
    }
    missing = [name for name, there in found.items() if not there]
    if missing and os.environ.get("CORP_ONNX_BROWSER"):
        pytest.fail(f"the browser test was asked for and needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; make test-web")


METHODS = {
    "paper": paper(0.9, 0.5, n_images=32),
    "merged tokens": PruneSettings(replace(BEST, widths=Budget("macs", 0.3), refit=False), n_images=64),
}


@pytest.fixture(scope="module", params=METHODS)
def pruned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "demo_vit.pruned.onnx"
    result = prune_model(DEMO, DEMO.parent / "calib", path, settings=METHODS[request.param])
    assert bool(result.merges) == (request.param == "merged tokens")
    return path


@pytest.fixture(scope="module")
def site(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page that build.py made, served on loopback."""
    folder = tmp_path_factory.mktemp("web") / "site"
    done = build(DEMO, pruned, "-o", folder)
    assert done.returncode == 0, done.stderr
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def page(site: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(site)
        page.get_by_text("Pick a picture.").wait_for()
        yield page
        browser.close()


def build(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, WEB / "build.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)


def answer(model: Path, image: Path) -> list[tuple[str, float]]:
    """The five first names and their shares in percent, by ONNX Runtime in Python."""
    session = open_session(model)
    metadata = session.metadata
    recipe = Recipe.from_json(metadata["corp_onnx.preprocessing"])
    with Image.open(image) as picture:
        pixels = normalize_crops(crop_image(picture, recipe)[None], recipe)
    logits = session.run(None, {session.inputs[0].name: pixels})[0][0].astype(np.float64)
    shares = 100 * np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return [(str(idx), float(shares[idx])) for idx in np.argsort(-shares)[:5]]


def shown(page: Any, model: str) -> list[tuple[str, float]]:
    """What the page says once it is done."""
    status = page.locator("#status")
    page.wait_for_function(f"/^{model}: (?!loading)/.test(document.getElementById('status').textContent)")
    assert re.fullmatch(rf"{model}: \d+ ms", status.inner_text())
    rows = page.locator("#answers tr").all_inner_texts()
    return [(row.split("\t")[0], float(row.split("\t")[1].split()[0])) for row in rows]


@pytest.mark.parametrize("digit", [0, 4, 7])
def test_page_answers_as_python_does_with_both_models(page: Any, pruned: Path, digit: int) -> None:
    picture = sorted((DEMO.parent / "test" / str(digit)).iterdir())[1]
    page.get_by_label("demo_vit (").check()
    page.evaluate("document.getElementById('status').textContent = ''")
    page.get_by_label("Picture").set_input_files(picture)
    dense_answer = shown(page, "demo_vit")
    page.evaluate("document.getElementById('status').textContent = ''")
    page.get_by_label("demo_vit.pruned (").check()
    pruned_answer = shown(page, "demo_vit\\.pruned")
    for found, expected in ((dense_answer, answer(DEMO, picture)), (pruned_answer, answer(pruned, picture))):
        assert found[0][0] == expected[0][0]
        np.testing.assert_allclose([f[1] for f in found], [e[1] for e in expected], atol=0.1)
    assert dense_answer != pruned_answer


def test_a_file_that_is_no_picture(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_label("Picture").set_input_files(tmp_path / "notes.txt")
    page.get_by_text("notes.txt is no picture that this browser reads.").wait_for()
    assert page.locator("#answers tr").count() == 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("size", [(61, 40), (20, 31), (150, 97)])
def test_pixels_are_those_of_pillow(page: Any, size: tuple[int, int], interpolation: str, mode: str) -> None:
    """Up and down, in both shapes: at most one of 256 levels apart."""
    n = 3 if mode == "RGB" else 1
    recipe = Recipe((32, 32), None, 0.9, interpolation, (0.4,) * n, (0.2,) * n, mode)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    rgba = np.dstack([pixels, np.full(size, 255, np.uint8)])
    found = page.evaluate(
        """async ([data, width, height, recipe]) => {
            const { prepareImage } = await import("./recipe.js");
            return Array.from(prepareImage({ data: Uint8ClampedArray.from(data), width, height }, recipe));
        }""",
        [rgba.ravel().tolist(), size[1], size[0], json.loads(recipe.to_json())],
    )
    expected = normalize_crops(crop_image(Image.fromarray(pixels), recipe)[None], recipe)[0]
    levels = np.abs(np.array(found).reshape(expected.shape) - expected) * 0.2 * 255
    assert levels.max() < 1.01
    assert (levels < 0.01).mean() > 0.95  # the rest are halves, which Pillow's 22-bit weights round either way


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe((32, 24), (32, 24), fit="squash", interpolation="bilinear"),
        Recipe((32, 32), None, 1.0, fit="letterbox", fill=(114, 20, 7), crop_rounding="down"),
        Recipe((33, 32), 35, fit="squash", crop_rounding="down", interpolation="box"),
        Recipe((31, 31), 27, interpolation="hamming"),
    ],
)
def test_other_fits_are_those_of_pillow(page: Any, recipe: Recipe) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 40, 3), dtype=np.uint8)
    rgba = np.dstack([pixels, np.full((61, 40), 255, np.uint8)])
    found = page.evaluate(
        """async ([data, width, height, recipe]) => {
            const { prepareImage } = await import("./recipe.js");
            return Array.from(prepareImage({ data: Uint8ClampedArray.from(data), width, height }, recipe));
        }""",
        [rgba.ravel().tolist(), 40, 61, json.loads(recipe.to_json())],
    )
    expected = normalize_crops(crop_image(Image.fromarray(pixels), recipe)[None], recipe)[0]
    std = np.array(recipe.std)[:, None, None]
    levels = np.abs(np.array(found).reshape(expected.shape) - expected) * std * 255
    assert levels.max() < 1.01
    assert (levels < 0.01).mean() > 0.95


def test_build_explains_itself(tmp_path: Path, pruned: Path) -> None:
    bare = onnx.load(DEMO)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    for arguments, sentence in (
        ((tmp_path / "nothing.onnx",), "nothing.onnx"),
        ((DEMO, DEMO), "two models have the same file name"),
        ((tmp_path / "bare.onnx",), "none of the models says how pictures are prepared"),
        ((DEMO, "--runtime", tmp_path), "run npm install first"),
    ):
        done = build(*arguments, "-o", tmp_path / "site")
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    done = build(tmp_path / "bare.onnx", pruned, "-o", tmp_path / "site")
    models = json.loads((tmp_path / "site" / "models.json").read_text(encoding="utf-8"))
    assert models[0]["recipe"] == models[1]["recipe"]
