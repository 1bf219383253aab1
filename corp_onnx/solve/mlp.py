"""Affine compensation of a pruned MLP (CORP, arXiv 2602.05243, eq. 8-11 and appendix B.1).

Enters: the down projection y = W x + b, the moments of its input x, the channels S that stay (P the others). The best
affine guess of the lost activations is x_P = B x_S + c; it folds into the weights that stay:

    B = C_PS (C_SS + lambda I)^-1      c = mu_P - B mu_S      W~ = W_S + W_P B      b~ = b + W_P c

C is centred, lambda is `ridge` * mean(diag C_SS). Leaves: an `MlpSolution`, float64, to be cast once by who writes it.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.moments.values import ChannelMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.ridge import solve_ridge
from corp_onnx.solve.select import require_kept


@dataclass(frozen=True, slots=True, eq=False)
class MlpSolution:
    """The hidden channels that stay, and the down projection that goes with them.

    `condition_number` is that of C_SS + lambda I, 1 where nothing was solved. With nothing pruned `weight` and `bias`
    hold the very numbers that came in.
    """

    kept_idx: Int[np.ndarray, "width"]
    weight: Float[np.ndarray, "d_out width"]
    bias: Float[np.ndarray, "d_out"]
    condition_number: float = 1.0

    def __post_init__(self) -> None:
        if self.weight.shape != (self.bias.size, self.kept_idx.size):
            raise ValueError(f"expected a weight of {self.bias.size} x {self.kept_idx.size}, found {self.weight.shape}")


def compensate_mlp(
    weight: Float[np.ndarray, "d_out n"],
    bias: Float[np.ndarray, "d_out"],
    moments: ChannelMoments,
    kept_idx: Int[np.ndarray, "width"],
    ridge: float = DEFAULT_RIDGE,
) -> MlpSolution:
    """The pruned layer with eq. 8-11 folded in; width^3 / 3 + width^2 d_out multiply-adds.

    B itself is never formed: X = (C_SS + lambda I)^-1 C_SP W_P' has d_out columns instead of |P|.

    Raises:
        OptionError: nothing kept, or `ridge` negative or too small for a singular C_SS.
    """
    dropped = drop_mlp(weight, bias, kept_idx)
    pruned_idx = np.setdiff1d(np.arange(moments.total.size), kept_idx)
    if pruned_idx.size == 0:
        return dropped
    covariance, mean = moments.covariance, moments.mean
    pruned_weight = weight[:, pruned_idx].astype(np.float64)  # W_P
    rhs = covariance[np.ix_(kept_idx, pruned_idx)] @ pruned_weight.T
    solved = solve_ridge(covariance[np.ix_(kept_idx, kept_idx)], rhs, ridge)
    correction = solved.solution.T  # W_P B
    return MlpSolution(
        kept_idx=dropped.kept_idx,
        weight=dropped.weight + correction,
        bias=dropped.bias + pruned_weight @ mean[pruned_idx] - correction @ mean[kept_idx],
        condition_number=solved.condition_number,
    )


def drop_mlp(
    weight: Float[np.ndarray, "d_out n"], bias: Float[np.ndarray, "d_out"], kept_idx: Int[np.ndarray, "width"]
) -> MlpSolution:
    """The pruned layer without compensation: columns cut, bias as it was.

    Raises:
        OptionError: nothing kept.
    """
    require_kept(kept_idx, weight.shape[1])
    return MlpSolution(kept_idx.copy(), weight[:, kept_idx].astype(np.float64), bias.astype(np.float64))
