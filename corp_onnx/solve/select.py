"""Which channels of an MLP stay: one order for all widths, so that a narrower answer is always part of a wider one.

Enters: the moments of the activations x after the nonlinearity and the down projection y = W x + b. Leaves: a
`ChannelOrder`. Four rankings: energy (CORP, arXiv 2602.05243, Alg. 2), magnitude (its ablation), weighted (the authors'
code), and greedy OBS (in `obs.py`).
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import ChannelMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.ridge import factor_ridge


@dataclass(frozen=True, slots=True, eq=False)
class ChannelOrder:
    """`order_idx`: channels from the last to be removed to the first, so the first `width` of them stay.

    `error_curve[w]`, if traced, is the mean squared output error per token, summed over outputs, with w channels kept
    and compensated; see `trace_error_curve`. It falls from the centred output energy at w = 0 to zero at w = n.
    """

    order_idx: Int[np.ndarray, "n"]
    error_curve: Float[np.ndarray, "n+1"] | None = None

    def kept_idx(self, width: int) -> Int[np.ndarray, "width"]:
        """The `width` channels that stay, ascending.

        Raises:
            OptionError: `width` is not within 0 and n.
        """
        if not 0 <= width <= self.order_idx.size:
            raise OptionError(f"expected a width of 0 to {self.order_idx.size} channels, found {width}")
        return np.sort(self.order_idx[:width])


def order_by_score(score: Float[np.ndarray, "n"]) -> ChannelOrder:
    """The order of falling score; of equal scores the lower index stays longer."""
    return ChannelOrder(np.argsort(-score, kind="stable"))


def rank_energy(moments: ChannelMoments) -> ChannelOrder:
    """Falling E[x_j^2] (Alg. 2)."""
    return order_by_score(moments.energy)


def rank_magnitude(
    weight: Float[np.ndarray, "d_out n"], up_weight: Float[np.ndarray, "n d_in"] | None = None
) -> ChannelOrder:
    """Falling |W_:j|^2, plus |U_j:|^2 of the up projection if given; knows no activations."""
    score = np.square(weight, dtype=np.float64).sum(axis=0)
    if up_weight is not None:
        score += np.square(up_weight, dtype=np.float64).sum(axis=1)
    return order_by_score(score)


def rank_weighted(
    moments: ChannelMoments, weight: Float[np.ndarray, "d_out n"], up_weight: Float[np.ndarray, "n d_in"]
) -> ChannelOrder:
    """Falling E[x_j^2] |U_j:| |W_:j|: energy between the norms of both products.

    Source: the rank of the authors' own code of arXiv 2602.05243, which is not that of the paper.
    """
    norms = (np.linalg.norm(up_weight.astype(np.float64), axis=1), np.linalg.norm(weight.astype(np.float64), axis=0))
    return order_by_score(moments.energy * norms[0] * norms[1])


def trace_error_curve(
    order: ChannelOrder,
    weight: Float[np.ndarray, "d_out n"],
    covariance: Float[np.ndarray, "n n"],
    ridge: float = DEFAULT_RIDGE,
) -> ChannelOrder:
    """`order` with its `error_curve`, for every width at the price of one Cholesky and one matrix product.

    With the channels permuted into `order_idx` and C + lambda I = L L', what of the pruned channels P the kept ones can
    not predict has the covariance L_PP L_PP', so the error is |W_P L_PP|^2: the sum over columns c >= width of
    |(W L)_:c|^2, since L is lower triangular. The curve is that of activations with independent noise of variance
    lambda = ridge * mean(diag C) added: above the error on C alone by at most lambda (|W_P|^2 + |W_P B|^2).
    """
    idx = order.order_idx
    factor = np.tril(factor_ridge(covariance[np.ix_(idx, idx)], ridge))
    tail = np.square(weight[:, idx].astype(np.float64) @ factor).sum(axis=0)[::-1].cumsum()[::-1]
    return replace(order, error_curve=np.append(tail, 0.0))


def require_kept(kept_idx: Int[np.ndarray, "width"], n_channels: int) -> None:
    """Returns nothing; raises `OptionError` unless `kept_idx` is ascending, within range and not empty."""
    if kept_idx.size == 0:
        raise OptionError(f"expected at least one of {n_channels} channels to stay, found none; ask for less sparsity")
    if kept_idx[0] < 0 or kept_idx[-1] >= n_channels or np.any(np.diff(kept_idx) <= 0):
        raise OptionError(f"expected ascending channel numbers within 0 and {n_channels - 1}, found {kept_idx}")
