"""Greedy backward elimination of MLP channels (optimal brain surgeon), every width in one run.

Enters: the moments of the activations x, the down projection y = W x + b. Leaves: a `ChannelOrder` with its error
curve. Each step removes the channel whose loss, after all others are refitted, raises the output error least:

    H = (C + lambda I)^-1      remove  argmin_j |w_j|^2 / H_jj
    W <- W - w_j H_j: / H_jj        H <- H - H_:j H_j: / H_jj

(Hassibi and Stork 1993, with many outputs; lambda = ridge * mean(diag C).) W is only needed through G = W' W, which
follows by a rank-two update, so d_out does not enter the loop.

Written like that it moves two n x n matrices a removal. Here the updates of a block of removals stay in two thin
factors (L with H = H_0 - L L', A with G = G_0 - L A' - A L'), a column is brought up to date when it is looked at, and
the block is applied at its end by BLAS-3 calls over the channels still alive.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from corp_onnx.moments.values import ChannelMoments
from corp_onnx.settings import DEFAULT_RIDGE
from corp_onnx.solve.lapack import invert_factored, subtract_cross, subtract_square
from corp_onnx.solve.ridge import factor_in_place
from corp_onnx.solve.select import ChannelOrder

BLOCK_SIZE = 64
"""Removals between two updates of the whole matrices; the answer does not depend on it. 32 to 128 are equally fast."""

COMPACT_SHARE = 0.125
"""Share of dead rows at which the matrices are copied without them: fewer flops against more copies; no effect on the
answer."""


def rank_obs(
    moments: ChannelMoments,
    weight: Float[np.ndarray, "d_out n"],
    ridge: float = DEFAULT_RIDGE,
    block_size: int = BLOCK_SIZE,
) -> ChannelOrder:
    """The greedy order of all channels and its error curve, about 2 n^3 flops and 4 n x n float64 arrays.

    Half the work inverts C, half is the elimination, both near the speed of a matrix product. Of equal scores the lower
    index goes first. The curve is that of `trace_error_curve`, got for nothing.

    Raises:
        OptionError: `ridge` is negative, or too small for a singular covariance.
    """
    inverse = factor_in_place(moments.covariance.T, ridge)  # symmetric: in Fortran order for nothing
    invert_factored(inverse)
    wide = weight.astype(np.float64)
    gram = (wide.T @ wide).T
    stored_idx = np.arange(len(inverse))
    is_gone = np.zeros(len(inverse), dtype=np.bool_)
    removed_idx: list[np.ndarray] = []
    increases: list[np.ndarray] = []
    while not is_gone.all():
        removal = _BlockRemoval(inverse, gram, is_gone, block_size)
        removed_idx.append(stored_idx[removal.local_idx])
        increases.append(removal.increase)
        is_gone[removal.local_idx] = True
        removal.apply(inverse, gram)
        if is_gone.mean() > COMPACT_SHARE:
            alive = np.flatnonzero(~is_gone)
            stored_idx, is_gone = stored_idx[alive], is_gone[alive]
            inverse, gram = _compact(inverse, alive), _compact(gram, alive)
    error_curve = np.append(np.concatenate(increases).cumsum()[::-1], 0.0)
    return ChannelOrder(np.concatenate(removed_idx)[::-1].copy(), error_curve)


class _BlockRemoval:
    """The removals of one block: which (`local_idx`), what each cost (`increase`), and the factors L and A.

    `inverse` and `gram` are symmetric with only the lower triangle up to date, in Fortran order. Rows of channels that
    are gone are zero but for rounding, so they may stay until it pays to drop them.
    """

    def __init__(
        self,
        inverse: Float[np.ndarray, "m m"],
        gram: Float[np.ndarray, "m m"],
        is_gone: Bool[np.ndarray, "m"],
        block_size: int,
    ) -> None:
        m, size = len(inverse), min(block_size, int((~is_gone).sum()))
        self.local_idx = np.zeros(size, dtype=np.int64)
        self.increase = np.zeros(size)
        self._left = np.zeros((m, size), order="F")  # L
        self._cross = np.zeros((m, size), order="F")  # A
        inverse_diagonal, gram_diagonal = inverse.diagonal().copy(), gram.diagonal().copy()
        score = np.full(m, np.inf)
        is_alive = ~is_gone
        for step in range(size):
            np.divide(gram_diagonal, inverse_diagonal, out=score, where=is_alive)
            j = int(score.argmin())
            self.local_idx[step], self.increase[step] = j, max(score[j], 0.0)
            is_alive[j], score[j] = False, np.inf
            left, cross = self._columns(inverse, gram, j, step)
            self._left[:, step], self._cross[:, step] = left, cross
            inverse_diagonal -= left * left
            gram_diagonal -= 2.0 * left * cross

    def _columns(
        self, inverse: Float[np.ndarray, "m m"], gram: Float[np.ndarray, "m m"], j: int, step: int
    ) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
        """The new columns of L and A: H_:j / sqrt(H_jj), and G_:j / sqrt(H_jj) less half of what meets itself."""
        left, cross = self._left[:, :step], self._cross[:, :step]
        inverse_column = _column(inverse, j) - left @ left[j]
        gram_column = _column(gram, j) - left @ cross[j] - cross @ left[j]
        pivot = inverse_column[j]
        new_left = inverse_column / np.sqrt(pivot)
        return new_left, gram_column / np.sqrt(pivot) - (0.5 * gram_column[j] / pivot) * new_left

    def apply(self, inverse: Float[np.ndarray, "m m"], gram: Float[np.ndarray, "m m"]) -> None:
        """H - L L' and G - L A' - A L', in place."""
        subtract_square(inverse, self._left)
        subtract_cross(gram, self._left, self._cross)


def _column(symmetric: Float[np.ndarray, "m m"], j: int) -> Float[np.ndarray, "m"]:
    return np.concatenate([symmetric[j, :j], symmetric[j:, j]])


def _compact(matrix: Float[np.ndarray, "m m"], alive: np.ndarray) -> Float[np.ndarray, "k k"]:
    """The lower triangle without the others, column by column: half of it is not read at all."""
    compact = np.empty((len(alive), len(alive)), order="F")
    for place, j in enumerate(alive):
        matrix[:, j].take(alive[place:], out=compact[place:, place], mode="clip")  # what is in range needs no buffer
    return compact
