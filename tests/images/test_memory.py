"""Arrays in memory: what counts as a sample, as a batch, as labels, and what is nothing of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from photos import SMALL, write_photos

from corp_onnx.errors import ImageError
from corp_onnx.images import ImageSet, open_images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.recipe import Recipe

PIXELS = np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
LABELS = np.arange(6)


def rows_of(images: object) -> dict[str, np.ndarray]:
    assert isinstance(images, ArraySet)
    batches = list(images.batches(4))
    return {name: np.concatenate([b.arrays[name] for b in batches]) for name in batches[0].arrays}


def pixels_of(images: object) -> np.ndarray:
    (array,) = rows_of(images).values()
    return array


class Tensor:
    """What NumPy makes an array of, as a tensor of PyTorch."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del dtype, copy
        return self.array

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)


@pytest.mark.parametrize(
    "source",
    [
        PIXELS, Tensor(PIXELS), {"x": PIXELS}, list(PIXELS), [PIXELS[:4], PIXELS[4:]], (Tensor(p) for p in PIXELS),
        ({"x": p} for p in PIXELS), [(p, 0) for p in PIXELS], [[PIXELS[:5], LABELS[:5]], [PIXELS[5:], LABELS[5:]]],
    ],
    ids=["array", "tensor", "mapping", "samples", "batches", "generator", "mappings", "pairs", "loader"],
)  # fmt: skip
def test_the_same_samples_in_every_form(source: Any) -> None:
    np.testing.assert_array_equal(pixels_of(open_images(source)), PIXELS)


def test_labels_come_along() -> None:
    forms: list[Any] = [
        {"x": PIXELS, "labels": LABELS}, [(p, k) for k, p in enumerate(PIXELS)],
        [{"x": PIXELS[:4], "labels": LABELS[:4]}, {"x": PIXELS[4:], "labels": LABELS[4:]}],
        [{"x": p, "labels": np.int64(k)} for k, p in enumerate(PIXELS)], [(PIXELS, LABELS)],
    ]  # fmt: skip
    for form in forms:
        (batch,) = open_images(form).batches(8)
        assert batch.labels is not None
        assert batch.labels.tolist() == LABELS.tolist()
    outside = open_images(PIXELS, labels=LABELS.tolist())
    drawn = open_images(outside, limit=3, seed=1)
    (batch,) = drawn.batches(8)
    assert batch.labels is not None
    for name, label in zip(batch.names, batch.labels, strict=True):
        assert name == f"arrays in memory[{label}]"


def test_axes_tell_samples_from_batches() -> None:
    ids = np.arange(12).reshape(3, 4)
    samples = [{"input_ids": row, "attention_mask": row > 2} for row in ids]
    ranks = {"input_ids": 2, "attention_mask": 2}
    np.testing.assert_array_equal(rows_of(open_images(samples, ranks=ranks))["input_ids"], ids)
    np.testing.assert_array_equal(rows_of(open_images([{"input_ids": ids, "attention_mask": ids}], ranks=ranks))
                                  ["input_ids"], ids)  # fmt: skip
    np.testing.assert_array_equal(pixels_of(open_images(list(ids), ranks={"x": 2})), ids)
    beside = [{"input_ids": row, "extra": np.float32(0)} for row in ids]
    assert rows_of(open_images(beside, ranks={"input_ids": 2}))["extra"].shape == (3,)


def test_a_set_is_opened_again(tmp_path) -> None:
    write_photos(tmp_path, 6)
    images = open_images(tmp_path, SMALL)
    again = open_images(images, Recipe(size=(8, 8)), limit=3, seed=2)
    assert isinstance(again, ImageSet)
    assert (again.n_images, again.recipe) == (3, SMALL)
    assert again.names == open_images(tmp_path, limit=3, seed=2).names  # type: ignore[union-attr]
    with pytest.raises(ImageError, match=r"6 readable images among 6 files, and at least 7 needed"):
        open_images(images, minimum=7)


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        (iter(()), {}, "the iterable of images yields nothing; a generator can be read only once"),
        (
            [PIXELS[0], PIXELS[0, :, :2]],
            {},
            r"samples of different shapes \(\[3, 2, 4\], \[3, 4, 4\]\) can not be",
        ),
        ([{"x": PIXELS}, {"y": PIXELS}], {}, "some samples have other names than others"),
        (
            [PIXELS[0, 0]],
            {},
            r"expected samples of 3 axes or batches of one more, and the iterable yields pixels",
        ),
        (["a", "b"], {}, r"expected samples of 3 axes"),
        ({"x": [[1], [2, 3]]}, {}, "NumPy makes no array of a list"),
        ({"x": PIXELS, "labels": LABELS[:5]}, {}, r"the arrays differ in length \(x 6, labels 5\)"),
        ({}, {}, "no array in it"),
        (5, {}, r"array 'pixels' is int64 of shape \[\]; expected numbers \[n, \.\.\.\]"),
        (PIXELS, {"labels": [0, 1]}, r"labels of arrays are 6 whole numbers, one a sample, .* found 2 of int64"),
        (PIXELS, {"labels": ["a"] * 6}, r"labels of arrays are 6 whole numbers, .* found 6 of <U1"),
        (PIXELS, {"labels": "names.txt"}, r"labels of arrays are 6 whole numbers, .* found names\.txt"),
        (PIXELS, {"minimum": 7}, "6 readable images among 6 files, and at least 7 needed"),
    ],
)
def test_what_can_not_be_used(source: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ImageError, match=match):
        open_images(source, **options)
