"""The refit around a prior against lstsq with the prior written as extra rows."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import CrossMoments, merge_moments
from corp_onnx.solve.refit import (
    MIXED,
    REFIT_RIDGE,
    RIDGE_LADDER,
    LinearSolution,
    _spread,
    _Trial,
    choose_ridge,
    measure_fit_error,
    refit_linear,
)
from corp_onnx.threads import Crew


def make_problem(seed: int, n_tokens: int = 60):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_tokens, 5)) @ rng.normal(size=(5, 5)) + 2 * rng.normal(size=5)
    y = z @ rng.normal(size=(5, 3)) + rng.normal(size=(n_tokens, 3)) + 4
    return z, y, rng.uniform(1, 50, size=n_tokens), rng.normal(size=(3, 5))


def moments_of(z: np.ndarray, y: np.ndarray, w: np.ndarray) -> CrossMoments:
    return CrossMoments(w.sum(), w @ z, (z.T * w) @ z, w @ y, w @ y**2, (y.T * w) @ z)


def naive_refit(z, y, w, prior, ridge):
    """Weighted lstsq on centred tokens, lambda |W - W0|^2 as five more rows."""
    w = w / w.sum()
    z_mean, y_mean = w @ z, w @ y
    z, y = (z - z_mean) * np.sqrt(w)[:, None], (y - y_mean) * np.sqrt(w)[:, None]
    strength = ridge * np.trace(z.T @ z) / 5
    design = np.vstack([z, np.sqrt(strength) * np.eye(5)])
    weight = np.linalg.lstsq(design, np.vstack([y, np.sqrt(strength) * prior.T]), rcond=None)[0].T
    return weight, y_mean - weight @ z_mean


@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
def test_it_is_weighted_least_squares_with_the_prior_as_rows(ridge):
    z, y, w, prior = make_problem(0)
    solution = refit_linear(moments_of(z, y, w), prior, ridge)
    weight, bias = naive_refit(z, y, w, prior, ridge)
    np.testing.assert_allclose(solution.weight, weight, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(solution.bias, bias, rtol=1e-8, atol=1e-10)


def test_a_made_up_layer_is_recovered_and_a_true_prior_stays():
    z, _, w, prior = make_problem(1)
    truth, offset = np.arange(15.0).reshape(3, 5), np.array([1.0, 2.0, 3.0])
    moments = moments_of(z, z @ truth.T + offset, w)
    found = refit_linear(moments, prior, 1e-12)
    np.testing.assert_allclose(found.weight, truth, atol=1e-6)
    np.testing.assert_allclose(found.bias, offset, atol=1e-5)
    np.testing.assert_allclose(refit_linear(moments, truth, 5.0).weight, truth, atol=1e-12)


def test_a_large_ridge_returns_the_prior_and_mends_only_the_mean():
    z, y, w, prior = make_problem(2)
    solution = refit_linear(moments_of(z, y, w), prior, 1e12)
    np.testing.assert_allclose(solution.weight, prior, rtol=1e-6)
    np.testing.assert_allclose(solution.bias, (w @ y - prior @ (w @ z)) / w.sum(), rtol=1e-6)


def test_one_token_and_fewer_tokens_than_channels():
    z, y, w, prior = make_problem(3, n_tokens=1)
    z, y, w = np.round(z), np.round(y), np.ones(1)
    solution = refit_linear(moments_of(z, y, w), prior)
    np.testing.assert_array_equal(solution.weight, prior)
    np.testing.assert_allclose(z @ solution.weight.T + solution.bias, y)
    z, y, w, prior = make_problem(4, n_tokens=3)
    solution = refit_linear(moments_of(z, y, w), prior, 1e-9)
    np.testing.assert_allclose(z @ solution.weight.T + solution.bias, y, atol=1e-4)
    with pytest.raises(OptionError, match=r"expected a ridge of zero or more, found -0\.1"):
        refit_linear(moments_of(z, y, w), prior, -0.1)


def test_the_measured_error_is_that_of_the_tokens():
    z, y, w, prior = make_problem(5)
    solution = refit_linear(moments_of(z, y, w), prior)
    for z, y, w in (make_problem(5)[:3], make_problem(6)[:3]):
        p = w / w.sum()
        expected = p @ np.square(y - z @ solution.weight.T - solution.bias).sum(axis=1)
        expected /= p @ np.square(y - p @ y).sum(axis=1)
        assert measure_fit_error(solution, moments_of(z, y, w)) == pytest.approx(expected, rel=1e-9)


def test_a_target_without_energy_is_either_met_or_not():
    z, y, w, prior = make_problem(8)
    constant = np.zeros_like(y)
    weight = np.zeros_like(prior)
    assert measure_fit_error(LinearSolution(weight, np.zeros(3), 1.0), moments_of(z, constant, w)) == 0
    assert measure_fit_error(LinearSolution(weight, np.ones(3), 1.0), moments_of(z, constant, w)) == float("inf")


def naive_error(parts, prior, ridge) -> float:
    """Leave one part out, fit the rest, weighted error on the part."""
    total = 0.0
    for held in range(len(parts)):
        z, y, w = (np.concatenate([p[i] for j, p in enumerate(parts) if j != held]) for i in range(3))
        weight, bias = naive_refit(z, y, w, prior, ridge)
        z, y, w = parts[held]
        spread = y - np.average(y, axis=0, weights=w)
        total += (w @ np.square(y - z @ weight.T - bias)).sum() / (w @ np.square(spread)).sum()
    return total


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0, 30.0, 300.0])
def test_the_ridge_is_that_of_least_cross_validated_error(noise):
    """Few rows for five regressors: the noisier the target, the nearer to the prior."""
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(3, 5))
    prior = truth + 0.3 * rng.normal(size=truth.shape)
    parts = []
    for _ in range(3):
        z = rng.normal(size=(6, 5))
        parts.append((z, z @ truth.T + noise * rng.normal(size=(6, 3)), rng.uniform(1, 9, size=6)))
    errors = [naive_error(parts, prior, ridge) for ridge in RIDGE_LADDER]
    folds = [moments_of(*part) for part in parts]
    (chosen,) = {choose_ridge(folds, prior, start=start) for start in RIDGE_LADDER}
    assert chosen == RIDGE_LADDER[int(np.argmin(errors))]
    assert noise > 0 or chosen == RIDGE_LADDER[0]
    assert noise < 300 or chosen == RIDGE_LADDER[-1]


@pytest.mark.parametrize("ridge", [0.003, 0.3, 100.0])
def test_a_trial_says_what_the_fit_from_the_other_folds_costs(ridge):
    """The short form of the error, against the fit itself."""
    folds = [moments_of(*make_problem(seed)[:3]) for seed in range(4)]
    prior = make_problem(9)[3]
    total = reduce(merge_moments, folds)
    for held in folds:
        rest = reduce(merge_moments, [fold for fold in folds if fold is not held])
        expected = measure_fit_error(refit_linear(rest, prior, ridge), held)
        trial = _Trial(total, held, prior, prior @ total.x_gram, _spread(held))
        room = np.empty(total.x_gram.shape, order="F")
        assert trial.error(ridge, room) == pytest.approx(expected, rel=1e-9)
        assert trial.error(ridge, room) == trial.error(
            ridge, np.full_like(room, np.nan)
        )  # what it held is nothing to it


@pytest.mark.parametrize("noise", [0.3, 3.0, 30.0])
def test_of_many_outputs_mixtures_choose_as_well(noise, monkeypatch):
    """Outputs of very different energies, as those of a stream are."""
    rng = np.random.default_rng(3)
    n, m = 24, 4 * MIXED
    truth, scales = rng.normal(size=(m, n)), np.exp(rng.normal(size=m))
    prior = truth + 0.5 * rng.normal(size=truth.shape)
    parts = []
    for _ in range(4):
        z = rng.normal(size=(40, n)) @ rng.normal(size=(n, n))
        parts.append((z, scales * (z @ truth.T + noise * rng.normal(size=(40, m))), rng.uniform(1, 9, size=40)))
    folds = [moments_of(*part) for part in parts]
    prior = prior * scales[:, None]
    mixed = choose_ridge(folds, prior)
    monkeypatch.setattr("corp_onnx.solve.refit.MIXED", m)
    whole = choose_ridge(folds, prior)
    cost = {ridge: cross_validated(folds, prior, ridge) for ridge in (mixed, whole)}
    assert cost[whole] <= cost[mixed] <= 1.01 * cost[whole]


def cross_validated(folds, prior, ridge) -> float:
    rests = [reduce(merge_moments, [fold for fold in folds if fold is not held]) for held in folds]
    pairs = zip(rests, folds, strict=True)
    return sum(measure_fit_error(refit_linear(rest, prior, ridge), held) for rest, held in pairs)


def test_folds_side_by_side_choose_the_same():
    folds = [moments_of(*make_problem(seed)[:3]) for seed in range(4)]
    prior = make_problem(9)[3]
    with Crew(4) as crew:
        assert choose_ridge(folds, prior, crew.map) == choose_ridge(folds, prior)


def test_without_anything_to_choose_by_the_ridge_is_the_default():
    z, y, w, prior = make_problem(0)
    assert choose_ridge([moments_of(z, y, w)], prior) == REFIT_RIDGE
