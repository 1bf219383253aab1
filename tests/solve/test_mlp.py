"""MLP compensation against the paper's formulas, against lstsq, and against truths that were made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import output_error

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import ChannelMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.mlp import MlpSolution, compensate_mlp, drop_mlp


def moments_of(x: np.ndarray) -> ChannelMoments:
    return ChannelMoments(len(x), x.sum(axis=0), x.T @ x)


def make_problem(seed: int, n_tokens: int = 80, n: int = 10, d_out: int = 4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_tokens, n)) @ rng.normal(size=(n, n)) + 3 * rng.normal(size=n)
    return x, rng.normal(size=(d_out, n)), rng.normal(size=d_out)


def run_mlp(x: np.ndarray, solution: MlpSolution) -> np.ndarray:
    return x[:, solution.kept_idx] @ solution.weight.T + solution.bias


def naive_compensation(weight, bias, x, kept, ridge):
    """Eq. 8-11 with appendix B.1, letter by letter."""
    pruned = np.setdiff1d(np.arange(x.shape[1]), kept)
    mu = x.mean(axis=0)
    centred = x - mu
    C = centred.T @ centred / len(x)
    C_SS, C_PS = C[np.ix_(kept, kept)], C[np.ix_(pruned, kept)]
    lam = ridge * np.mean(np.diag(C_SS))
    B = C_PS @ np.linalg.inv(C_SS + lam * np.eye(len(kept)))
    c = mu[pruned] - B @ mu[kept]
    return weight[:, kept] + weight[:, pruned] @ B, bias + weight[:, pruned] @ c


@pytest.mark.parametrize("ridge", [DEFAULT_RIDGE, 0.3])
@pytest.mark.parametrize("kept", [[0], [1, 4, 9], list(range(9))])
def test_the_solution_is_that_of_the_paper(kept, ridge):
    x, weight, bias = make_problem(0)
    solution = compensate_mlp(weight, bias, moments_of(x), np.array(kept), ridge)
    expected_weight, expected_bias = naive_compensation(weight, bias, x, kept, ridge)
    np.testing.assert_allclose(solution.weight, expected_weight, rtol=1e-9)
    np.testing.assert_allclose(solution.bias, expected_bias, rtol=1e-9)
    assert solution.kept_idx.tolist() == kept


def test_without_ridge_it_is_the_least_squares_fit_of_the_dense_output():
    x, weight, bias = make_problem(1)
    kept = np.array([0, 2, 3, 7])
    solution = compensate_mlp(weight, bias, moments_of(x), kept, ridge=0.0)
    design = np.column_stack([x[:, kept], np.ones(len(x))])
    fit = np.linalg.lstsq(design, x @ weight.T + bias, rcond=None)[0]
    np.testing.assert_allclose(solution.weight, fit[:-1].T, rtol=1e-7)
    np.testing.assert_allclose(solution.bias, fit[-1], rtol=1e-7)


def test_channels_that_are_affine_in_the_kept_ones_cost_nothing():
    rng = np.random.default_rng(2)
    kept_x = rng.normal(size=(200, 5))
    truth, offset = rng.normal(size=(3, 5)), rng.normal(size=3)
    x = np.column_stack([kept_x, kept_x @ truth.T + offset])
    weight, bias = rng.normal(size=(4, 8)), rng.normal(size=4)
    solution = compensate_mlp(weight, bias, moments_of(x), np.arange(5), ridge=1e-10)
    np.testing.assert_allclose(solution.weight, weight[:, :5] + weight[:, 5:] @ truth, atol=1e-6)
    np.testing.assert_allclose(solution.bias, bias + weight[:, 5:] @ offset, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("compensated", [True, False])
def test_nothing_pruned_gives_identical_weights(dtype, compensated):
    x, weight, bias = make_problem(3)
    weight, bias = weight.astype(dtype), bias.astype(dtype)
    kept = np.arange(10)
    solution = compensate_mlp(weight, bias, moments_of(x), kept) if compensated else drop_mlp(weight, bias, kept)
    assert (solution.weight.astype(dtype) == weight).all()
    assert (solution.bias.astype(dtype) == bias).all()
    assert solution.condition_number == 1


def test_nothing_kept_is_refused():
    x, weight, bias = make_problem(4)
    nothing = np.array([], dtype=np.int64)
    with pytest.raises(OptionError, match="at least one of 10 channels to stay, found none"):
        compensate_mlp(weight, bias, moments_of(x), nothing)
    with pytest.raises(OptionError, match="at least one of 10 channels to stay, found none"):
        drop_mlp(weight, bias, nothing)


def test_a_singular_covariance_without_ridge_is_refused():
    x, weight, bias = make_problem(5, n_tokens=3)
    with pytest.raises(OptionError, match="6 x 6 covariance positive definite, found 0"):
        compensate_mlp(weight, bias, moments_of(np.round(x)), np.arange(6), ridge=0.0)


def test_fewer_tokens_than_channels_still_answer_the_tokens_seen():
    x, weight, bias = make_problem(6, n_tokens=4)
    kept = np.arange(6)
    solution = compensate_mlp(weight, bias, moments_of(x), kept, ridge=1e-9)
    np.testing.assert_allclose(x[:, kept] @ solution.weight.T + solution.bias, x @ weight.T + bias, atol=1e-4)
    assert np.isfinite(compensate_mlp(weight, bias, moments_of(x), kept).weight).all()


def test_one_token_is_answered_by_the_bias():
    x, weight, bias = make_problem(7, n_tokens=1)
    x = np.round(x)  # an exact covariance of zeros
    kept = np.array([1, 5])
    solution = compensate_mlp(weight, bias, moments_of(x), kept)
    np.testing.assert_allclose(x[:, kept] @ solution.weight.T + solution.bias, x @ weight.T + bias, rtol=1e-10)
    np.testing.assert_array_equal(solution.weight, weight[:, kept])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), width=st.integers(1, 9))
def test_permuted_channels_permute_the_answer(seed, width):
    x, weight, bias = make_problem(seed)
    rng = np.random.default_rng(seed)
    shuffle, kept = rng.permutation(10), np.sort(rng.choice(10, width, replace=False))
    plain = compensate_mlp(weight, bias, moments_of(x), kept)
    shuffled_kept = np.flatnonzero(np.isin(shuffle, kept))
    shuffled = compensate_mlp(weight[:, shuffle], bias, moments_of(x[:, shuffle]), shuffled_kept)
    back = np.argsort(shuffle[shuffled_kept])
    np.testing.assert_allclose(shuffled.weight[:, back], plain.weight, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(shuffled.bias, plain.bias, rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_the_ridge_does_not_know_the_unit_of_the_activations(seed, scale):
    x, weight, bias = make_problem(seed)
    kept = np.array([0, 3, 4])
    plain = compensate_mlp(weight, bias, moments_of(x), kept)
    scaled = compensate_mlp(weight / scale, bias, moments_of(x * scale), kept)
    np.testing.assert_allclose(scaled.weight * scale, plain.weight, rtol=1e-6, atol=1e-8)


def test_compensation_lowers_the_error_on_the_tokens_it_saw():
    x, weight, bias = make_problem(10)
    kept = np.array([0, 3, 4, 8])
    dense = x @ weight.T + bias
    compensated = output_error(dense, run_mlp(x, compensate_mlp(weight, bias, moments_of(x), kept)))
    dropped = output_error(dense, run_mlp(x, drop_mlp(weight, bias, kept)))
    assert 0 < compensated < min(1, dropped)
