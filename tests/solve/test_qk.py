"""Query and key maps: the paper's equations solved naively, made-up truths, and low rank never above the paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import logit_error

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import LogitMoments
from corp_onnx.solve.qk import (
    QkSolution,
    compensate_qk,
    drop_qk,
    low_rank_logits,
    select_logit_energy,
    trace_logit_curve,
)

N_HEADS, D_HEAD = 2, 6


def make_heads(seed: int, n_tokens: int = 40, rank: int = D_HEAD) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys [heads, tokens, d] of the given rank."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(2, N_HEADS, rank, D_HEAD))
    q, k = rng.normal(size=(2, N_HEADS, n_tokens, rank)) @ mix
    return q, k


def gram(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 1) @ x


def naive_paper(q: np.ndarray, k: np.ndarray, kept: np.ndarray, lam: float) -> np.ndarray:
    """M of eq. 15 for one head from its Kronecker form: (K_S'K_S (x) Q_S'Q_S + lambda I) vec M = vec R."""
    pruned = np.setdiff1d(np.arange(q.shape[1]), kept)
    A, C = q[:, kept].T @ q[:, kept], k[:, kept].T @ k[:, kept]
    R = q[:, kept].T @ q[:, pruned] @ k[:, pruned].T @ k[:, kept]
    operator = np.kron(C.T, A) + lam * np.eye(len(kept) ** 2)
    return np.linalg.solve(operator, R.flatten(order="F")).reshape(len(kept), len(kept), order="F")


@pytest.mark.parametrize("ridge", [1e-3, 0.2])
@pytest.mark.parametrize("kept", [[[0], [3]], [[0, 2, 5], [1, 2, 3]], [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]])
def test_the_folded_maps_are_those_of_the_paper(kept, ridge):
    q, k = make_heads(0)
    kept = np.array(kept)
    solution = compensate_qk(gram(q), gram(k), kept, ridge)
    for h in range(N_HEADS):
        scale = np.square(q[h][:, kept[h]]).sum(axis=0).mean() * np.square(k[h][:, kept[h]]).sum(axis=0).mean()
        M = naive_paper(q[h], k[h], kept[h], ridge * scale)
        expected = q[h][:, kept[h]] @ (np.eye(kept.shape[1]) + M) @ k[h][:, kept[h]].T
        found = (q[h] @ solution.q_map[h].T) @ (k[h] @ solution.k_map[h].T).T
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
        pruned = np.setdiff1d(np.arange(D_HEAD), kept[h])
        assert (solution.q_map[h][:, pruned] == 0).all()
        assert (solution.k_map[h][:, pruned] == 0).all()


def test_without_ridge_one_image_is_the_least_squares_fit():
    q, k = make_heads(1)
    kept = np.tile([0, 2, 5], (N_HEADS, 1))
    solution = compensate_qk(gram(q), gram(k), kept, ridge=0.0)
    for h in range(N_HEADS):
        target = (q[h] @ k[h].T).flatten()
        design = np.einsum("ia,jb->ijab", q[h][:, kept[h]], k[h][:, kept[h]]).reshape(target.size, -1)
        fit = design @ np.linalg.lstsq(design, target, rcond=None)[0]
        found = (q[h] @ solution.q_map[h].T) @ (k[h] @ solution.k_map[h].T).T
        np.testing.assert_allclose(found.flatten(), fit, rtol=1e-7, atol=1e-7)


def test_dimensions_that_the_kept_ones_span_cost_nothing():
    q, k = make_heads(2, rank=3)
    kept = np.tile([0, 1, 2], (N_HEADS, 1))
    assert logit_error(q, k, compensate_qk(gram(q), gram(k), kept, ridge=1e-12)) < 1e-8
    assert logit_error(q, k, drop_qk(kept, D_HEAD)) > 0.05
    assert logit_error(q, k, low_rank_logits(gram(q), gram(k), 3)) < 1e-12


def test_logit_energy_keeps_the_highest_and_nests():
    rng = np.random.default_rng(0)
    energy = rng.uniform(size=(N_HEADS, D_HEAD))
    grams = np.zeros((N_HEADS, D_HEAD, D_HEAD))
    moments = LogitMoments(1, 1, 1, grams, grams, grams, energy)
    for width in range(1, D_HEAD + 1):
        kept = select_logit_energy(moments, width)
        for h in range(N_HEADS):
            assert kept[h].tolist() == sorted(sorted(range(D_HEAD), key=lambda j: -energy[h, j])[:width])


@pytest.mark.parametrize("width", [0, D_HEAD + 1])
def test_a_width_out_of_range_is_refused(width):
    q, k = make_heads(0)
    with pytest.raises(OptionError, match=f"expected a width of 1 to 6 head dimensions, found {width}"):
        low_rank_logits(gram(q), gram(k), width)
    moments = LogitMoments(1, 1, 1, *np.zeros((3, 2, 6, 6)), np.zeros((2, 6)))
    with pytest.raises(OptionError, match=f"expected a width of 1 to 6 head dimensions, found {width}"):
        select_logit_energy(moments, width)


def test_nothing_kept_and_a_negative_ridge_are_refused():
    q, k = make_heads(0)
    nothing = np.zeros((N_HEADS, 0), dtype=np.int64)
    with pytest.raises(OptionError, match="at least one of 6 channels to stay"):
        compensate_qk(gram(q), gram(k), nothing)
    with pytest.raises(OptionError, match="expected a ridge of zero or more, found -1"):
        compensate_qk(gram(q), gram(k), np.array([[0], [1]]), ridge=-1.0)


def test_nothing_pruned_gives_identity_maps():
    q, k = make_heads(0)
    everything = np.tile(np.arange(D_HEAD), (N_HEADS, 1))
    for solution in (compensate_qk(gram(q), gram(k), everything), low_rank_logits(gram(q), gram(k), D_HEAD)):
        assert (solution.q_map == np.eye(D_HEAD)).all()
        assert (solution.k_map == np.eye(D_HEAD)).all()
        assert solution.condition_number == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), width=st.integers(1, D_HEAD - 1), n_tokens=st.sampled_from([1, 3, 40]))
def test_low_rank_is_never_above_the_paper_and_its_error_is_the_curve(seed, width, n_tokens):
    q, k = make_heads(seed, n_tokens)
    q_gram, k_gram = gram(q), gram(k)
    kept = np.sort(np.random.default_rng(seed).permuted(np.tile(np.arange(D_HEAD), (2, 1)), axis=1)[:, :width], axis=1)
    best = logit_error(q, k, low_rank_logits(q_gram, k_gram, width))
    assert best <= logit_error(q, k, compensate_qk(q_gram, k_gram, kept, 1e-9)) + 1e-9
    curve = trace_logit_curve(q_gram, k_gram)
    assert best == pytest.approx(curve[width] / curve[0], rel=1e-6, abs=1e-9)
    assert (np.diff(curve) <= 0).all()
    assert curve[D_HEAD] == 0


def test_the_curve_starts_at_the_energy_of_the_logits():
    q, k = make_heads(3)
    assert trace_logit_curve(gram(q), gram(k))[0] == pytest.approx(np.square(q @ k.transpose(0, 2, 1)).sum())


def test_low_rank_logits_are_the_truncated_svd_of_one_image():
    q, k = make_heads(4)
    solution = low_rank_logits(gram(q), gram(k), 3)
    for h in range(N_HEADS):
        left, singular, right = np.linalg.svd(q[h] @ k[h].T)
        expected = (left[:, :3] * singular[:3]) @ right[:3]
        found = (q[h] @ solution.q_map[h].T) @ (k[h] @ solution.k_map[h].T).T
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_low_rank_factors_are_balanced():
    q, k = make_heads(5)
    solution = low_rank_logits(gram(q), gram(k), 4)
    q_out = solution.q_map @ gram(q) @ solution.q_map.transpose(0, 2, 1)
    k_out = solution.k_map @ gram(k) @ solution.k_map.transpose(0, 2, 1)
    np.testing.assert_allclose(q_out, k_out, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(q_out[0], np.diag(np.diag(q_out[0])), atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_deficient_grams_give_finite_maps(rank):
    q, k = make_heads(6, rank=rank)
    for solution in (
        low_rank_logits(gram(q), gram(k), 4),
        compensate_qk(gram(q), gram(k), np.tile([0, 1, 2, 4], (N_HEADS, 1))),
        compensate_qk(gram(q), gram(k), np.tile([0, 1, 2, 4], (N_HEADS, 1)), ridge=0.0),
    ):
        assert np.isfinite(solution.q_map).all()
        assert np.abs(solution.k_map).max() < 1e3
    assert logit_error(q, k, low_rank_logits(gram(q), gram(k), 4)) < 1e-10


def test_a_head_that_says_nothing_is_left_alone():
    zeros = np.zeros((N_HEADS, D_HEAD, D_HEAD))
    solution = low_rank_logits(zeros, zeros, 2)
    assert (solution.q_map == 0).all()
    assert (solution.k_map == 0).all()
    paper = compensate_qk(zeros, zeros, np.tile([0, 1], (N_HEADS, 1)))
    assert np.isfinite(paper.q_map).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_neither_scale_nor_number_of_images_changes_the_paper_map(seed, scale):
    q, k = make_heads(seed)
    kept = np.tile([0, 2, 3], (N_HEADS, 1))
    plain, scaled = compensate_qk(gram(q), gram(k), kept), compensate_qk(gram(q) * scale, gram(k) / 7, kept)
    product, scaled_product = (s.q_map.transpose(0, 2, 1) @ s.k_map for s in (plain, scaled))
    np.testing.assert_allclose(scaled_product, product, rtol=1e-6, atol=1e-8)


def test_unequal_maps_are_refused():
    # with jaxtyping's hook on, its own check comes first
    with pytest.raises(
        (ValueError, TypeError), match=r"found \(1, 2, 3\) for q and \(1, 1, 3\) for k|Type-check error"
    ):
        QkSolution(np.zeros((1, 2, 3)), np.zeros((1, 1, 3)), None)
