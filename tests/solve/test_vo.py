"""Value maps: made-up truths, lstsq for the projection, the curve against one solve per width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import output_error

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import ChannelMoments
from corp_onnx.solve.vo import VoSolution, compensate_vo, trace_value_curve

N_HEADS, D_HEAD, D_OUT = 3, 4, 10


def make_problem(seed: int, n_tokens: int = 90, rank: int = D_HEAD, d_out: int = D_OUT):
    """Head outputs [tokens, heads * d] with every head of the given rank, and an output projection."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_tokens, 1))
    heads = [(rng.normal(size=(n_tokens, rank)) + shared) @ rng.normal(size=(rank, D_HEAD)) for _ in range(N_HEADS)]
    o = np.column_stack(heads) + rng.normal(size=N_HEADS * D_HEAD)
    return o, rng.normal(size=(d_out, N_HEADS * D_HEAD)), rng.normal(size=d_out)


def moments_of(o: np.ndarray) -> ChannelMoments:
    return ChannelMoments(len(o), o.sum(axis=0), o.T @ o)


def run_values(o: np.ndarray, solution: VoSolution) -> np.ndarray:
    """What the pruned block computes: each head's map, then the projection of the concatenation."""
    heads = o.reshape(len(o), N_HEADS, D_HEAD)
    kept = [heads[:, h] @ solution.v_map[h].T for h in range(N_HEADS)]
    return np.column_stack(kept) @ solution.weight.T + solution.bias


@pytest.mark.parametrize("width", [1, 2, 3])
def test_without_ridge_the_projection_is_the_least_squares_fit(width):
    o, weight, bias = make_problem(0)
    solution = compensate_vo(weight, bias, moments_of(o), N_HEADS, width, ridge=0.0)
    kept = np.column_stack([o[:, h * 4 : h * 4 + 4] @ solution.v_map[h].T for h in range(N_HEADS)])
    design, dense = np.column_stack([kept, np.ones(len(o))]), o @ weight.T + bias
    fit = np.linalg.lstsq(design, dense, rcond=None)[0]
    np.testing.assert_allclose(run_values(o, solution), design @ fit, rtol=1e-7, atol=1e-7)


def test_a_large_ridge_leaves_the_best_rank_of_every_head_on_its_own():
    """Eckart and Young for each head: the truncated SVD of its centred contribution to the output."""
    o, weight, bias = make_problem(1)
    solution = compensate_vo(weight, bias, moments_of(o), N_HEADS, 2, ridge=1e12)
    mean = o.mean(axis=0)
    expected = np.tile(mean @ weight.T + bias, (len(o), 1))
    for h in range(N_HEADS):
        head = slice(h * D_HEAD, (h + 1) * D_HEAD)
        left, singular, right = np.linalg.svd((o - mean)[:, head] @ weight[:, head].T, full_matrices=False)
        expected += (left[:, :2] * singular[:2]) @ right[:2]
    np.testing.assert_allclose(run_values(o, solution), expected, atol=1e-6)


def test_heads_of_low_rank_lose_nothing():
    o, weight, bias = make_problem(2, rank=2)
    solution = compensate_vo(weight, bias, moments_of(o), N_HEADS, 2, ridge=1e-9)
    np.testing.assert_allclose(run_values(o, solution), o @ weight.T + bias, atol=1e-5)
    assert output_error(o @ weight.T + bias, run_values(o, solution)) < 1e-10


def test_what_one_head_lost_another_knows():
    """Head 1 repeats head 0 turned round, so together they keep what each alone would lose."""
    rng = np.random.default_rng(3)
    o = np.zeros((300, 12))
    o[:, :4] = rng.normal(size=(300, 4)) * [8, 4, 2, 1]
    o[:, 4:8] = o[:, [3, 2, 1, 0]] * [8, 2, 0.5, 0.125]
    weight, bias = np.tile(np.eye(4), (1, 3)), np.zeros(4)
    refitted = compensate_vo(weight, bias, moments_of(o), N_HEADS, 2, ridge=1e-6)
    alone = compensate_vo(weight, bias, moments_of(o), N_HEADS, 2, ridge=1e12)
    dense = o @ weight.T + bias
    assert output_error(dense, run_values(o, refitted)) < 0.5 * output_error(dense, run_values(o, alone))


def test_values_are_mapped_by_orthonormal_rows_and_ranks_are_nested():
    o, weight, bias = make_problem(4)
    maps = [compensate_vo(weight, bias, moments_of(o), N_HEADS, width).v_map for width in (1, 2, 3)]
    for v_map in maps:
        np.testing.assert_allclose(
            v_map @ v_map.transpose(0, 2, 1), np.tile(np.eye(v_map.shape[1]), (N_HEADS, 1, 1)), atol=1e-10
        )
    np.testing.assert_array_equal(maps[2][:, :1], maps[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_pruned_gives_identical_weights(dtype):
    o, weight, bias = make_problem(5)
    weight, bias = weight.astype(dtype), bias.astype(dtype)
    solution = compensate_vo(weight, bias, moments_of(o), N_HEADS, D_HEAD)
    assert (solution.v_map == np.eye(D_HEAD)).all()
    assert (solution.weight.astype(dtype) == weight).all()
    assert (solution.bias.astype(dtype) == bias).all()


@pytest.mark.parametrize("width", [0, 5])
def test_a_width_out_of_range_is_refused(width):
    o, weight, bias = make_problem(5)
    with pytest.raises(OptionError, match=f"expected a width of 1 to 4 head dimensions, found {width}"):
        compensate_vo(weight, bias, moments_of(o), N_HEADS, width)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), d_out=st.sampled_from([2, 10]))
def test_the_curve_is_the_error_of_one_solve_per_width(seed, d_out):
    o, weight, bias = make_problem(seed, d_out=d_out)
    moments = moments_of(o)
    curve, dense = trace_value_curve(weight, moments, N_HEADS, ridge=1e-10), o @ weight.T + bias
    errors = [
        output_error(dense, run_values(o, compensate_vo(weight, bias, moments, N_HEADS, width, 1e-10)))
        for width in (1, 2, 3, 4)
    ]
    np.testing.assert_allclose(curve[1:] / curve[0], errors, rtol=1e-3, atol=1e-7)
    assert (np.diff(curve) <= 0).all()
    assert curve[4] == 0


@pytest.mark.parametrize(("n_tokens", "d_out"), [(1, 10), (3, 10), (90, 2), (90, 1)])
def test_few_tokens_and_few_outputs_are_answered(n_tokens, d_out):
    o, weight, bias = make_problem(7, n_tokens=n_tokens, d_out=d_out)
    o = np.round(o) if n_tokens == 1 else o
    solution = compensate_vo(weight, bias, moments_of(o), N_HEADS, 2, ridge=1e-9)
    assert np.isfinite(solution.weight).all()
    np.testing.assert_allclose(run_values(o, solution), o @ weight.T + bias, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_permuted_heads_permute_the_answer(seed):
    o, weight, bias = make_problem(seed)
    shuffle = np.array([2, 0, 1])
    idx = (shuffle[:, None] * D_HEAD + np.arange(D_HEAD)).ravel()
    plain = compensate_vo(weight, bias, moments_of(o), N_HEADS, 2)
    shuffled = compensate_vo(weight[:, idx], bias, moments_of(o[:, idx]), N_HEADS, 2)
    np.testing.assert_allclose(np.abs(shuffled.v_map), np.abs(plain.v_map[shuffle]), atol=1e-6)
    np.testing.assert_allclose(run_values(o[:, idx], shuffled), run_values(o, plain), atol=1e-6)
