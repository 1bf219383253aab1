"""Samples that are preprocessed already, from .npy and .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from photos import all_pixels

from corp_onnx.errors import ImageError, OptionError
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.arrays import HASH_ROWS, ArraySet, is_array_file, open_arrays
from corp_onnx.run.feeds import ModelInput, bind_feeds


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


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


def spell_npy(header: str) -> bytes:
    """A .npy file of 48 bytes of data with this header, whatever it says."""
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (HEADER % "(-4, 3)", "negative dimensions are not allowed"),
        (HEADER % "(True, 3)", "an integer is required"),
        (HEADER % "(False,)", "an integer is required"),
        (HEADER % f"(4, {2**70})", "Python int too large"),
        (HEADER % "None", "shape is not valid: None"),
        (HEADER % ("-" * 9000 + "1"), "its header is too deep to parse, or there is no memory left"),
        (HEADER % ("(" * 4000 + ")" * 4000), "Cannot parse header"),
        (HEADER % ("(" * 30_000), "Header info length .* is large"),
        ("{[]: 1}", "unhashable type"),
        (HEADER.replace("<f4", ",") % "(4, 3)", "invalid syntax"),
        (HEADER.replace("<f4", "|O") % "(4, 3)", "object|Object"),
    ],
)
def test_headers_that_are_none(kind, header, sentence, tmp_path):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(spell_npy(header))
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", spell_npy(header))
    with pytest.raises(ImageError, match=rf"a\.{kind}: NumPy can not read it \(.*({sentence})") as caught:
        open_images(path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ({"flag": 1}, "is encrypted, password required"),
        ({"flag": 1 << 5}, "compressed patched data"),
        ({"flag": 1 << 6}, "strong encryption"),
        ({"method": 9}, "compression method is not supported"),
        ({"method": 99}, "compression method is not supported"),
        ({"method": 14}, "Corrupt|Bad CRC|Invalid"),
        ({"version": 99}, "zip file version 9.9"),
    ],
)
def test_archives_that_zipfile_does_not_open(spoil, sentence, tmp_path):
    """Bytes of the archive's own fields: at 6 and 8 of the member's header, 8 and 10 of its entry in the directory."""
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 3), np.float32))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    entry = data.index(b"PK\x01\x02")
    for field, value in spoil.items():
        place = {"version": 4, "flag": 6, "method": 8}[field]
        data[place] = data[entry + place + 2] = value
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ImageError, match=rf"a\.npz: NumPy can not read it \(.*({sentence})"):
        open_images(tmp_path / "a.npz")


def test_an_array_file_is_known_by_its_first_bytes(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    np.savez(tmp_path / "none.npz")
    (tmp_path / "photo.npy").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "b.npz").rename(tmp_path / "b.dat")
    found = {path.name: is_array_file(path) for path in tmp_path.iterdir()}
    assert found == {"a.npy": True, "b.dat": True, "none.npz": True, "photo.npy": False}


def test_labels_follow_their_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(6.0)[:, None], labels=np.arange(6, dtype=np.uint8) + 10)
    images = open_arrays(tmp_path / "a.npz").select([4, 1, 3]).select([0, 2])
    (batch,) = images.batches(5)
    assert (images.n_images, images.skipped, batch.names) == (2, (), ("a.npz[4]", "a.npz[3]"))
    assert batch.arrays["x"].ravel().tolist() == [4.0, 3.0]
    assert batch.labels is not None
    assert (batch.labels.dtype, batch.labels.tolist()) == (np.int64, [14, 13])


def test_the_hash_is_of_what_the_set_holds(tmp_path):
    """Names, types, contents behind the first stretch too, labels, choice and order; not the file or its name."""
    x = np.arange(2 * HASH_ROWS + 1, dtype=np.float32)[:, None]
    labels = np.zeros(len(x), dtype=np.int64)

    def hash_of(name: str = "a.npz", rows: slice = slice(None), **arrays: np.ndarray) -> str:
        np.savez(tmp_path / name, **arrays)
        return open_arrays(tmp_path / name).select(np.arange(len(x))[rows]).data_hash()

    last, flipped = x.copy(), labels.copy()
    last[-1], flipped[-1] = -1, 1
    same = hash_of(x=x, labels=labels)
    assert hash_of("b.npz", labels=labels, x=x) == same
    others = [
        hash_of(x=last, labels=labels), hash_of(x=x, labels=flipped), hash_of(x=x), hash_of(y=x, labels=labels),
        hash_of(x=x.astype(np.float64), labels=labels), hash_of(rows=slice(None, -1), x=x, labels=labels),
        hash_of(rows=slice(None, None, -1), x=x, labels=labels),
    ]  # fmt: skip
    assert len({same, *others}) == 8
