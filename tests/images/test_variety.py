"""Images that are all the same, or of one colour."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.cli import main
from corp_onnx.images import open_images
from corp_onnx.images.variety import LOOKED_AT, describe_monotony


def write_colours(folder: Path, n: int, step: int) -> Path:
    folder.mkdir()
    for i in range(n):
        Image.new("RGB", (20, 20), (i * step % 256, 80, 70)).save(folder / f"{i:03}.png")
    return folder


def test_photographs_are_not_mentioned(tmp_path: Path) -> None:
    assert describe_monotony(open_images(write_photos(tmp_path / "p", 5))) == ""
    assert describe_monotony(open_images(write_photos(tmp_path / "one", 1))) == ""


def test_copies(tmp_path: Path) -> None:
    images = open_images(write_colours(tmp_path / "p", 6, 0))
    assert describe_monotony(images) == (
        "the 6 images looked at are copies of 1: nothing is learnt from copies, give others."
    )


def test_plain_colours(tmp_path: Path) -> None:
    images = open_images(write_colours(tmp_path / "p", 6, 9))
    expected = "6 of 6 images looked at are of one colour: give such photographs as the model will see."
    assert describe_monotony(images) == expected


def test_a_few_copies_among_many_are_nothing(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "p", 5)
    for i in range(2):
        (folder / f"copy{i}.png").write_bytes((folder / "000.png").read_bytes())
    assert describe_monotony(open_images(folder)) == ""


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2 * LOOKED_AT, 3, 8, 8), np.float32))
    assert describe_monotony(open_images(tmp_path / "x.npy")).startswith(f"the {LOOKED_AT} images looked at are copies")
    ids = np.arange(20).reshape(4, 5)
    np.savez(tmp_path / "t.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    assert describe_monotony(open_images(tmp_path / "t.npz")) == ""


@pytest.mark.parametrize("verb", ["prune --preset paper", "convert --int8 static"])
def test_verbs_warn(verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, *options = verb.split()
    photos = write_colours(tmp_path / "p", 8, 0)
    arguments = [first, fixture_path(OPERATOR), "--calib", photos, "-o", tmp_path / "o.onnx", *options]
    assert main([*map(str, arguments)]) == 0
    assert re.search(r"warning: the [67] images looked at are copies of 1: nothing is learnt", capfd.readouterr().err)
