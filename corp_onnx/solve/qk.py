"""Query and key maps of fewer dimensions, per head: q' = q Mq', k' = k Mk', so that q' k'' stays close to q k'.

Enters: Grams of the queries and keys pooled over images and tokens (`LogitMoments`), G_Q = sum q q', G_K = sum k k'.
Leaves: a `QkSolution`. It folds into the projections: W_Q' = q_map W_Q and b_Q' = q_map b_Q for each head, the keys
alike; softmax, its scale and everything behind it stay as they are.

Paper (CORP, arXiv 2602.05243, section 3.3): keep the dimensions S of the highest logit energy (eq. 12) and solve

    (Q_S'Q_S) M (K_S'K_S) + lambda M = (Q_S'Q_P)(K_P'K_S)        I + M = R D T'        (eq. 15, 16)

Low rank: the same objective |G_Q^1/2 (I - U V') G_K^1/2|_F over all U, V of rank r, not only over kept coordinates and
a map among them; its minimum is a truncated SVD (Eckart and Young), so it is never above the paper's at lambda = 0.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.errors import OptionError
from corp_onnx.moments.values import LogitMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.select import require_kept


@dataclass(frozen=True, slots=True, eq=False)
class QkSolution:
    """Per head the maps of the queries and keys, and the dimensions kept where the method keeps dimensions.

    `condition_number` is the largest over heads: of the Sylvester operator plus lambda (paper), or of the two maps
    (low rank, the ratio of the largest to the smallest singular value kept); 1 where nothing was solved.
    """

    q_map: Float[np.ndarray, "h r d"]
    k_map: Float[np.ndarray, "h r d"]
    kept_idx: Int[np.ndarray, "h r"] | None
    condition_number: float = 1.0

    def __post_init__(self) -> None:
        if self.q_map.shape != self.k_map.shape:
            raise ValueError(f"expected equal maps, found {self.q_map.shape} for q and {self.k_map.shape} for k")


def select_logit_energy(moments: LogitMoments, width: int) -> Int[np.ndarray, "h r"]:
    """Per head the `width` dimensions of the highest E[|q_j|^2 |k_j|^2] (eq. 12), ascending; nested over widths.

    Raises:
        OptionError: `width` is not within 1 and d_head.
    """
    _require_width(width, moments.logit_energy.shape[1])
    order_idx = np.argsort(-moments.logit_energy, axis=1, kind="stable")
    return np.sort(order_idx[:, :width], axis=1)


def drop_qk(kept_idx: Int[np.ndarray, "h r"], d_head: int) -> QkSolution:
    """The dimensions `kept_idx` of each head and no compensation: one-hot maps.

    Raises:
        OptionError: nothing kept, or a number out of range.
    """
    for head_idx in kept_idx:
        require_kept(head_idx, d_head)
    one_hot = np.eye(d_head)[kept_idx]  # [h, r, d]
    return QkSolution(one_hot, one_hot.copy(), kept_idx.copy())


def compensate_qk(
    q_gram: Float[np.ndarray, "h d d"],
    k_gram: Float[np.ndarray, "h d d"],
    kept_idx: Int[np.ndarray, "h r"],
    ridge: float = DEFAULT_RIDGE,
) -> QkSolution:
    """The kept dimensions with eq. 15 and 16 folded in; two r x r eigendecompositions and one SVD a head.

    The paper adds lambda to products of two Gram eigenvalues, so lambda = ridge * mean(diag Q_S'Q_S) * mean(diag
    K_S'K_S): then neither the number of images nor the scale of q or k changes M. With nothing pruned the maps are the
    identity, exactly.

    Raises:
        OptionError: nothing kept, or `ridge` negative.
    """
    if not (np.isfinite(ridge) and ridge >= 0):
        raise OptionError(f"expected a ridge of zero or more, found {ridge:g}; the default is {DEFAULT_RIDGE:g}")
    d_head = q_gram.shape[-1]
    dropped = drop_qk(kept_idx, d_head)
    if kept_idx.shape[1] == d_head:
        return dropped
    q_map, k_map = dropped.q_map, dropped.k_map
    condition_number = 1.0
    for h, kept in enumerate(kept_idx):
        cross, head_condition = _solve_sylvester(q_gram[h], k_gram[h], kept, ridge)
        left, singular, right = np.linalg.svd(np.eye(kept.size) + cross)  # R, D, T'
        q_map[h][:, kept] = (left * np.sqrt(singular)).T
        k_map[h][:, kept] = np.sqrt(singular)[:, None] * right
        condition_number = max(condition_number, head_condition)
    return QkSolution(q_map, k_map, dropped.kept_idx, condition_number)


def low_rank_logits(
    q_gram: Float[np.ndarray, "h d d"], k_centred_gram: Float[np.ndarray, "h d d"], width: int
) -> QkSolution:
    """The best maps of rank `width` for the pooled objective; two eigendecompositions and one SVD of d x d a head.

    Give the keys centred over the tokens of each image: a constant added to a row of logits does not change softmax, so
    error spent there is free. With G_Q = F_Q F_Q', G_K = F_K F_K' and F_Q' F_K = U D V', the factors

        q_map = D^-1/2 V' F_K'          k_map = D^-1/2 U' F_Q'

    reach the minimum without inverting a Gram: only the kept singular values are divided by. Both sides come out with
    the Gram diag(D), so neither q' nor k' outgrows the other. Rank-deficient Grams leave zero rows, which cost nothing.

    Raises:
        OptionError: `width` is not within 1 and d_head.
    """
    n_heads, d_head, _ = q_gram.shape
    _require_width(width, d_head)
    if width == d_head:
        return drop_qk(np.tile(np.arange(d_head), (n_heads, 1)), d_head)
    q_factor, k_factor = _factor_gram(q_gram), _factor_gram(k_centred_gram)
    left, singular, right = np.linalg.svd(q_factor.transpose(0, 2, 1) @ k_factor)  # [h, d, d], [h, d], [h, d, d]
    kept = singular[:, :width]
    is_live = kept > singular[:, :1] * d_head * np.finfo(np.float64).eps
    scale = np.divide(1.0, np.sqrt(kept), out=np.zeros_like(kept), where=is_live)[:, :, None]
    q_map = scale * (right[:, :width] @ k_factor.transpose(0, 2, 1))
    k_map = scale * (left.transpose(0, 2, 1)[:, :width] @ q_factor.transpose(0, 2, 1))
    smallest = np.where(is_live, kept, kept[:, :1]).min(axis=1)
    ratio = np.divide(kept[:, 0], smallest, out=np.ones(n_heads), where=smallest > 0)
    return QkSolution(q_map, k_map, None, float(ratio.max()))


def trace_logit_curve(
    q_gram: Float[np.ndarray, "h d d"], k_centred_gram: Float[np.ndarray, "h d d"]
) -> Float[np.ndarray, "d+1"]:
    """Squared logit error of `low_rank_logits` at every width 0 to d, summed over heads, tokens and images.

    The tail sums of the squared singular values; entry 0 is the energy of the centred logits, entry d is zero.
    """
    singular = np.linalg.svd(_factor_gram(q_gram).transpose(0, 2, 1) @ _factor_gram(k_centred_gram), compute_uv=False)
    tail = np.square(singular).sum(axis=0)[::-1].cumsum()[::-1]
    return np.append(tail, 0.0)


def _solve_sylvester(
    q_gram: Float[np.ndarray, "d d"], k_gram: Float[np.ndarray, "d d"], kept: Int[np.ndarray, "r"], ridge: float
) -> tuple[Float[np.ndarray, "r r"], float]:
    """M of eq. 15 and the condition number of its operator."""
    pruned = np.setdiff1d(np.arange(len(q_gram)), kept)
    q_kept, k_kept = q_gram[np.ix_(kept, kept)], k_gram[np.ix_(kept, kept)]
    rhs = q_gram[np.ix_(kept, pruned)] @ k_gram[np.ix_(pruned, kept)]
    strength = ridge * float(np.mean(np.diagonal(q_kept)) * np.mean(np.diagonal(k_kept)))
    q_values, q_vectors = np.linalg.eigh(q_kept)
    k_values, k_vectors = np.linalg.eigh(k_kept)
    # rounding leaves eigenvalues of a singular Gram at -1e-16, which would turn a zero into a huge quotient
    operator = np.outer(np.maximum(q_values, 0.0), np.maximum(k_values, 0.0)) + strength
    is_live = operator > operator.max() * np.finfo(np.float64).eps * kept.size
    quotient = np.divide(q_vectors.T @ rhs @ k_vectors, operator, out=np.zeros_like(operator), where=is_live)
    smallest = float(operator.min())
    condition_number = float(operator.max()) / smallest if smallest > 0 else float("inf")
    return q_vectors @ quotient @ k_vectors.T, condition_number


def _factor_gram(gram: Float[np.ndarray, "h d d"]) -> Float[np.ndarray, "h d d"]:
    """F with F F' = gram, from its eigenvectors: no Cholesky, since a Gram of few tokens is singular."""
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]


def _require_width(width: int, d_head: int) -> None:
    if not 1 <= width <= d_head:
        raise OptionError(f"expected a width of 1 to {d_head} head dimensions, found {width}")
