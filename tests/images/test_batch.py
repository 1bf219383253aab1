"""A batch: equal lengths, and the one array that photographs have."""

from __future__ import annotations

import numpy as np
import pytest

from corp_onnx.errors import ImageError, OptionError
from corp_onnx.images.batch import PIXELS, Batch, check_batch_size


def test_a_batch_is_as_long_as_its_names():
    pixels = np.zeros((2, 3, 4, 4), np.float32)
    batch = Batch({PIXELS: pixels}, ("a", "b"), np.array([5, 7]))
    assert len(batch) == 2
    assert batch.pixels is pixels
    assert Batch({PIXELS: pixels}, ("a", "b")).labels is None


def test_arrays_and_labels_of_other_lengths_are_refused():
    with pytest.raises(ImageError, match=r"a batch of 2 samples holds arrays of other lengths: {'x': 1}"):
        Batch({"x": np.zeros((1, 2))}, ("a", "b"))
    with pytest.raises(ImageError, match=r"a batch of 2 samples holds arrays of other lengths: {'x': 2, 'labels': 3}"):
        Batch({"x": np.zeros((2, 2))}, ("a", "b"), np.arange(3))


@pytest.mark.parametrize(("names", "found"), [(("ids", "mask"), "ids, mask"), ((), "")])
def test_only_one_array_is_the_pixels(names, found):
    batch = Batch({name: np.zeros((1, 2)) for name in names}, ("a",))
    with pytest.raises(ImageError, match=rf"expected one array of pixels, found {found}\."):
        _ = batch.pixels


def test_a_batch_size_is_one_or_more():
    check_batch_size(1)
    with pytest.raises(OptionError, match="the batch size must be at least 1, found -2"):
        check_batch_size(-2)
