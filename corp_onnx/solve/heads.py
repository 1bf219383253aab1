"""Order of whole heads: backward elimination, the one whose going costs least first."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.solve.ridge import solve_ridge


def rank_heads(
    weight: Float[np.ndarray, "d_out n"], covariance: Float[np.ndarray, "n n"], n_heads: int, ridge: float
) -> tuple[Int[np.ndarray, " h"], Float[np.ndarray, " h+1"]]:
    """(heads from the last to go to the first, mean squared output error with 0..h of them).

    OBS by groups: with H = (C + lambda I)^-1 the loss of head g is tr(W_g H_gg^-1 W_g'); W and H are downdated by it.
    """
    inverse = solve_ridge(covariance, np.eye(len(covariance)), ridge).solution
    weight, left = weight.astype(np.float64), list(range(n_heads))
    columns: Int[np.ndarray, "h d"] = np.reshape(np.arange(len(covariance)), (n_heads, -1))
    gone: list[int] = []
    errors = [0.0]
    while left:
        folded = [weight[:, columns[h]] @ np.linalg.inv(inverse[np.ix_(columns[h], columns[h])]) for h in left]
        losses = [max(float(np.vdot(f, weight[:, columns[h]])), 0.0) for f, h in zip(folded, left, strict=True)]
        place = int(np.argmin(losses))
        idx = columns[left[place]]
        weight = weight - folded[place] @ inverse[idx]
        inverse = inverse - inverse[:, idx] @ np.linalg.solve(inverse[np.ix_(idx, idx)], inverse[idx])
        gone, errors = [*gone, left.pop(place)], [*errors, errors[-1] + losses[place]]
    return np.array(gone[::-1]), np.array(errors[::-1])
