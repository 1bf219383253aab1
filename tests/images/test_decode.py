"""Image files through Pillow: what counts as one, every mode of pixels, and files that are refused with a reason."""

from __future__ import annotations

import logging
import os
import warnings

import numpy as np
import pytest
from photos import SMALL, all_pixels, photo, read_set, write_bad_files, write_photos
from PIL import Image

from corp_onnx.errors import ImageError
from corp_onnx.images import Skipped
from corp_onnx.images.crop import crop_image
from corp_onnx.images.decode import MAX_REASON, choose_images, decode_file, identify_file, list_files, quiet_pillow
from corp_onnx.images.recipe import Recipe


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", (9, 9, 9)), ("LA", (9, 9, 9)), ("RGBA", (9, 20, 30)), ("P", (9, 20, 30)), ("1", (255, 255, 255))],
)
def test_modes_become_rgb(mode, expected, tmp_path):
    colour = {"L": 9, "LA": (9, 3), "RGBA": (9, 20, 30, 3), "P": 1, "1": 1}[mode]
    image = Image.new(mode, (20, 20), colour)
    options = {}
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 20, 30])
        options = {"transparency": bytes([0, 128])}  # Pillow warns about this on conversion
    image.save(tmp_path / "a.png", **options)
    flat = Recipe(size=(4, 4), mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    pixels = all_pixels(read_set(tmp_path, flat))
    np.testing.assert_allclose(pixels[0, :, 0, 0], expected, rtol=1e-5)


def test_cmyk_jpeg_and_sixteen_bit_png(tmp_path):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16)).save(tmp_path / "b.png")
    flat = Recipe(size=(4, 4), mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    pixels = all_pixels(read_set(tmp_path, flat))[:, :, 0, 0]
    np.testing.assert_allclose(pixels[0], (254, 0, 0), atol=3)
    np.testing.assert_allclose(pixels[1], (128, 128, 128), rtol=1e-5)  # Pillow alone would clip to 255


def test_a_floating_point_tiff_is_skipped(tmp_path):
    Image.fromarray(np.zeros((20, 20), dtype=np.float32)).save(tmp_path / "depth.tif")
    write_photos(tmp_path, 1)
    images = read_set(tmp_path)
    assert len(all_pixels(images)) == 1
    assert images.skipped == (Skipped("depth.tif", "floating-point pixels have no known range"),)


def test_a_decompression_bomb_is_skipped_quietly(tmp_path, monkeypatch):
    write_photos(tmp_path, 2)
    photo(200, 200).save(tmp_path / "bomb.png")
    photo(120, 120).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # warns above, refuses above twice of it
    images = read_set(tmp_path)
    assert len(all_pixels(images)) == 3
    assert [s.name for s in images.skipped] == ["bomb.png"]
    assert "exceeds limit" in images.skipped[0].reason


def test_a_very_long_image_is_skipped_before_it_eats_the_memory(tmp_path):
    write_photos(tmp_path, 1)
    Image.new("RGB", (60_000, 1)).save(tmp_path / "line.png")
    images = read_set(tmp_path, Recipe(size=(224, 224)))
    assert len(all_pixels(images)) == 1
    assert images.skipped[0].reason.startswith("too elongated: 60000 x 1 would be resized to 14880000 x 248")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows, pipes are not there")
def test_links_are_followed_once_and_pipes_not_read(tmp_path):
    write_photos(tmp_path / "real", 2)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "loop").symlink_to(root)
    (root / "broken.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "pipe.png")
    images = read_set(root)
    assert images.names == ("linked/000.png", "linked/001.png")
    assert {s.name: s.reason for s in images.skipped} == dict.fromkeys(["broken.png", "pipe.png"], "not a regular file")


def test_files_are_listed_in_order_without_hidden_folders(tmp_path):
    for name in ("b/2.png", "b/1.png", "a.png", ".git/x.png", "b/.cache/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_files(tmp_path) == (tmp_path, ["a.png", "b/1.png", "b/2.png"])
    assert list_files(tmp_path / "b" / "1.png") == (tmp_path / "b", ["1.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"the folder is empty; give a folder of images"):
        list_files(tmp_path / "empty")
    with pytest.raises(ImageError, match=r"no such folder or file; give a folder of images"):
        list_files(tmp_path / "absent")


def test_an_image_is_known_by_its_bytes(tmp_path):
    write_bad_files(tmp_path)
    photo(20, 20).save(tmp_path / "photo.txt", format="PNG")
    found = {path.name: identify_file(path) for path in tmp_path.iterdir()}
    assert found.pop("photo.txt") == ""
    assert found.pop("cut.png") == found.pop("cut.jpg") == ""  # their damage shows when they are decoded
    assert found == {
        "notes.txt": "not an image", "text.jpg": "not an image", "page.eps": "not an image",
        "empty.jpg": "an empty file", ".hidden.png": "hidden file",
    }  # fmt: skip
    assert identify_file(tmp_path) == "not a regular file"


@pytest.mark.parametrize(("limit", "chosen", "met"), [(2, ["002.png", "003.png"], {"notes.txt"}), (0, [], set())])
def test_files_behind_the_limit_are_not_looked_at(tmp_path, limit, chosen, met):
    write_photos(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("no image")
    order = ["003.png", "notes.txt", "002.png", "absent.png", "000.png"]
    found, bad = choose_images(tmp_path, order, limit)
    assert (found, set(bad)) == (chosen, met)


def test_without_a_limit_every_file_is_chosen_or_named(tmp_path):
    write_photos(tmp_path, 2)
    found, bad = choose_images(tmp_path, ["001.png", "absent.png", "000.png"], None)
    assert (found, bad) == (["000.png", "001.png"], {"absent.png": "not a regular file"})


def test_a_file_is_decoded_for_every_recipe_or_has_a_reason(tmp_path):
    write_photos(tmp_path, 1)
    write_bad_files(tmp_path)
    recipes = (SMALL, Recipe(size=(8, 12), mean=(0.5,), std=(0.5,), channels="L"))
    crops = decode_file(tmp_path / "000.png", recipes)
    assert [crop.shape for crop in crops] == [(16, 16, 3), (8, 12, 1)]
    with Image.open(tmp_path / "000.png") as image:
        np.testing.assert_array_equal(crops[0], crop_image(image, SMALL))
    assert "truncated" in decode_file(tmp_path / "cut.jpg", recipes)
    assert decode_file(tmp_path / "absent.png", recipes) == "no such file or directory"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines."), "two lines"),
        (ValueError("x" * 500), "x" * MAX_REASON),
        (ValueError(), "ValueError"),
        (PermissionError(13, "Permission denied"), "permission denied"),
    ],
)
def test_reasons_are_one_short_line(tmp_path, monkeypatch, error, reason):
    """Whatever one of Pillow's plugins raises."""
    write_photos(tmp_path, 1)

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    assert identify_file(tmp_path / "000.png") == decode_file(tmp_path / "000.png", (SMALL,)) == reason


def test_what_pillow_logs_is_not_printed(monkeypatch, capfd):
    """As of a TIFF with 44035 samples a pixel: beside the reason, and in no words of ours."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("PIL"), "handlers", [])
    with quiet_pillow():
        logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded")
    assert capfd.readouterr().err == ""


def test_only_the_warnings_of_pillow_are_silenced():
    with quiet_pillow():
        warnings.warn_explicit("a large image", UserWarning, "Image.py", 1, module="PIL.Image")
        with pytest.warns(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
