"""A batch and a model's inputs: by name, by type, in pieces of a fixed size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corp_onnx.errors import ImageError
from corp_onnx.images.batch import Batch
from corp_onnx.run.feeds import ModelInput, bind_feeds, split_feeds


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


@given(n=st.integers(1, 12), size=st.one_of(st.none(), st.integers(1, 5)))
def test_pieces_of_a_fixed_size_hold_every_sample_once(n, size):
    feeds = {"x": np.arange(n), "y": np.arange(n)[:, None]}
    pieces = list(split_feeds(feeds, size))
    assert all(len(part["x"]) == len(part["y"]) == (size or n) for part, _ in pieces)
    assert np.concatenate([part["x"][:real] for part, real in pieces]).tolist() == list(range(n))
