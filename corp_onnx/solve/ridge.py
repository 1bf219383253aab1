"""The one ridge system that every solver shares: (C + lambda I) X = R, C a covariance, by Cholesky in float64.

lambda is relative: `ridge` times mean(diag C). Scaling all activations by one factor then changes no solution.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
# scipy has no stubs and numpy's leave element types unknown; a cast at every line would hide the mathematics
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import OptionError
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.lapack import factor_lower, measure_reciprocal, solve_factored


@dataclass(frozen=True, slots=True, eq=False)
class RidgeSolution:
    """X of the system, the condition number of C + lambda I (LAPACK's 1-norm estimate), and lambda itself."""

    solution: Float[np.ndarray, "n m"]
    condition_number: float
    strength: float


def solve_ridge(covariance: Float[np.ndarray, "n n"], rhs: Float[np.ndarray, "n m"], ridge: float) -> RidgeSolution:
    """X = (C + lambda I)^-1 R; n^3 / 3 + 2 n^2 m flops.

    Raises:
        OptionError: `ridge` is negative, or too small for a singular covariance.
    """
    strength = ridge_strength(covariance, ridge)
    factor = factor_ridge(covariance, ridge)
    norm = float(np.abs(covariance).sum(axis=0).max()) + strength
    reciprocal = measure_reciprocal(factor, norm)
    condition_number = 1.0 / reciprocal if reciprocal > 0 else float("inf")
    solution = np.array(rhs, dtype=np.float64, order="F")
    solve_factored(factor, solution)
    return RidgeSolution(solution, condition_number, strength)


def factor_ridge(covariance: Float[np.ndarray, "n n"], ridge: float) -> Float[np.ndarray, "n n"]:
    """L with L L' = C + lambda I in the lower triangle, what is above it means nothing; n^3 / 3 flops.

    Raises:
        OptionError: as `solve_ridge`.
    """
    symmetric = covariance.T if covariance.flags.c_contiguous else covariance  # copied as it lies
    return factor_in_place(np.array(symmetric, dtype=np.float64, order="F"), ridge)


def factor_in_place(covariance: Float[np.ndarray, "n n"], ridge: float) -> Float[np.ndarray, "n n"]:
    """The same over C itself, in Fortran order, of which the lower triangle is read.

    Raises:
        OptionError: as `solve_ridge`; C is spoilt then.
    """
    np.fill_diagonal(covariance, covariance.diagonal() + ridge_strength(covariance, ridge))
    if not factor_lower(covariance):
        raise OptionError(
            f"expected a ridge that makes the {len(covariance)} x {len(covariance)} covariance positive definite, "
            f"found {ridge:g}; try {DEFAULT_RIDGE:g}"
        )
    return covariance


def ridge_strength(covariance: Float[np.ndarray, "n n"], ridge: float) -> float:
    """lambda = ridge * mean(diag C); 1 for a covariance of zeros, where every lambda gives the same answer.

    Raises:
        OptionError: `ridge` is negative or not finite.
    """
    if not (np.isfinite(ridge) and ridge >= 0):
        raise OptionError(f"expected a ridge of zero or more, found {ridge:g}; the default is {DEFAULT_RIDGE:g}")
    scale = float(np.mean(np.diagonal(covariance)))
    return ridge * scale if scale > 0 else 1.0
