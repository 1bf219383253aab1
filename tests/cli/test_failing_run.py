"""A model that ONNX Runtime loads and that fails on some inputs only: one sentence that names the file, exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import feeds_of
from onnx import TensorProto, helper, numpy_helper
from samples import OPERATOR, fixture_path, listing, without_warnings

from corp_onnx.calibrate.data import FEW_HELD_OUT, HELD_OUT_FRACTION
from corp_onnx.cli import main
from corp_onnx.graph import load_model
from corp_onnx.images import open_images, split_holdout
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session

N_IMAGES = 24
LOUD = 100.0
"""A pixel that no other image and no noise has."""

SENTENCE = (
    "corp-onnx: fragile.onnx: ONNX Runtime failed while running it (Non-zero status code returned while running Gather "
    "node. Name:'guard' Status Message: indices element out of data bounds, idx=1 must be within the inclusive range "
    "[-1,0]).\n"
)

Run = pytest.CaptureFixture[str]


def write_fragile(path: Path, watched: str, limit: float) -> Path:
    """A ViT whose logits get a zero added, looked up in a table at 1 where a number of `watched` is above the limit."""
    proto = onnx.load(fixture_path(OPERATOR))
    last = next(node for node in proto.graph.node if "logits" in node.output)
    last.output[0] = "inner"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "table"))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(limit), "limit"))
    proto.graph.node.extend(
        [
            helper.make_node("Abs", [watched], ["size"]),
            helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["is_above"]),
            helper.make_node("Cast", ["is_above"], ["row"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "row"], ["zero"], name="guard"),
            helper.make_node("Add", ["inner", "zero"], ["logits"]),
        ]
    )
    onnx.save(proto, path)
    return path


def write_images(path: Path, loud: int | None = None) -> Path:
    """Images of noise, one of them with a loud pixel."""
    pixels = np.random.default_rng(0).standard_normal((N_IMAGES, 3, 8, 8)).astype(np.float32)
    if loud is not None:
        pixels[loud, 0, 0, 0] = LOUD
    np.save(path, pixels)
    return path


def held_back(path: Path, fraction: float = HELD_OUT_FRACTION) -> tuple[int, ...]:
    """Rows of an array that a run of seed 0 holds back."""
    _, held_out = split_holdout(open_images(path), fraction)
    stored = np.load(path)
    (batch,) = held_out.batches(N_IMAGES)
    return tuple(int(np.flatnonzero((stored == row).all(axis=(1, 2, 3)))[0]) for row in batch.pixels)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_fragile(tmp_path / "fragile.onnx", "x", LOUD / 2)
    return tmp_path


def refuse(arguments: list[str], capfd: Run, folder: Path) -> None:
    before = listing(folder)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, without_warnings(err)) == ("", SENTENCE)
    assert listing(folder) == before


PRUNE = ["prune", "fragile.onnx", "--calib", "images.npy", "-o", "small.onnx"]
EVALUATE = ["evaluate", "fragile.onnx", "--images", "images.npy", "--reference", str(fixture_path(OPERATOR))]


def test_calibration_image(capfd: Run, folder: Path) -> None:
    """In the refit, which runs it to the end; moments are taken before that."""
    first, *_ = set(range(N_IMAGES)) - set(held_back(write_images(folder / "images.npy")))
    write_images(folder / "images.npy", first)
    refuse([*PRUNE, "--macs", "0.6"], capfd, folder)


def test_held_back_image_that_judges(capfd: Run, folder: Path) -> None:
    rows = held_back(write_images(folder / "images.npy"), FEW_HELD_OUT)
    write_images(folder / "images.npy", rows[-1])
    refuse([*PRUNE, "--min-agreement", "0.9"], capfd, folder)


def test_held_back_image_that_is_measured_on(capfd: Run, folder: Path) -> None:
    """Behind the batch that the checks run on."""
    rows = held_back(write_images(folder / "images.npy"))
    write_images(folder / "images.npy", rows[-1])
    refuse([*PRUNE, "--preset", "paper", "--batch", "1"], capfd, folder)


def test_probe(capfd: Run, folder: Path) -> None:
    """The dense model runs on every image; with a unit pruned, an answer leaves the range of the table."""
    images = open_images(write_images(folder / "images.npy"))
    session = open_session(fixture_path(OPERATOR))
    feeds = [f for f, _ in session.stream(images, N_IMAGES)]
    feeds.append(feeds_of(probe_graph(load_model(fixture_path(OPERATOR))), 2))  # what the graph is probed with
    largest = max(float(np.abs(session.run(None, f)[0]).max()) for f in feeds)
    write_fragile(folder / "fragile.onnx", "inner", 1.0001 * largest)
    assert main([*EVALUATE, "--json"]) == 0
    capfd.readouterr()
    refuse([*PRUNE, "--macs", "0.6"], capfd, folder)


def test_evaluate(capfd: Run, folder: Path) -> None:
    write_images(folder / "images.npy", 5)
    refuse(EVALUATE, capfd, folder)


@pytest.mark.parametrize("keep", [[], ["--keep-float", "1"]])
def test_convert(keep: list[str], capfd: Run, folder: Path) -> None:
    first, *_ = set(range(N_IMAGES)) - set(held_back(write_images(folder / "images.npy"), FEW_HELD_OUT))
    write_images(folder / "images.npy", first)
    convert = ["convert", "fragile.onnx", "--int8", "static", "--calib", "images.npy", "-o", "int8.onnx"]
    refuse([*convert, *keep], capfd, folder)
