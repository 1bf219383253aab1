"""Greedy OBS against its plain form, and against trying every removal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import ChannelMoments
from corp_onnx.solve.obs import rank_obs
from corp_onnx.solve.select import order_by_score, rank_energy, rank_magnitude, trace_error_curve


def make_problem(seed: int, n: int = 20, d_out: int = 6, n_tokens: int = 80) -> tuple[ChannelMoments, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_tokens, n // 2)) @ rng.normal(size=(n // 2, n)) + 0.3 * rng.normal(size=(n_tokens, n))
    x = np.maximum(x + rng.normal(size=n), 0)
    return ChannelMoments(n_tokens, x.sum(axis=0), x.T @ x), rng.normal(size=(d_out, n))


def naive_obs(weight: np.ndarray, covariance: np.ndarray, ridge: float) -> tuple[list[int], list[float]]:
    """The textbook loop: one removal, one update of W and of the whole inverse."""
    n = len(covariance)
    H = np.linalg.inv(covariance + ridge * np.trace(covariance) / n * np.eye(n))
    W, alive, removed, losses = weight.copy(), list(range(n)), [], []
    while alive:
        j = min(alive, key=lambda i: W[:, i] @ W[:, i] / H[i, i])
        losses.append(W[:, j] @ W[:, j] / H[j, j])
        W = W - np.outer(W[:, j], H[j]) / H[j, j]
        H = H - np.outer(H[:, j], H[j]) / H[j, j]
        W[:, j] = 0
        alive.remove(j)
        removed.append(j)
    return removed, losses


@pytest.mark.parametrize("block_size", [1, 3, 64])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_the_blocked_form_is_the_plain_form(n, block_size):
    for seed in range(4):
        moments, weight = make_problem(seed, max(n, 2))
        if n == 1:
            moments, weight = ChannelMoments(moments.count, moments.total[:1], moments.gram[:1, :1]), weight[:, :1]
        removed, losses = naive_obs(weight, moments.covariance, 1e-3)
        order = rank_obs(moments, weight, 1e-3, block_size)
        assert order.order_idx[::-1].tolist() == removed
        np.testing.assert_allclose(order.error_curve, np.append(np.cumsum(losses)[::-1], 0), rtol=1e-8, atol=1e-10)


def test_every_step_removes_what_raises_the_refitted_error_least():
    moments, weight = make_problem(5, n=8)
    covariance = moments.covariance
    shifted = covariance + 1e-3 * np.trace(covariance) / 8 * np.eye(8)

    def refitted_error(pruned):
        kept = np.setdiff1d(np.arange(8), pruned)
        cross = shifted[np.ix_(pruned, kept)]
        residual = shifted[np.ix_(pruned, pruned)] - cross @ np.linalg.pinv(shifted[np.ix_(kept, kept)]) @ cross.T
        return np.trace(weight[:, pruned] @ residual @ weight[:, pruned].T)

    removed = rank_obs(moments, weight).order_idx[::-1]
    for step in range(7):
        rest = removed[step:]
        assert removed[step] == min(rest, key=lambda j: refitted_error([*removed[:step], j]))


def test_its_curve_is_the_traced_one_and_below_those_of_the_other_rankings():
    moments, weight = make_problem(6, n=200, d_out=40, n_tokens=700)
    covariance = moments.covariance
    order = rank_obs(moments, weight)
    np.testing.assert_allclose(trace_error_curve(order, weight, covariance).error_curve, order.error_curve, rtol=1e-8)
    by_loss_alone = order_by_score(np.diagonal(covariance) * np.square(weight).sum(axis=0))
    for other in (rank_energy(moments), rank_magnitude(weight), by_loss_alone):
        curve = trace_error_curve(other, weight, covariance).error_curve
        assert curve[0] == pytest.approx(order.error_curve[0])
        assert order.error_curve[100] < 0.95 * curve[100]


def test_a_twin_goes_and_what_carries_the_signal_stays():
    """Channels 3 to 5 repeat 0 to 2; channel 6 is noise without weight."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    x = np.column_stack([x, x, rng.normal(size=500)])
    weight = rng.normal(size=(4, 7))
    weight[:, 6] = 0
    order = rank_obs(ChannelMoments(500, x.sum(axis=0), x.T @ x), weight, 1e-6)
    assert order.order_idx[-1] == 6
    assert sorted(order.kept_idx(3) % 3) == [0, 1, 2]
    assert order.error_curve[3] < 1e-4 * order.error_curve[2]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_permuted_channels_permute_the_order(seed):
    moments, weight = make_problem(seed)
    shuffle = np.random.default_rng(seed).permutation(20)
    shuffled = ChannelMoments(moments.count, moments.total[shuffle], moments.gram[np.ix_(shuffle, shuffle)])
    assert (shuffle[rank_obs(shuffled, weight[:, shuffle]).order_idx] == rank_obs(moments, weight).order_idx).all()


def test_fewer_tokens_than_channels_are_no_trouble_with_a_ridge_and_refused_without():
    moments, weight = make_problem(7, n_tokens=5)
    curve = rank_obs(moments, weight).error_curve
    assert np.isfinite(curve).all()
    assert curve[8] < 0.05 * curve[0]
    constant = ChannelMoments(2, np.zeros(3), np.diag([1.0, 1.0, 0.0]))
    with pytest.raises(OptionError, match="3 x 3 covariance positive definite, found 0"):
        rank_obs(constant, np.ones((1, 3)), ridge=0.0)


def test_one_token_orders_by_weight_alone():
    moments = ChannelMoments(1, np.array([1.0, 2.0, 3.0]), np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))
    assert rank_obs(moments, np.array([[2.0, 1.0, 3.0]])).order_idx.tolist() == [2, 0, 1]
