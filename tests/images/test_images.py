"""Recipes, folders and arrays of images: geometry against torchvision's steps, and every kind of bad file."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import corp_onnx.images.folder as images_module
from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images import ImageSet, Skipped, open_images, split_holdout
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Batch
from corp_onnx.images.recipe import (
    METADATA_KEY,
    Recipe,
    crop_image,
    default_recipe,
    find_recipe,
    make_recipe,
    normalize_crops,
)
from corp_onnx.run.feeds import ModelInput, bind_feeds, split_feeds

SMALL = Recipe(size=(16, 16))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def write_photos(folder: Path, n: int, first: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.png" for i in range(first, first + n)]
    for i, name in enumerate(names):
        photo(20 + i % 5, 18 + i % 3, seed=first + i).save(folder / name)
    return names


def read_set(path: Path, recipe: Recipe | None = SMALL, **options: object) -> ImageSet:
    found = open_images(path, recipe, **options)  # type: ignore[arg-type]
    assert isinstance(found, ImageSet)
    return found


def all_pixels(images: ImageSet | ArraySet, batch_size: int = 3) -> np.ndarray:
    return np.concatenate([batch.pixels for batch in images.batches(batch_size)])


def torchvision_oracle(image: Image.Image, size: tuple[int, int], short: int, filter_: int, mean, std) -> np.ndarray:
    """Resize(short) + CenterCrop(size) + ToTensor + Normalize, step by step on a padded canvas."""
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    pixels = np.asarray(image.resize((width, height), filter_))
    pixels = pixels.reshape(height, width, -1)
    pad_y, pad_x = max(size[0] - height, 0), max(size[1] - width, 0)
    pixels = np.pad(pixels, ((pad_y // 2, (pad_y + 1) // 2), (pad_x // 2, (pad_x + 1) // 2), (0, 0)))
    top = round((pixels.shape[0] - size[0]) / 2.0)
    left = round((pixels.shape[1] - size[1]) / 2.0)
    pixels = pixels[top : top + size[0], left : left + size[1]]
    out = np.empty((pixels.shape[2], *size), dtype=np.float64)
    for c in range(pixels.shape[2]):
        out[c] = (pixels[:, :, c] / 255.0 - mean[c]) / std[c]
    return out


# recipe


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(3, 90),
    height=st.integers(3, 90),
    size=st.tuples(st.integers(2, 50), st.integers(2, 50)),
    short=st.integers(2, 60),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
)
def test_geometry_is_torchvisions(width, height, size, short, interpolation):
    recipe = Recipe(size=size, resize=short, interpolation=interpolation)
    image = photo(width, height)
    found = normalize_crops(crop_image(image, recipe)[None], recipe)[0]
    expected = torchvision_oracle(
        image, size, short, getattr(Image.Resampling, interpolation.upper()), recipe.mean, recipe.std
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(("size", "crop_pct", "short"), [(224, 0.9, 248), (224, 0.875, 256), (384, 1.0, 384)])
def test_short_side_comes_from_the_crop_fraction(size, crop_pct, short):
    image = photo(500, 400)
    derived = crop_image(image, Recipe(size=(size, size), crop_pct=crop_pct))
    np.testing.assert_array_equal(derived, crop_image(image, Recipe(size=(size, size), resize=short)))


def test_an_input_that_is_not_square_is_covered_on_both_sides():
    recipe = Recipe(size=(20, 40), crop_pct=0.8)
    image = photo(60, 90)
    ratio = min(90 / math.floor(20 / 0.8), 60 / math.floor(40 / 0.8))
    width, height = round(60 / ratio), round(90 / ratio)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 20) / 2.0), round((width - 40) / 2.0)
    np.testing.assert_array_equal(crop_image(image, recipe), whole[top : top + 20, left : left + 40])


def test_the_real_default_recipe():
    assert Recipe() == default_recipe((224, 224))
    assert (Recipe().mean, Recipe().std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    grey = default_recipe((28, 28), "L")
    assert crop_image(photo(40, 40), grey).shape == (28, 28, 1)


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


def test_recipe_survives_json():
    recipe = Recipe(size=(192, 256), resize=200, interpolation="bilinear", mean=(0.5,), std=(0.25,), channels="L")
    stored = json.loads(recipe.to_json())
    assert stored["schema"] == 1
    assert set(stored) == {"schema", "size", "resize", "interpolation", "crop_pct", "mean", "std", "channels"}
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "can not be read"),
        ("[]", "expected an object with schema 1"),
        ('{"schema": 2}', "expected an object with schema 1"),
        ('{"schema": 1}', "'size' is missing"),
        (Recipe().to_json().replace("0.485", "NaN"), "mean must be 3 finite numbers"),
        (Recipe().to_json().replace("[224, 224]", "224"), "not iterable"),
    ],
)
def test_a_broken_recipe_in_a_model_is_a_model_error(text, match):
    with pytest.raises(ModelError, match=match):
        find_recipe({METADATA_KEY: text}, [1, 3, 224, 224])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crop_pct": 1.5}, r"crop fraction must lie in \(0, 1\], found 1.5"),
        ({"crop_pct": math.nan}, "crop fraction"),
        ({"resize": 0}, "resize must be a positive number of pixels, found 0"),
        ({"resize": 200, "crop_pct": 0.5}, "give one of the two"),
        ({"interpolation": "cubic"}, "bicubic, bilinear, nearest, lanczos, found 'cubic'"),
        ({"mean": (0.5,)}, r"mean must be 3 finite numbers for RGB, found \(0.5,\)"),
        ({"std": (1.0, 1.0, math.inf)}, "std must be 3 finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"channels": "BGR"}, "channels must be RGB or L, found 'BGR'"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(OptionError, match=match):
        make_recipe((32, 32), **options)
    with pytest.raises(OptionError, match="two positive integers"):
        make_recipe((32, 0))


def test_given_options_overlay_the_base():
    base = Recipe(size=(64, 64), resize=70, interpolation="bilinear", mean=(0.5, 0.5, 0.5))
    found = make_recipe((96, 96), base=base, std=[0.5, 0.5, 0.5])
    assert found == Recipe((96, 96), 70, 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert make_recipe((96, 96), base=base, crop_pct=0.8).resize is None
    assert make_recipe((96, 96), base=base, resize=100).resize == 100
    assert make_recipe((32, 48)) == default_recipe((32, 48))


def test_recipe_of_a_model():
    own = Recipe(size=(64, 64), interpolation="bilinear")
    assert find_recipe({METADATA_KEY: own.to_json()}, ["batch", 3, 64, 64]) == own
    assert find_recipe({}, ["batch", 3, 64, 96]).size == (64, 96)
    assert find_recipe({}, [None, 3, "h", "w"]).size == (224, 224)
    assert find_recipe({}, [8, 1, 28, 28]).channels == "L"
    for shape in ([1, 224, 224, 3], [1, 77]):
        with pytest.raises(ModelError, match=r"give preprocessed arrays as .npy or .npz"):
            find_recipe({}, shape)


# folders


def test_batches_keep_the_order_and_do_not_depend_on_the_batch_size(tmp_path):
    names = write_photos(tmp_path / "b", 9) and write_photos(tmp_path / "a", 10)
    images = read_set(tmp_path)
    expected = tuple([f"a/{n}" for n in names] + [f"b/{n}" for n in names[:9]])
    assert images.names == expected
    reference = np.stack(
        [normalize_crops(crop_image(Image.open(tmp_path / n), SMALL)[None], SMALL)[0] for n in expected]
    )
    for batch_size in (1, 4, 19, 50):
        batches = list(images.batches(batch_size))
        assert [len(b) for b in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert tuple(n for b in batches for n in b.names) == expected
        np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), reference)


def test_decoding_threads_that_finish_out_of_order_keep_the_order(tmp_path, monkeypatch):
    write_photos(tmp_path, 12)
    real = images_module.decode_file

    def slow_for_even(path, recipes):
        if int(path.stem) % 2 == 0:
            time.sleep(0.02)
        return real(path, recipes)

    images = read_set(tmp_path)
    monkeypatch.setattr(images_module, "N_THREADS", 4)
    monkeypatch.setattr(images_module, "decode_file", slow_for_even)
    assert tuple(n for b in images.batches(5) for n in b.names) == images.names


def test_the_next_batch_is_decoded_while_this_one_is_used_and_no_more(tmp_path, monkeypatch):
    write_photos(tmp_path, 20)
    real, decoded = images_module.decode_file, []
    monkeypatch.setattr(images_module, "decode_file", lambda p, r: decoded.append(p.name) or real(p, r))
    stream = read_set(tmp_path).batches(3)
    next(stream)
    end = time.monotonic() + 5
    while len(decoded) < 6 and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(decoded) == 6
    stream.close()


def test_one_decode_serves_all_recipes_and_later_passes(tmp_path, monkeypatch):
    write_photos(tmp_path, 4)
    real, decoded = images_module.decode_file, []
    monkeypatch.setattr(images_module, "decode_file", lambda p, r: decoded.append(p.name) or real(p, r))
    images = read_set(tmp_path)
    other = Recipe(size=(8, 12))
    pairs = list(images.batches_by_recipe(3, (SMALL, other)))
    assert sorted(decoded) == list(images.names)
    assert [(a.pixels.shape, b.pixels.shape) for a, b in pairs] == [
        ((3, 3, 16, 16), (3, 3, 8, 12)),
        ((1, 3, 16, 16), (1, 3, 8, 12)),
    ]
    again = list(images.batches_by_recipe(3, (SMALL, other)))
    assert len(decoded) == 4
    np.testing.assert_array_equal(again[0][1].pixels, pairs[0][1].pixels)
    monkeypatch.setattr(images_module, "MAX_KEPT_BYTES", 0)
    forgetful = read_set(tmp_path)
    assert sum(len(b) for _ in range(2) for b in forgetful.batches(2)) == 8
    assert len(decoded) == 12


def write_bad_files(folder: Path) -> None:
    photo(64, 64).save(folder / "cut.jpg", quality=95)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    photo(64, 64).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("a text with the name of an image")
    (folder / ".hidden.png").write_bytes(whole)
    (folder / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def test_bad_files_are_named_and_the_run_goes_on(tmp_path):
    names = write_photos(tmp_path, 5)
    photo(30, 30).save(tmp_path / "jpeg_inside.txt", format="JPEG")
    (tmp_path / ".git").mkdir()
    write_bad_files(tmp_path)
    images = read_set(tmp_path)
    assert {s.name for s in images.skipped} == {".hidden.png", "empty.jpg", "notes.txt", "page.eps", "text.jpg"}
    for _ in range(2):
        batches = list(images.batches(4))
        assert [len(b) for b in batches] == [4, 2]
        assert tuple(n for b in batches for n in b.names) == (*names, "jpeg_inside.txt")
    reasons = {s.name: s.reason for s in images.skipped}
    assert len(reasons) == 7
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["cut.png"]
    assert reasons["notes.txt"] == reasons["text.jpg"] == reasons["page.eps"] == "not an image"
    assert reasons["empty.jpg"] == "an empty file"
    assert reasons[".hidden.png"] == "hidden file"
    assert images.n_images == 6


def test_too_few_left_names_counts_and_files(tmp_path):
    write_photos(tmp_path, 5)
    write_bad_files(tmp_path)
    with pytest.raises(
        ImageError, match=r"7 readable images among 12 files, and at least 8 needed; skipped .* and 2 more"
    ):
        open_images(tmp_path, SMALL, minimum=8)
    images = read_set(tmp_path, minimum=6)
    with pytest.raises(ImageError, match=r"5 readable images among 12 files, and at least 6 needed"):
        list(images.batches(2))
    lonely = tmp_path / "x"
    lonely.mkdir()
    (lonely / "a.txt").write_text("a")
    with pytest.raises(
        ImageError, match=r"0 readable images among 1 file, and at least 1 needed; skipped a.txt \(not an"
    ):
        open_images(lonely)


def test_nothing_there(tmp_path):
    with pytest.raises(ImageError, match="no such folder or file; give a folder of images"):
        open_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="the folder is empty; give a folder of images"):
        open_images(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(
        ImageError, match=r"a.txt: not an image; expected a folder of images, an image, a .npy or a .npz"
    ):
        open_images(tmp_path / "a.txt")
    with pytest.raises(OptionError, match="found minimum 0"):
        open_images(tmp_path, minimum=0)
    with pytest.raises(OptionError, match="found minimum 5 and limit 4"):
        open_images(tmp_path, minimum=5, limit=4)


def test_a_single_image_file_is_a_set_of_one(tmp_path):
    write_photos(tmp_path, 2)
    assert read_set(tmp_path / "001.png").names == ("001.png",)
    with pytest.raises(OptionError, match="batch size must be at least 1, found 0"):
        list(read_set(tmp_path).batches(0))


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


def test_warning_filters_are_as_before(tmp_path):
    write_photos(tmp_path, 3)
    before = list(warnings.filters)
    stream = read_set(tmp_path).batches(1)
    next(stream)
    stream.close()
    assert list(warnings.filters) == before


def test_limit_is_a_seeded_draw(tmp_path):
    write_photos(tmp_path, 20)
    (tmp_path / "notes.txt").write_text("no image")
    draws = [read_set(tmp_path, limit=8, seed=seed).names for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(d) == 8 and list(d) == sorted(d) for d in draws)
    assert len(read_set(tmp_path, limit=50).names) == 20


def test_split_is_disjoint_complete_and_repeatable(tmp_path):
    write_photos(tmp_path, 11)
    images = read_set(tmp_path)
    (train, held), (_, again) = split_holdout(images, 0.25, 3), split_holdout(images, 0.25, 3)
    assert isinstance(train, ImageSet)
    assert isinstance(held, ImageSet)
    assert len(held.names) == 3
    assert sorted(train.names + held.names) == list(images.names)
    assert isinstance(again, ImageSet)
    assert held.names == again.names != split_holdout(images, 0.25, 4)[1].names  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="between 0 and 1, found 1"):
        split_holdout(images, 1.0)
    with pytest.raises(ImageError, match="can not be split"):
        split_holdout(images.select([0]), 0.5)


def test_splits_share_what_was_skipped(tmp_path):
    write_photos(tmp_path, 4)
    write_bad_files(tmp_path)
    images = read_set(tmp_path, minimum=5)  # the minimum was for the whole; a part is held to one image
    for part in split_holdout(images, 0.5):
        assert len(list(part.batches(8))) <= 1
    assert {"cut.jpg", "cut.png"} <= {s.name for s in images.skipped}
    assert images.n_images == 4


def test_data_hash_follows_content_names_and_choice(tmp_path):
    write_photos(tmp_path, 4)
    first = read_set(tmp_path).data_hash()
    assert first == read_set(tmp_path, Recipe()).data_hash()
    assert first != read_set(tmp_path, limit=3).data_hash()
    (tmp_path / "000.png").rename(tmp_path / "zzz.png")
    renamed = read_set(tmp_path).data_hash()
    assert renamed != first
    photo(20, 20, seed=99).save(tmp_path / "001.png")
    assert read_set(tmp_path).data_hash() != renamed


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


# labels


def class_folders(root: Path, *folders: str) -> None:
    for i, folder in enumerate(folders):
        write_photos(root / folder, 2, first=10 * i)


def test_folders_give_labels_by_sorted_name(tmp_path):
    class_folders(tmp_path, "dog", "cat", "emu/deep")
    images = read_set(tmp_path, labels="folders")
    (batch,) = images.batches(10)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (images.labels.n_classes, images.labels.source) == (3, None)
    assert read_set(tmp_path, labels="folders", limit=1).labels.n_classes == 3
    assert next(iter(read_set(tmp_path).batches(10))).labels is None
    half, _ = split_holdout(images, 0.5)
    for batch in half.batches(1):
        assert batch.labels == [["cat", "dog", "emu"].index(batch.names[0].split("/")[0])]


def test_labels_file_is_sorted_and_maps_missing_folders_right(tmp_path):
    root = tmp_path / "val"
    class_folders(root, "n30", "n10")
    labels = tmp_path / "ids.txt"
    labels.write_text("n20\nn10\r\n\nn40\nn30\n")
    images = read_set(root, labels=labels)
    (batch,) = images.batches(10)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 2, 2]  # n10, n20, n30, n40
    assert images.labels.n_classes == 4
    (only,) = read_set(root, labels=labels, limit=1).batches(1)
    assert only.labels == [0 if only.names[0].startswith("n10") else 2]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"n10\n", r"folder n30 is not among the 1 classes of .*give the labels file of this dataset"),
        (b"a\nb\n", "folder n10, n30 is not among the 2 classes"),
        (b"\n", "labels file is empty; expected one class name a line"),
        (b"n10\nn30\nn10\n", "names a class twice: n10"),
        (b"\xff\xfe\x00\x01", "not a text file"),
        (None, "can not be read .No such file"),
    ],
)
def test_labels_files_that_do_not_fit(content, match, tmp_path):
    class_folders(tmp_path / "val", "n30", "n10")
    labels = tmp_path / "ids.txt"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(ImageError, match=match):
        open_images(tmp_path / "val", SMALL, labels=labels)


def test_images_outside_class_folders(tmp_path):
    root = tmp_path / "val"
    class_folders(root, "n10")
    (root / "README").write_text("not an image, so no label is missing")
    labels = tmp_path / "ids.txt"
    labels.write_text("n10\n")
    assert read_set(root, labels=labels).labels.indices == (0, 0)
    photo(20, 20).save(root / "loose.png")
    with pytest.raises(ImageError, match=r"loose.png lies in no class folder, so ids.txt gives it no label"):
        open_images(root, SMALL, labels=labels)
    tolerant = read_set(root, labels="folders")
    assert tolerant.labels.indices is None
    assert tolerant.labels.note.startswith("loose.png lies in no class folder of")


# arrays


def test_npy_is_pixels(tmp_path):
    pixels = np.random.default_rng(0).standard_normal((7, 3, 4, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", pixels)
    images = open_images(tmp_path / "x.npy")
    assert isinstance(images, ArraySet)
    batches = list(images.batches(3))
    assert [len(b) for b in batches] == [3, 3, 1]
    assert batches[2].names == ("x.npy[6]",)
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in batches]), pixels)
    held = split_holdout(images, 0.3, 1)[1]
    rows = [int(n[6:-1]) for b in held.batches(4) for n in b.names]
    np.testing.assert_array_equal(all_pixels(held), pixels[rows])
    limited = [open_images(tmp_path / "x.npy", limit=4, seed=s).data_hash() for s in (0, 0, 1)]
    assert limited[0] == limited[1] != limited[2]
    with pytest.raises(ImageError, match="7 readable images among 7 files, and at least 9 needed; give more"):
        open_images(tmp_path / "x.npy", minimum=9)
    with pytest.raises(OptionError, match="batch size"):
        list(images.batches(0))


def test_a_cut_npy_is_an_error(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((7, 3, 4, 4)))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"x.npy: NumPy can not read it"):
        open_images(tmp_path / "x.npy")


def test_npz_holds_one_array_for_each_input_and_labels(tmp_path):
    ids = np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "text.npz", input_ids=ids, attention_mask=np.ones((4, 3), np.int32), labels=np.arange(4))
    batch = next(iter(open_images(tmp_path / "text.npz").batches(4)))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2, 3]
    inputs = [ModelInput(n, (None, 3), np.dtype(np.int64)) for n in ("attention_mask", "input_ids")]
    feeds = bind_feeds(batch, inputs)
    assert {k: v.dtype.name for k, v in feeds.items()} == {"attention_mask": "int64", "input_ids": "int64"}
    np.testing.assert_array_equal(feeds["input_ids"], ids)
    with pytest.raises(ImageError, match=r"nothing for token_types. Give an .npz file with one array under each"):
        bind_feeds(batch, [*inputs, ModelInput("token_types", (None, 3), np.dtype(np.int64))])
    with pytest.raises(ImageError, match="expected one array of pixels, found input_ids, attention_mask"):
        _ = batch.pixels


def test_arrays_of_other_lengths_types_and_contents(tmp_path):
    def save(**arrays: np.ndarray) -> Path:
        np.savez(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    with pytest.raises(ImageError, match=r"differ in length \(a 4, b 5\); the first axis counts samples"):
        open_images(save(a=np.zeros((4, 2)), b=np.zeros((5, 2))))
    with pytest.raises(ImageError, match=r"differ in length \(a 4, labels 5\)"):
        open_images(save(a=np.zeros((4, 2)), labels=np.zeros(5, int)))
    with pytest.raises(ImageError, match=r"'labels' is float64 of shape \[4\]; expected integers"):
        open_images(save(a=np.zeros((4, 2)), labels=np.zeros(4)))
    with pytest.raises(ImageError, match="array 'a' is <U1 of shape"):
        open_images(save(a=np.array(["x", "y"])))
    with pytest.raises(ImageError, match="no array in it"):
        open_images(save(labels=np.zeros(4, int)))
    with pytest.raises(ImageError, match=r"NumPy can not read it .*allow_pickle"):
        open_images(save(a=np.array([{}, {}], dtype=object)))
    with pytest.raises(ImageError, match="'a' holds NaN or Inf between rows 2 and 3"):
        list(open_images(save(a=np.array([[0.0], [1], [2], [np.nan]]))).batches(2))
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:50])
    with pytest.raises(ImageError, match="NumPy can not read it"):
        open_images(tmp_path / "a.npz")


def test_feeds_must_fit_the_input():
    pixels = Batch({"anything": np.zeros((2, 3, 4, 4), np.float32)}, ("a", "b"))
    half = ModelInput("x", (None, 3, 4, 4), np.dtype(np.float16))
    assert bind_feeds(pixels, [half])["x"].dtype == np.float16
    with pytest.raises(ImageError, match=r"'x' takes shape \[n, 3, any, 8\], and its array has \[2, 3, 4, 4\]"):
        bind_feeds(pixels, [ModelInput("x", (1, 3, None, 8), np.dtype(np.float32))])
    with pytest.raises(ImageError, match="takes uint8 and its array is float32: give arrays that are preprocessed"):
        bind_feeds(pixels, [ModelInput("x", (None, 3, 4, 4), np.dtype(np.uint8))])
    wide = Batch({"x": np.full((1, 2), 2**40)}, ("a",))
    with pytest.raises(ImageError, match="takes int32, and its int64 array does not fit that range"):
        bind_feeds(wide, [ModelInput("x", (None, 2), np.dtype(np.int32))])
    with pytest.raises(ImageError, match=r"a batch of 2 samples holds arrays of other lengths: {'x': 1}"):
        Batch({"x": np.zeros((1, 2))}, ("a", "b"))


@given(n=st.integers(1, 12), size=st.one_of(st.none(), st.integers(1, 5)))
def test_pieces_of_a_fixed_size_hold_every_sample_once(n, size):
    feeds = {"x": np.arange(n), "y": np.arange(n)[:, None]}
    pieces = list(split_feeds(feeds, size))
    assert all(len(part["x"]) == len(part["y"]) == (size or n) for part, _ in pieces)
    assert np.concatenate([part["x"][:real] for part, real in pieces]).tolist() == list(range(n))
