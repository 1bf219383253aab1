"""Folders of images: order, batches, what is decoded when, bad files, draws and splits."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings

import numpy as np
import pytest
from photos import SMALL, all_pixels, photo, read_set, write_bad_files, write_photos
from PIL import Image

import corp_onnx.images.decode as decode_module
import corp_onnx.images.folder as images_module
from corp_onnx.errors import ImageError, OptionError
from corp_onnx.images import ImageSet, open_images, split_holdout
from corp_onnx.images.crop import crop_image, normalize_crops
from corp_onnx.images.decode import list_files
from corp_onnx.images.open import find_sound, spread_images
from corp_onnx.images.recipe import Recipe


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
    forgetful = read_set(tmp_path)
    forgetful.keep_less(0)
    assert sum(len(b) for _ in range(2) for b in forgetful.batches(2)) == 8
    assert len(decoded) == 12


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
        ImageError, match=r"a.txt: not an image; expected a folder of images, an image, shards, a .npy or a .npz"
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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8(tmp_path):
    """Images in class folders: read, hashed and labelled as any other; the hash still tells two names apart."""
    (name,) = write_photos(tmp_path / "plain", 1)
    found = []
    for odd in (b"\xff\xfe", b"\xfe\xff"):
        root = tmp_path / f"root{len(found)}"
        folder = root / os.fsdecode(b"z" + odd)
        folder.mkdir(parents=True)
        shutil.copytree(tmp_path / "plain", root / "a")
        shutil.copy(tmp_path / "plain" / name, folder / os.fsdecode(odd + b".png"))
        images = open_images(root, labels="folders")
        (batch,) = images.batches(9)
        assert batch.labels.tolist() == [0, 1]
        found.append(images.data_hash())
    assert found[0] != found[1]


def test_images_known_to_be_damaged_are_drawn_no_more(tmp_path):
    write_photos(tmp_path, 6)
    (tmp_path / "002.png").write_bytes((tmp_path / "002.png").read_bytes()[:60])
    images = open_images(tmp_path)
    assert find_sound(images).tolist() == list(range(6))
    assert sum(len(batch.names) for batch in images.batches(4)) == 5
    assert find_sound(images).tolist() == [0, 1, 3, 4, 5]
    assert spread_images(images, 3).names == ("000.png", "003.png", "005.png")
    assert spread_images(images, 9).names == ("000.png", "001.png", "003.png", "004.png", "005.png")
    assert len(find_sound(open_images(np.zeros((4, 3, 8, 8), np.float32)))) == 4


def test_a_later_pass_finds_every_file_damaged(tmp_path):
    """As where a few were looked at first: no pass ends without an image and without a word."""
    write_photos(tmp_path, 3)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    images = open_images(tmp_path)
    for chosen in (images.select([0, 1, 2]), images, images.select([1])):
        with pytest.raises(
            ImageError, match=r"0 readable images among 3 files, and at least 1 needed; skipped 000\.png"
        ):
            list(chosen.batches(2))


def test_of_many_files_that_are_all_wanted_none_is_opened_before_its_turn(tmp_path, monkeypatch):
    names = write_photos(tmp_path, 6)
    write_bad_files(tmp_path)
    photo(30, 30).save(tmp_path / "jpeg_inside.txt", format="JPEG")
    expected = read_set(tmp_path)
    opened = []
    real = decode_module.identify_file
    monkeypatch.setattr(decode_module, "identify_file", lambda path: opened.append(path.name) or real(path))
    assert read_set(tmp_path, limit=3).n_images == 3
    monkeypatch.setattr(decode_module, "MANY_FILES", 5)
    opened.clear()
    many = read_set(tmp_path)
    assert sorted(opened) == [".hidden.png", "jpeg_inside.txt", "notes.txt", "page.eps"]  # not called like images
    np.testing.assert_array_equal(all_pixels(many), all_pixels(expected))
    assert {skip.name for skip in many.skipped} == {skip.name for skip in expected.skipped}
    assert many.n_images == len(names) + 1


def test_files_are_listed_without_asking_the_system_about_them(tmp_path, monkeypatch):
    write_photos(tmp_path / "a" / "b", 4)
    asked = []
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *rest, **options: asked.append(str(path)) or real(path, *rest, **options)
    )
    assert list_files(tmp_path)[1] == ["a/b/000.png", "a/b/001.png", "a/b/002.png", "a/b/003.png"]
    assert not [path for path in asked if path.endswith(".png")]
