"""Which rows a refit sums: every position as often as any other, and sums that are those of all rows in the mean."""

from __future__ import annotations

import numpy as np
import pytest

from corp_onnx.refit.parts import Batch, choose_stride, count_tokens, cut_folds, draw_tokens


def make_batch(n_images: int, n_tokens: int, n_kept: float, first: int = 0, *, alike: bool = False) -> Batch:
    """Random rows of 3 channels read and 2 written; the same in every image where they are to be alike."""
    rng = np.random.default_rng(0)

    def draw(width: int) -> np.ndarray:
        own = rng.standard_normal((1 if alike else n_images, n_tokens, width)).astype(np.float32)
        return np.broadcast_to(own, (n_images, n_tokens, width)).copy()

    return Batch(draw(3).reshape(-1, 3), draw(2), draw(2), first, n_images, n_kept)


@pytest.mark.parametrize(("n_tokens", "stride"), [(197, 4), (50, 3), (17, 16)])
def test_every_position_is_drawn_once_by_as_many_images_as_the_stride(n_tokens: int, stride: int) -> None:
    drawn = [draw_tokens(n_tokens, stride, image) for image in range(5, 5 + stride)]
    counts = np.bincount(np.concatenate(drawn), minlength=n_tokens)
    assert counts.tolist() == [stride, stride, *[1] * (n_tokens - 2)]


def test_so_many_tokens_are_enough() -> None:
    assert count_tokens(256, 192) == count_tokens(256, 768) == 48
    assert count_tokens(64, 768) == 192  # of few images all
    assert choose_stride((8, 197), 8, 48) == 4
    assert choose_stride((8, 197), 8, 192) == 1


@pytest.mark.parametrize("leading", [(64, 49), (197, 8), (8, 14, 14)])
def test_all_rows_where_the_stream_is_not_images_by_tokens(leading: tuple[int, ...]) -> None:
    assert choose_stride(leading, 8, 1) == 1


@pytest.mark.parametrize("weights", [None, np.array([9.0, 1.0], np.float32)])
def test_sums_of_the_drawn_are_those_of_all(weights: np.ndarray | None) -> None:
    """Of images that are alike exactly, so many of them as the stride is."""
    every, few = (make_batch(4, 22, n, alike=True).cut(0, 4, weights, np.float32(2)) for n in (22, 5))
    assert len(few.z) == 4 * 2 + 20
    ones = np.ones(len(every.z), np.float32)
    rows = ones if every.weights is None else every.weights
    assert few.weights is not None
    for all_of_it, drawn in ((every.z, few.z), (every.target, few.target)):
        np.testing.assert_allclose(4 * few.weights @ drawn, rows @ all_of_it, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            4 * (drawn * few.weights[:, None]).T @ drawn,
            (all_of_it * rows[:, None]).T @ all_of_it,
            rtol=1e-4,
            atol=1e-4,
        )


def test_rows_do_not_depend_on_how_images_are_cut_into_batches() -> None:
    whole = make_batch(6, 22, 5)
    late = Batch(whole.z[44:], whole.skip[2:], whole.dense[2:], 2, 4, 5)
    one, other = (batch.cut(3, 5, None, np.float32(1)) for batch in (whole, late))
    np.testing.assert_array_equal(one.z, other.z)
    np.testing.assert_array_equal(one.target, other.target)


def test_folds_take_every_image_once_and_never_cross_a_group() -> None:
    found = [list(cut_folds([5, 5, 3], 4, 2, fold)) for fold in range(2)]
    assert found[0] == [(0, 0, [(0, 4)]), (1, 5, [(8, 10)]), (2, 10, [(10, 12)])]
    assert found[1] == [(0, 0, [(4, 5)]), (1, 5, [(5, 8)]), (2, 10, [(12, 13)])]
