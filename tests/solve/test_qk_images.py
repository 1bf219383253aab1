"""Refinement on single images: the objective as the logits say it, never rising, near its minimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.errors import OptionError
from corp_onnx.solve.qk import drop_qk, low_rank_logits
from corp_onnx.solve.qk_images import measure_image_error, refine_logits

N_IMAGES, N_HEADS, D_HEAD = 6, 2, 6


def make_images(seed: int, n_tokens: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys [images, heads, tokens, d]; every image stretches other dimensions, keys centred."""
    rng = np.random.default_rng(seed)
    stretch = rng.lognormal(sigma=0.8, size=(2, N_IMAGES, N_HEADS, 1, D_HEAD))
    q, k = rng.normal(size=(2, N_IMAGES, N_HEADS, n_tokens, D_HEAD)) * stretch @ rng.normal(size=(D_HEAD, D_HEAD))
    return q, k - k.mean(axis=2, keepdims=True)


def grams(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 1, 3, 2) @ x


def start(q_gram: np.ndarray, k_gram: np.ndarray, width: int):
    return low_rank_logits(q_gram.sum(axis=0), k_gram.sum(axis=0), width)


def test_the_measured_error_is_that_of_the_logits():
    q, k = make_images(0)
    solution = start(grams(q), grams(k), 3)
    dense = q @ k.transpose(0, 1, 3, 2)
    pruned = (q @ solution.q_map.transpose(0, 2, 1)) @ (k @ solution.k_map.transpose(0, 2, 1)).transpose(0, 1, 3, 2)
    expected = np.square(dense - pruned).sum() / np.square(dense).sum()
    assert measure_image_error(solution, grams(q), grams(k)) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), width=st.integers(1, D_HEAD - 1))
def test_the_objective_never_rises(seed, width):
    q, k = make_images(seed)
    solution = start(grams(q), grams(k), width)
    errors = [
        measure_image_error(refine_logits(solution, grams(q), grams(k), n_sweeps), grams(q), grams(k))
        for n_sweeps in (0, 1, 2, 6)
    ]
    assert (np.diff(errors) <= 1e-12).all()
    assert errors[0] == pytest.approx(measure_image_error(solution, grams(q), grams(k)))


def naive_alternation(solution, q: np.ndarray, k: np.ndarray, n_sweeps: int) -> list[np.ndarray]:
    """U V' of every head after exact least squares on the logits, one factor at a time."""
    products = []
    for h in range(N_HEADS):
        U, V = solution.q_map[h].T, solution.k_map[h].T
        target = np.concatenate([(q[b, h] @ k[b, h].T).ravel() for b in range(N_IMAGES)])
        for _ in range(n_sweeps):
            design = np.concatenate([np.kron(q[b, h], k[b, h] @ V) for b in range(N_IMAGES)])
            U = np.linalg.lstsq(design, target, rcond=None)[0].reshape(U.shape)
            design = np.concatenate([np.kron(k[b, h], q[b, h] @ U) for b in range(N_IMAGES)])
            swapped = np.concatenate([(k[b, h] @ q[b, h].T).ravel() for b in range(N_IMAGES)])
            V = np.linalg.lstsq(design, swapped, rcond=None)[0].reshape(V.shape)
        products.append(U @ V.T)
    return products


def test_it_comes_near_exact_alternating_least_squares():
    q, k = make_images(1)
    solution = start(grams(q), grams(k), 2)
    refined = refine_logits(solution, grams(q), grams(k))
    exact = naive_alternation(solution, q, k, 4)
    found = refined.q_map.transpose(0, 2, 1) @ refined.k_map

    def error(product):
        difference = np.eye(D_HEAD) - product
        return float(np.sum((grams(q) @ difference @ grams(k)) * difference))

    before = error(solution.q_map.transpose(0, 2, 1) @ solution.k_map)
    assert error(np.array(exact)) < 0.97 * before
    assert before - error(found) > 0.99 * (before - error(np.array(exact)))


def test_equal_images_leave_nothing_to_refine():
    """With one Gram for all images the pooled answer is the best there is."""
    q, k = (np.repeat(x[:1], N_IMAGES, axis=0) for x in make_images(2))
    solution = start(grams(q), grams(k), 3)
    refined = refine_logits(solution, grams(q), grams(k))
    before, after = (measure_image_error(s, grams(q), grams(k)) for s in (solution, refined))
    assert after == pytest.approx(before, rel=1e-8)


def test_both_sides_stay_of_equal_size():
    q, k = make_images(3)
    refined = refine_logits(start(grams(q), grams(k), 3), grams(q), grams(k))
    q_out = np.einsum("hrd,hde,hre->hr", refined.q_map, grams(q).sum(axis=0), refined.q_map)
    k_out = np.einsum("hrd,hde,hre->hr", refined.k_map, grams(k).sum(axis=0), refined.k_map)
    np.testing.assert_allclose(q_out, k_out, rtol=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 2])
def test_few_tokens_give_finite_maps(n_tokens):
    q, k = make_images(4, n_tokens)
    refined = refine_logits(start(grams(q), grams(k), 4), grams(q), grams(k))
    assert np.isfinite(refined.q_map).all()
    assert np.isfinite(refined.k_map).all()


def test_full_width_is_returned_as_it_is_and_no_images_are_refused():
    q, k = make_images(5)
    full = drop_qk(np.tile(np.arange(D_HEAD), (N_HEADS, 1)), D_HEAD)
    assert refine_logits(full, grams(q), grams(k)) is full
    with pytest.raises(OptionError, match="expected images and 0 or more sweeps, found 0 images, 4 sweeps"):
        refine_logits(full, grams(q)[:0], grams(k)[:0])
