"""How many directions a tensor really uses: spectra of what units compute, and figures of them.

Enters moments; leaves spectra: energies along orthogonal directions, descending, none negative, a row a head.

    hidden channels   eigenvalues of C = E[(x - E x)(x - E x)']
    logits of a head  squared singular values of G_Q^1/2 G_K^1/2, keys centred over the tokens of their image
    values of a head  squared singular values of W_h C_h^1/2: what the head writes into the residual stream

The tail of a row of the last two, from place r on, is what the best map of rank r loses (Eckart and Young).
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.moments.values import ChannelMoments

MOST = 0.95
"""Of the energy: k95 counts the directions that hold so much."""


def channel_spectrum(moments: ChannelMoments) -> Float[np.ndarray, "1 n"]:
    """Variances along the principal directions of a tensor's channels; n^3 operations."""
    return _descending(np.linalg.eigvalsh(moments.covariance))[None]


def logit_spectrum(
    q_gram: Float[np.ndarray, "h d d"], k_centred_gram: Float[np.ndarray, "h d d"]
) -> Float[np.ndarray, "h d"]:
    """Energies of the row-centred logits of every head; their sum is that of all its logits."""
    values, vectors = np.linalg.eigh(q_gram)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]  # F F' = G_Q
    return _descending(np.linalg.eigvalsh(factor.transpose(0, 2, 1) @ k_centred_gram @ factor))


def value_spectrum(
    weight: Float[np.ndarray, "d_out n"], moments: ChannelMoments, n_heads: int
) -> Float[np.ndarray, "h d"]:
    """Variances of what every head alone writes through the output projection."""
    d_head = moments.total.size // n_heads
    covariance, wide = moments.covariance, weight.astype(np.float64)
    found = np.zeros((n_heads, d_head))
    for h in range(n_heads):
        head = slice(h * d_head, (h + 1) * d_head)
        values, vectors = np.linalg.eigh(covariance[head, head])
        factor = vectors * np.sqrt(np.maximum(values, 0.0))  # F F' = C_h
        found[h] = _descending(np.linalg.eigvalsh(factor.T @ (wide[:, head].T @ wide[:, head]) @ factor))
    return found


def effective_rank(spectrum: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    """exp of the entropy of the energies' shares, in 1..n: the number of equal directions that are as spread out.

    Roy and Vetterli, The effective rank, EUSIPCO 2007, taken of variances and not of singular values. 0 where there is
    no energy.
    """
    shares = _shares(spectrum)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.where(shares.sum(axis=-1) > 0, np.exp(-(shares * logs).sum(axis=-1)), 0.0)


def count_directions(spectrum: Float[np.ndarray, "... n"], share: float = MOST) -> Float[np.ndarray, "..."]:
    """The fewest directions that together hold `share` of the energy; 0 where there is none."""
    held = np.cumsum(_shares(spectrum), axis=-1)
    n_short = (held < share * (1 - 1e-12)).sum(axis=-1)
    return np.where(held[..., -1] > 0, np.minimum(n_short + 1, spectrum.shape[-1]), 0).astype(np.float64)


def _shares(spectrum: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... n"]:
    total = spectrum.sum(axis=-1, keepdims=True)
    return np.divide(spectrum, total, out=np.zeros_like(spectrum), where=total > 0)


def _descending(values: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "... n"]:
    """Rounding leaves eigenvalues of a singular matrix below zero."""
    return np.maximum(values[..., ::-1], 0.0)
