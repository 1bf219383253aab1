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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import numpy as np
from jaxtyping import Float

from corp_onnx.moments.values import CrossMoments, merge_moments
from corp_onnx.solve.lapack import solve_factored, subtract_square
from corp_onnx.solve.ridge import factor_in_place, solve_ridge

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or what does the same with several items side by side."""

REFIT_RIDGE = 0.3
"""Relative to mean(diag C_zz): where the search for the best begins, and what is taken where there is nothing to choose
by."""

RIDGE_LADDER = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Half a decade apart: the error near its minimum is flat, a factor of three moves it by less than one percent."""


MIXED = 64
"""Outputs that the ridge is chosen by: so many mixtures of all of them with random signs, where there are more. Their
error is that of all in the mean, of every ridge by the same mixtures, for a fraction of the flops."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearSolution:
    """Weight and bias of the refitted layer, float64, and the condition number of C_zz + lambda I."""

    weight: Float[np.ndarray, "m n"]
    bias: Float[np.ndarray, "m"]
    condition_number: float


def refit_linear(
    moments: CrossMoments, prior_weight: Float[np.ndarray, "m n"], ridge: float = REFIT_RIDGE
) -> LinearSolution:
    """The layer from x to y of `moments` that fits best and stays near `prior_weight`; n^3 / 3 + 4 n^2 m flops.

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


def choose_ridge(
    folds: Sequence[CrossMoments], prior_weight: Float[np.ndarray, "m n"], side_by_side: Mapper = map,
    start: float = REFIT_RIDGE,
) -> float:  # fmt: skip
    """The ridge of `RIDGE_LADDER` with the least cross-validated error; `REFIT_RIDGE` where there is one fold.

    Each fold in turn is what the fit from the others is measured on. The error as a function of the ridge has one
    minimum in practice, so the ladder is walked downhill: three rungs at the least, fewer at its ends. A rung costs a
    fold n^3 / 3 + 4 n^2 m flops, m at most `MIXED`. One eigendecomposition of a fold would give every rung for 4 n^2 m,
    and takes more than 20 rungs' factors do (26 n^3 / 3 flops, half of them at the speed of memory).

    Args:
        folds: moments of disjoint parts of the images. Tokens of one image are alike and belong into one fold.
        side_by_side: maps a function over the folds; their errors are added up in their order, whoever is done first.
        start: the rung to walk from.
    """
    if len(folds) < 2:
        return REFIT_RIDGE
    energies = [_spread(own) for own in folds]
    prior, folds = _mix_outputs(prior_weight.astype(np.float64), folds)
    total = reduce(merge_moments, folds)
    of_total = prior @ total.x_gram
    pairs = zip(folds, energies, strict=True)
    trials = list(side_by_side(lambda pair: _Trial(total, pair[0], prior, of_total, pair[1]), pairs))
    rooms = list[np.ndarray]()  # as many as there are calls side by side

    def judge(trial: _Trial, ridge: float) -> float:
        try:
            room = rooms.pop()
        except IndexError:
            room = np.empty(total.x_gram.shape, order="F")
        found = trial.error(ridge, room)
        rooms.append(room)
        return found

    @cache
    def error(rung: int) -> float:
        return sum(side_by_side(lambda trial: judge(trial, RIDGE_LADDER[rung]), trials))

    best = RIDGE_LADDER.index(start)
    for step in (1, -1):
        while 0 <= best + step < len(RIDGE_LADDER) and error(best + step) < error(best):
            best += step
    return RIDGE_LADDER[best]


class _Trial:
    """One fold held back, and what all ridges share. The step D from the prior solves D (C + lambda I) = U for the rest
    and is judged by E|y - (W0 + D) z - b|^2 = e_0 - 2 <D, U_h> + <D C_h, D> + |offset|^2 on the fold h itself; of the
    covariances C (all less the fold) and C_h none is kept."""

    def __init__(
        self,
        total: CrossMoments,
        own: CrossMoments,
        prior: Float[np.ndarray, "m n"],
        of_total: Float[np.ndarray, "m n"],
        energy: float,
    ) -> None:
        self._total, self._own = total, own
        of_own = prior @ own.x_gram
        self._count = total.count - own.count
        self._mean = (total.x_total - own.x_total) / self._count
        self._own_mean = own.x_total / own.count
        y_mean, own_y_mean = (total.y_total - own.y_total) / self._count, own.y_total / own.count
        gap = total.cross - of_total - own.cross + of_own
        self._unexplained = gap / self._count - np.outer(y_mean - prior @ self._mean, self._mean)  # U
        gap = (own.cross - of_own) / own.count
        self._own_unexplained = gap - np.outer(own_y_mean - prior @ self._own_mean, self._own_mean)  # U_h
        self._energy = energy
        met = np.vdot(own.cross / own.count - np.outer(own_y_mean, self._own_mean), prior)
        self._of_prior = self._energy - float(met + np.vdot(self._own_unexplained, prior))  # e_0
        self._shift = self._own_mean - self._mean
        self._offset = own_y_mean - y_mean - prior @ self._shift  # of the prior

    def error(self, ridge: float, covariance: Float[np.ndarray, "n n"]) -> float:
        """As `measure_fit_error` of the fit with this ridge; of mixed outputs, what differs between ridges is.

        Args:
            covariance: room for C + lambda I and its factor, in Fortran order.
        """
        total, own = self._total, self._own
        np.subtract(total.x_gram, own.x_gram, out=covariance.T)  # symmetric
        covariance /= self._count
        subtract_square(covariance, self._mean[:, None])
        step = self._unexplained.copy()  # D
        solve_factored(factor_in_place(covariance, ridge), step.T)
        spread = step @ own.x_gram / own.count  # D C_h, with what the means add
        moved = float(np.vdot(spread, step) - np.square(step @ self._own_mean).sum())
        moved -= 2.0 * float(np.vdot(step, self._own_unexplained))
        offset = self._offset - step @ self._shift
        return (self._of_prior + moved + float(offset @ offset)) / (self._energy or 1.0)


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
    energy, weight = _spread(moments), solution.weight
    explained = float(np.vdot(weight @ regressor.covariance, weight) - 2.0 * np.vdot(weight, moments.cross_covariance))
    offset = y_mean - weight @ regressor.mean - solution.bias
    return _relative(energy + explained + float(offset @ offset), energy)


def _spread(moments: CrossMoments) -> float:
    """E|y - E y|^2."""
    y_mean = moments.y_total / moments.count
    return float(moments.y_energy.sum() / moments.count - y_mean @ y_mean)


def _mix_outputs(
    prior: Float[np.ndarray, "m n"], folds: Sequence[CrossMoments]
) -> tuple[Float[np.ndarray, "k n"], list[CrossMoments]]:
    """The same problem of at most `MIXED` outputs; the energies of mixtures are not known, and nobody asks for them."""
    m = len(prior)
    if m <= MIXED:
        return prior, list(folds)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (MIXED, m)) / np.sqrt(MIXED)
    unknown = np.zeros(MIXED)
    mixed = [replace(f, y_total=signs @ f.y_total, y_energy=unknown, cross=signs @ f.cross) for f in folds]
    return signs @ prior, mixed


def _relative(error: float, energy: float) -> float:
    error = max(error, 0.0)  # rounding can leave it below zero
    if energy > 0:
        return error / energy
    return float("inf") if error > 0 else 0.0  # a target without energy is either met or not
