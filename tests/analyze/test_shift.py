"""Each shift does what its name says, whatever the preprocessing made of the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from corp_onnx.analyze.shift import CONTRAST, NOISE, SHIFTS, shift_images
from corp_onnx.errors import OptionError
from corp_onnx.images.memory import gather_arrays

X = np.random.default_rng(0).normal(3.0, 2.0, (6, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("name", SHIFTS)
def test_of_scaled_pixels_is_the_scaled_shift(name: str) -> None:
    """mean and std of a recipe change nothing."""
    one, other = (SHIFTS[name](x, np.random.default_rng(1)) for x in (X, 0.25 * X - 7))
    np.testing.assert_allclose(0.25 * one - 7, other, atol=1e-3)


def test_each_changes_what_it_is_called_after() -> None:
    blurred, noisy, pale = (np.asarray(SHIFTS[n](X, np.random.default_rng(1))) for n in ("blur", "noise", "contrast"))
    assert np.abs(np.diff(blurred, axis=3)).mean() < 0.2 * np.abs(np.diff(X, axis=3)).mean()
    assert (noisy - X).std() == pytest.approx(NOISE * X.std(axis=(2, 3)).mean(), rel=0.05)
    np.testing.assert_allclose(pale.std(axis=(2, 3)), CONTRAST * X.std(axis=(2, 3)), rtol=1e-4)
    np.testing.assert_allclose(pale.mean(axis=(2, 3)), X.mean(axis=(2, 3)), rtol=1e-4)


def test_images_stay_in_their_order_and_number() -> None:
    found = shift_images(gather_arrays({"x": X}, {}), "contrast", 0, batch_size=4)
    np.testing.assert_allclose(found.arrays["x"].mean(axis=(1, 2, 3)), X.mean(axis=(1, 2, 3)), rtol=1e-4)
    assert found.arrays["x"].dtype == np.float32


def test_only_of_images() -> None:
    with pytest.raises(OptionError, match="changes images"):
        shift_images(gather_arrays({"ids": np.zeros((4, 7), np.int64)}, {}), "blur", 0)
