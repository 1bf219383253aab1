"""A calibration that was interrupted ends with the moments of one that was not, byte for byte."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from graphs import images_of, probed
from interrupted import KINDS, N_IMAGES, StopError, collect, keep, require_same_bytes, stop_after
from photos import write_photos

from corp_onnx.calibrate.checkpoint import Checkpoint
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.errors import InputError, OutputError
from corp_onnx.images import Images, open_images
from corp_onnx.images.folder import Memory
from corp_onnx.images.recipe import Recipe
from corp_onnx.tensor_file import read_tensors, write_tensors
from corp_onnx.units import list_units

MODELS = ("timm_vit_ts17_fused", "timm_vit_ts17_fused_fixed")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stops", [[3], [20], [39], [7, 30]])
def test_what_was_interrupted_ends_with_the_same_bytes(name: str, stops: list[int], tmp_path: Path) -> None:
    """Also a model of a fixed batch, whose last images fill up theirs, and twice in one run."""
    for stop in stops:
        with pytest.raises(StopError):
            collect(name, checkpoint=keep(tmp_path), progress=stop_after(stop))
    done: list[int] = []
    found = collect(name, checkpoint=keep(tmp_path), progress=done.append)
    assert done[0] > 1
    assert sum(done) == N_IMAGES
    require_same_bytes(found, collect(name))


def test_only_images_that_are_missing_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of photographs, one of them damaged: a new process knows nothing of it but what the checkpoint says."""
    names = write_photos(tmp_path / "photos", 9)
    bad = tmp_path / "photos" / names[1]
    bad.write_bytes(bad.read_bytes()[:-40])
    size = probed(MODELS[0])[0].dims(next(iter(images_of(probed(MODELS[0])[0], 1).arrays)))[-1]
    recipe = Recipe(size=(size, size))

    def fresh() -> Images:
        return open_images(tmp_path / "photos", recipe)

    expected = collect(MODELS[0], fresh())
    with pytest.raises(StopError):
        collect(MODELS[0], fresh(), keep(tmp_path), stop_after(5))
    decoded: list[str] = []
    decode = Memory.decode
    monkeypatch.setattr(Memory, "decode", lambda s, name, *of: (decoded.append(name), decode(s, name, *of))[1])
    images = fresh()
    require_same_bytes(collect(MODELS[0], images, keep(tmp_path)), expected)
    assert decoded == names[5:]
    assert [skip.name for skip in images.skipped] == [names[1]]
    assert images.n_images == 8


def test_a_run_that_is_killed(tmp_path: Path) -> None:
    """By SIGKILL, which nothing can catch: the file is one of those that were whole."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from pathlib import Path
from interrupted import collect, keep
seen = []
def count(n):
    seen.append(n)
    if sum(seen) > 20:
        os.kill(os.getpid(), signal.SIGKILL)
collect({MODELS[0]!r}, checkpoint=keep(Path({str(tmp_path)!r})), progress=count)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    counts: list[int] = []
    found = collect(MODELS[0], checkpoint=keep(tmp_path), progress=counts.append)
    assert counts[0] == 20
    require_same_bytes(found, collect(MODELS[0]))


def test_everything_is_done_but_the_end(tmp_path: Path) -> None:
    expected = collect(MODELS[0], checkpoint=keep(tmp_path))
    done: list[int] = []
    require_same_bytes(collect(MODELS[0], checkpoint=keep(tmp_path), progress=done.append), expected)
    assert done == [N_IMAGES]


def test_it_is_written_by_the_clock_and_removed_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 30 seconds of work, later where writing takes longer than a twentieth of that."""
    now = iter(range(0, 10_000, 4))
    monkeypatch.setattr("corp_onnx.calibrate.checkpoint.monotonic", lambda: float(next(now)))
    checkpoint = keep(tmp_path, every=30.0)
    steps: list[bool] = []

    def look(_: int) -> None:
        steps.append(checkpoint.path.exists())
        checkpoint.path.unlink(missing_ok=True)

    collect(MODELS[0], checkpoint=checkpoint, progress=look)
    assert steps == [False] * 8 + [True] + [False] * 2  # at 32 s of the clock; the next 80 s behind one of 4 s
    checkpoint.path.touch()
    checkpoint.remove()
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_sums_of_something_else_are_refused_or_written_over(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        collect(MODELS[0], checkpoint=keep(tmp_path), progress=stop_after(10))
    other = {"identity": {"model": "a", "images": "c"}}
    text = r"half.safetensors: is the checkpoint of another calibration \(images: b there, c here\); remove it"
    with pytest.raises(InputError, match=text):
        collect(MODELS[0], checkpoint=dataclasses.replace(keep(tmp_path), **other))
    done: list[int] = []
    anew = dataclasses.replace(keep(tmp_path, anew=True), **other)
    require_same_bytes(collect(MODELS[0], checkpoint=anew, progress=done.append), collect(MODELS[0]))
    assert done[0] == 4
    assert read_tensors(anew.path).metadata["n_done"] == str(N_IMAGES)


def test_other_units_or_calls_are_something_else_as_well(tmp_path: Path) -> None:
    collect(MODELS[0], checkpoint=keep(tmp_path))
    graph, blocks = probed(MODELS[0])
    with pytest.raises(InputError, match="units: "):
        collect_moments(
            graph, list_units(blocks, ("mlp",)), images_of(graph, 4), batch_size=4, checkpoint=keep(tmp_path)
        )
    with pytest.raises(InputError, match=r"images at a time: \d x \d there, \d x \d here"):
        collect_moments(graph, list_units(blocks, KINDS), images_of(graph, 4), batch_size=6, checkpoint=keep(tmp_path))


@pytest.mark.parametrize("what", ["text", "weights", "cut"])
def test_a_file_that_is_no_checkpoint(what: str, tmp_path: Path) -> None:
    checkpoint = keep(tmp_path)
    if what == "text":
        checkpoint.path.write_text("hello")
    elif what == "weights":
        write_tensors(checkpoint.path, {"a": np.zeros(3)}, {})
    else:
        collect(MODELS[0], checkpoint=checkpoint)
        checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"half\.safetensors: is no (checkpoint|safetensors file)"):
        collect(MODELS[0], checkpoint=checkpoint)
    require_same_bytes(collect(MODELS[0], checkpoint=keep(tmp_path, anew=True)), collect(MODELS[0]))


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"is not a folder; give another --cache\."):
        collect(MODELS[0], checkpoint=Checkpoint(tmp_path / "file" / "half", {}, every=0.0, option="--cache"))
