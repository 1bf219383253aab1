"""Ridge refit of a linear layer around a prior: to meet a target that is not the layer's own output.

Enters: moments of the regressor z and the target y, weighted or not, and the prior weight W0. Leaves: a
`LinearSolution`, the minimum over W and b of

    E |y - W z - b|^2 + lambda |W - W0|^2        W = W0 + (C_yz - W0 C_zz)(C_zz + lambda I)^-1        b = E y - W E z

with lambda = ridge * mean(diag C_zz). The step away from the prior is what is shrunk, so a large ridge returns W0; the
bias is free (it costs no variance), so a prior bias has no say. What part of the target a pruned unit can meet falls
with depth, and the class token, where it weighs most, gives one row an image: the ridge is chosen for each layer.

For the refit on the pruned stream z is what the pruned unit keeps, y is what the dense residual stream has after the
block less what the pruned stream has before it, and the tokens are weighted by how much the output depends on them.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
from jaxtyping import Float

from corp_onnx.moments.values import CrossMoments, merge_moments
from corp_onnx.solve.ridge import solve_ridge

REFIT_RIDGE = 0.3
"""Relative to mean(diag C_zz): where the search for the best begins, and what is taken where there is nothing to choose
by."""

RIDGE_LADDER = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Half a decade apart: the error near its minimum is flat, a factor of three moves it by less than one percent."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearSolution:
    """Weight and bias of the refitted layer, float64, and the condition number of C_zz + lambda I."""

    weight: Float[np.ndarray, "m n"]
    bias: Float[np.ndarray, "m"]
    condition_number: float


def refit_linear(
    moments: CrossMoments, prior_weight: Float[np.ndarray, "m n"], ridge: float = REFIT_RIDGE
) -> LinearSolution:
    """The layer from x to y of `moments` that fits best and stays near `prior_weight`; n^3 / 3 + 2 n^2 m multiply-adds.

    Raises:
        OptionError: `ridge` is negative, or too small for a singular covariance.
    """
    regressor = moments.regressor
    return fit_around_prior(
        regressor.covariance,
        moments.cross_covariance,
        regressor.mean,
        moments.y_total / moments.count,
        prior_weight,
        ridge,
    )


def choose_ridge(folds: Sequence[CrossMoments], prior_weight: Float[np.ndarray, "m n"]) -> float:
    """The ridge of `RIDGE_LADDER` with the least cross-validated error; `REFIT_RIDGE` where there is one fold.

    Each fold in turn is what the fit from the others is measured on. The error as a function of the ridge has one
    minimum in practice, so the ladder is walked from `REFIT_RIDGE` downhill; a rung costs a solution for each fold.

    Args:
        folds: moments of disjoint parts of the images. Tokens of one image are alike and belong into one fold.
    """
    if len(folds) < 2:
        return REFIT_RIDGE
    rest = [reduce(merge_moments, [m for m in folds if m is not held]) for held in folds]

    @cache
    def error(rung: int) -> float:
        fits = (refit_linear(moments, prior_weight, RIDGE_LADDER[rung]) for moments in rest)
        return sum(measure_fit_error(fit, held) for fit, held in zip(fits, folds, strict=True))

    best = RIDGE_LADDER.index(REFIT_RIDGE)
    for step in (1, -1):
        while 0 <= best + step < len(RIDGE_LADDER) and error(best + step) < error(best):
            best += step
    return RIDGE_LADDER[best]


def fit_around_prior(
    covariance: Float[np.ndarray, "n n"],
    cross_covariance: Float[np.ndarray, "m n"],
    mean: Float[np.ndarray, "n"],
    target_mean: Float[np.ndarray, "m"],
    prior_weight: Float[np.ndarray, "m n"],
    ridge: float,
) -> LinearSolution:
    """The same from means and covariances, for a target whose moments are known without a pass over the images."""
    prior = prior_weight.astype(np.float64)
    unexplained = cross_covariance - prior @ covariance
    solved = solve_ridge(covariance, unexplained.T, ridge)
    weight = prior + solved.solution.T
    return LinearSolution(weight, target_mean - weight @ mean, solved.condition_number)


def measure_fit_error(solution: LinearSolution, moments: CrossMoments) -> float:
    """E|y - W z - b|^2 / E|y - E y|^2 under `moments` (weighted as they are), of any images."""
    regressor, y_mean = moments.regressor, moments.y_total / moments.count
    energy = float(moments.y_energy.sum() / moments.count - y_mean @ y_mean)
    weight = solution.weight
    explained = float(np.vdot(weight @ regressor.covariance, weight) - 2.0 * np.vdot(weight, moments.cross_covariance))
    offset = y_mean - weight @ regressor.mean - solution.bias
    error = max(energy + explained + float(offset @ offset), 0.0)  # rounding can leave it below zero
    if energy > 0:
        return error / energy
    return float("inf") if error > 0 else 0.0  # a target without energy is either met or not
