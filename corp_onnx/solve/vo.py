"""Value maps of fewer dimensions, and an output projection refitted over all heads at once.

Enters: the output projection y = W o + b, o the concatenated head outputs [n_heads * d_head], and the moments of o.
Leaves: a `VoSolution`. The head output o_h = P_h V_h meets only W_h, and softmax rows sum to one, so a map of o_h folds
into the value projection: W_V' = v_map W_V and b_V' = v_map b_V for each head.

Per head, with C_h = F F' the covariance of o_h, the best rank-r stand-in of W_h o_h is the projection on the first r
left singular vectors of W_h F = U D V' (Eckart and Young). Its input is the row space of U_r' W_h, of which `v_map`
takes an orthonormal basis: no value grows, and the basis of a lower rank is part of that of a higher one. Then W' and
b' are fitted over the kept coordinates of all heads to the dense output: what one head lost, another may know.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import ChannelMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.refit import fit_around_prior
from corp_onnx.solve.select import ChannelOrder, trace_error_curve


@dataclass(frozen=True, slots=True, eq=False)
class VoSolution:
    """Per head the map of the values, and the output projection over the kept coordinates, head after head.

    `v_map` holds the heads that go as well; `heads_idx` are those that stay, None is all of them.
    """

    v_map: Float[np.ndarray, "h r d"]
    weight: Float[np.ndarray, "d_out kr"]
    bias: Float[np.ndarray, "d_out"]
    condition_number: float = 1.0
    heads_idx: Int[np.ndarray, "k"] | None = None

    def __post_init__(self) -> None:
        n_heads, width, _ = self.v_map.shape
        n_kept = n_heads if self.heads_idx is None else self.heads_idx.size
        if self.weight.shape != (self.bias.size, n_kept * width):
            raise ValueError(f"expected a weight of {self.bias.size} x {n_kept * width}, found {self.weight.shape}")


def compensate_vo(
    weight: Float[np.ndarray, "d_out n"],
    bias: Float[np.ndarray, "d_out"],
    moments: ChannelMoments,
    n_heads: int,
    width: int,
    ridge: float = DEFAULT_RIDGE,
    heads_idx: Int[np.ndarray, "k"] | None = None,
) -> VoSolution:
    """Rank `width` values for each head and the refitted projection; one SVD a head and one ridge of n_heads * width.

    The ridge shrinks the step away from the per-head answer U_r U_r' W_h, lambda = ridge * mean(diag) of the kept
    coordinates. With nothing pruned the maps are the identity and the weights the very numbers that came in.

    Args:
        heads_idx: whole heads that stay, ascending and not none of them; what the others gave is fitted as well.

    Raises:
        OptionError: `width` is not within 1 and d_head, or `ridge` is negative.
    """
    d_head = moments.total.size // n_heads
    if not 1 <= width <= d_head:
        raise OptionError(f"expected a width of 1 to {d_head} head dimensions, found {width}")
    wide, bias = weight.astype(np.float64), bias.astype(np.float64)
    kept = np.arange(n_heads) if heads_idx is None else heads_idx
    whole = np.tile(np.eye(d_head), (n_heads, 1, 1))
    if width == d_head and len(kept) == n_heads:
        return VoSolution(whole, wide, bias, heads_idx=heads_idx)
    covariance = moments.covariance
    if width == d_head:
        v_map, prior = whole, _by_head(wide, n_heads)
    else:
        basis, left = _rank_values(wide, covariance, n_heads)
        v_map, left = basis[:, :width], left[:, :, :width]
        latent_weight = _by_head(wide, n_heads) @ v_map.transpose(0, 2, 1)  # W_h Q', [h, d_out, r]
        prior = left @ (left.transpose(0, 2, 1) @ latent_weight)  # U_r U_r' W_h Q'
    prior = prior[kept].transpose(1, 0, 2).reshape(bias.size, len(kept) * width)
    spread = _block_diagonal(v_map).reshape(n_heads, width, -1)[kept].reshape(len(kept) * width, -1)
    to_kept = covariance @ spread.T
    fitted = fit_around_prior(
        covariance=spread @ to_kept,
        cross_covariance=wide @ to_kept,
        mean=spread @ moments.mean,
        target_mean=wide @ moments.mean + bias,
        prior_weight=prior,
        ridge=ridge,
    )
    return VoSolution(v_map.copy(), fitted.weight, fitted.bias, fitted.condition_number, heads_idx)


def drop_vo(
    weight: Float[np.ndarray, "d_out n"],
    bias: Float[np.ndarray, "d_out"],
    moments: ChannelMoments,
    n_heads: int,
    width: int,
    heads_idx: Int[np.ndarray, "k"] | None = None,
) -> VoSolution:
    """The plain cut: each head keeps its dimensions of most output energy, and the projection their columns."""
    energy = (moments.energy * np.square(weight).sum(axis=0)).reshape(n_heads, -1)
    kept_idx = np.sort(np.argsort(-energy, axis=1, kind="stable")[:, :width], axis=1)
    d_head = energy.shape[1]
    columns = kept_idx + np.arange(n_heads)[:, None] * d_head
    chosen = columns if heads_idx is None else columns[heads_idx]
    return VoSolution(np.eye(d_head)[kept_idx], weight[:, chosen.reshape(-1)], bias, heads_idx=heads_idx)


def trace_value_curve(
    weight: Float[np.ndarray, "d_out n"], moments: ChannelMoments, n_heads: int, ridge: float = DEFAULT_RIDGE
) -> Float[np.ndarray, "widths"]:
    """Mean squared output error per token, summed over outputs, at every width 0 to d_head, after the refit.

    The kept coordinates of all widths are nested, so in their basis this is `trace_error_curve` at every
    n_heads-th width: what the refit gains over the sum of the heads' own tails is in it.
    """
    covariance, wide = moments.covariance, weight.astype(np.float64)
    basis, _ = _rank_values(wide, covariance, n_heads)
    n = covariance.shape[0]
    # coordinate i of every head, then coordinate i + 1 of every head: width w of the unit is n_heads * w of these
    spread = _block_diagonal(basis).reshape(n_heads, n // n_heads, n).transpose(1, 0, 2).reshape(n, n)
    order = trace_error_curve(ChannelOrder(np.arange(n)), wide @ spread.T, spread @ covariance @ spread.T, ridge)
    assert order.error_curve is not None
    return order.error_curve[::n_heads].copy()


def _rank_values(
    weight: Float[np.ndarray, "d_out n"], covariance: Float[np.ndarray, "n n"], n_heads: int
) -> tuple[Float[np.ndarray, "h d d"], Float[np.ndarray, "h d_out k"]]:
    """Per head an orthonormal basis whose first r rows span the row space of U_r' W_h for every r, and U itself."""
    d_head = len(covariance) // n_heads
    basis = np.zeros((n_heads, d_head, d_head))
    lefts = np.zeros((n_heads, len(weight), min(len(weight), d_head)))
    for h, head_weight in enumerate(_by_head(weight, n_heads)):
        head = slice(h * d_head, (h + 1) * d_head)
        values, vectors = np.linalg.eigh(covariance[head, head])
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        left = lefts[h] = np.linalg.svd(head_weight @ factor, full_matrices=False)[0]
        rows = np.zeros((d_head, d_head))
        rows[: left.shape[1]] = left.T @ head_weight
        # Householder QR keeps the order of the rows and completes the basis where they are dependent
        basis[h] = np.linalg.qr(rows.T)[0].T
    return basis, lefts


def _by_head(weight: Float[np.ndarray, "d_out n"], n_heads: int) -> Float[np.ndarray, "h d_out d"]:
    return weight.reshape(len(weight), n_heads, -1).transpose(1, 0, 2)


def _block_diagonal(maps: Float[np.ndarray, "h r d"]) -> Float[np.ndarray, "h*r h*d"]:
    n_heads, width, d_head = maps.shape
    blocks = np.zeros((n_heads, width, n_heads, d_head))
    for h in range(n_heads):
        blocks[h, :, h] = maps[h]
    return blocks.reshape(n_heads * width, n_heads * d_head)
