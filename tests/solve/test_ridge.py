"""The shared ridge system against NumPy's inverse, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from corp_onnx.errors import OptionError
from corp_onnx.solve.ridge import ridge_strength, solve_ridge


def test_the_solution_and_the_condition_number_are_those_of_the_plain_inverse():
    rng = np.random.default_rng(0)
    a, rhs = rng.normal(size=(12, 8)), rng.normal(size=(8, 3))
    covariance = a.T @ a
    before = covariance.copy()
    solved = solve_ridge(covariance, rhs, 0.05)
    strength = 0.05 * np.trace(covariance) / 8
    shifted = covariance + strength * np.eye(8)
    assert solved.strength == pytest.approx(strength)
    np.testing.assert_allclose(solved.solution, np.linalg.inv(shifted) @ rhs, rtol=1e-10)
    assert solved.condition_number == pytest.approx(np.linalg.cond(shifted, 1), rel=0.5)
    np.testing.assert_array_equal(covariance, before)


@pytest.mark.parametrize("ridge", [-1e-9, float("nan"), float("inf")])
def test_a_ridge_below_zero_or_not_finite_is_refused(ridge):
    with pytest.raises(OptionError, match=r"expected a ridge of zero or more, found .*default is 0\.001"):
        ridge_strength(np.eye(2), ridge)


def test_a_singular_covariance_without_ridge_is_refused_with_advice():
    with pytest.raises(OptionError, match=r"3 x 3 covariance positive definite, found 0; try 0\.001"):
        solve_ridge(np.diag([1.0, 1.0, 0.0]), np.ones((3, 1)), 0.0)


def test_a_covariance_of_zeros_predicts_nothing():
    solved = solve_ridge(np.zeros((3, 3)), np.zeros((3, 2)), 1e-3)
    np.testing.assert_array_equal(solved.solution, np.zeros((3, 2)))
