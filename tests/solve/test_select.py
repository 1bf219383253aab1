"""Rankings against their formulas, the error curve against one solve per width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import ChannelMoments
from corp_onnx.solve.select import (
    ChannelOrder,
    order_by_score,
    rank_energy,
    rank_magnitude,
    rank_weighted,
    require_kept,
    trace_error_curve,
)


def make_problem(seed: int, n: int = 9, d_out: int = 4, n_tokens: int = 60) -> tuple[ChannelMoments, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_tokens, n)) @ rng.normal(size=(n, n)) + rng.normal(size=n)
    return ChannelMoments(n_tokens, x.sum(axis=0), x.T @ x), rng.normal(size=(d_out, n))


def test_rankings_follow_their_formulas():
    moments, weight = make_problem(0)
    up_weight = np.random.default_rng(1).normal(size=(9, 5))
    second_moment = np.diagonal(moments.gram) / moments.count
    for order, score in (
        (rank_energy(moments), second_moment),
        (rank_magnitude(weight), [np.linalg.norm(w) for w in weight.T]),
        (rank_magnitude(weight, up_weight), (weight**2).sum(axis=0) + (up_weight**2).sum(axis=1)),
        (
            rank_weighted(moments, weight, up_weight),
            [
                e * np.linalg.norm(u) * np.linalg.norm(w)
                for e, u, w in zip(second_moment, up_weight, weight.T, strict=True)
            ],
        ),
    ):
        assert order.order_idx.tolist() == sorted(range(9), key=lambda j: -score[j])
        assert order.error_curve is None


def test_rankings_differ_where_they_should():
    """The first channel is loud, the last one is silent and has the largest weight."""
    x = np.zeros((10, 3))
    x[:, 0] = 5
    x[:, 1] = np.tile([1, -1], 5)
    moments, weight = ChannelMoments(10, x.sum(axis=0), x.T @ x), np.array([[1.0, 1.0, 9.0]])
    assert rank_energy(moments).order_idx[0] == 0
    assert rank_magnitude(weight).order_idx[0] == 2
    up_weight = np.array([[0.0, 0.1], [3.0, 4.0], [50.0, 0.0]])
    assert rank_weighted(moments, weight, up_weight).order_idx.tolist() == [1, 0, 2]  # 1 * 5, 25 * 0.1, 0 * 450


@settings(max_examples=20, deadline=None)
@given(score=st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_kept_channels_are_ascending_nested_and_the_highest(score):
    order = order_by_score(np.array(score, dtype=np.float64))
    for width in range(len(score) + 1):
        kept = order.kept_idx(width)
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert sum(np.array(score)[kept]) == sum(sorted(score, reverse=True)[:width])
        if width > 1:
            assert set(order.kept_idx(width - 1)) < set(kept)


@pytest.mark.parametrize("width", [-1, 4])
def test_a_width_out_of_range_is_refused(width):
    with pytest.raises(OptionError, match=f"expected a width of 0 to 3 channels, found {width}"):
        ChannelOrder(np.arange(3)).kept_idx(width)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99))
def test_rankings_permute_with_the_channels(seed):
    moments, weight = make_problem(seed)
    shuffle = np.random.default_rng(seed).permutation(9)
    shuffled = ChannelMoments(moments.count, moments.total[shuffle], moments.gram[np.ix_(shuffle, shuffle)])
    for rank in (lambda m, _: rank_energy(m), lambda _, w: rank_magnitude(w)):
        assert (shuffle[rank(shuffled, weight[:, shuffle]).order_idx] == rank(moments, weight).order_idx).all()
    up_weight = np.random.default_rng(seed).normal(size=(9, 5))
    found = rank_weighted(shuffled, weight[:, shuffle], up_weight[shuffle]).order_idx
    assert (shuffle[found] == rank_weighted(moments, weight, up_weight).order_idx).all()


def naive_error(weight: np.ndarray, covariance: np.ndarray, kept: np.ndarray, strength: float) -> float:
    """tr W_P (C_PP - C_PS C_SS^-1 C_SP) W_P' (paper, B.1), with C + lambda I for C."""
    shifted = covariance + strength * np.eye(len(covariance))
    pruned = np.setdiff1d(np.arange(len(covariance)), kept)
    inverse = np.linalg.inv(shifted[np.ix_(kept, kept)])
    cross = shifted[np.ix_(pruned, kept)]
    residual = shifted[np.ix_(pruned, pruned)] - cross @ inverse @ cross.T
    return float(np.trace(weight[:, pruned] @ residual @ weight[:, pruned].T))


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_error_curve_is_one_solve_per_width(ridge):
    moments, weight = make_problem(3)
    covariance = moments.covariance
    order = trace_error_curve(rank_energy(moments), weight, covariance, ridge)
    strength = ridge * np.trace(covariance) / 9
    expected = [naive_error(weight, covariance, order.order_idx[:width], strength) for width in range(10)]
    np.testing.assert_allclose(order.error_curve, expected, rtol=1e-9, atol=1e-9)
    assert order.error_curve[9] == 0
    assert (np.diff(order.error_curve) <= 0).all()


def test_the_error_curve_of_dependent_channels_falls_to_the_ridge():
    """Rank 3 of 9 channels: three that span the others leave only what the ridge adds."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 9))
    covariance, weight = np.cov(x, rowvar=False, ddof=0), rng.normal(size=(4, 9))
    curve = trace_error_curve(ChannelOrder(np.arange(9)), weight, covariance, 1e-9).error_curve
    assert curve[3] < 1e-6 * curve[0]
    assert curve[2] > 1e-3 * curve[0]


@pytest.mark.parametrize("kept", [[2, 1], [1, 1], [-1, 2], [0, 5]])
def test_kept_channels_out_of_order_or_range_are_refused(kept):
    with pytest.raises(OptionError, match="expected ascending channel numbers within 0 and 4"):
        require_kept(np.array(kept), 5)
