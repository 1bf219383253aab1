"""Whether embeddings find the same neighbours: what a search over images would notice.

Enters two sets of unit vectors of the same n images, from the model x and from the reference y; similarity is the
cosine, and nobody is a neighbour of their own.

    nn_agreement     the nearest of x_i among the x is that of y_i among the y
    overlap_at_10    share of the ten nearest of x_i among the x that are of the ten nearest of y_i among the y; at most
                     half of the others are counted as nearest, because all of them are always the same
    cross_agreement  the nearest of x_i among the y is that of y_i among the y: an index that is not made anew
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int

N_NEAREST = 10
CHUNK = 1024
"""Queries at a time: their similarities to n images are in memory."""


def compare_neighbours(
    found: Float32[np.ndarray, "n d"], expected: Float32[np.ndarray, "n d"]
) -> dict[str, Float64[np.ndarray, " n"]]:
    """One number an image for every metric; nothing of fewer than three images."""
    n = len(found)
    if n < 3:
        return {}
    k = min(N_NEAREST, (n - 1) // 2)
    own, true, cross = (_nearest(*pair, k) for pair in ((found, found), (expected, expected), (found, expected)))
    shared = (own[:, :, None] == true[:, None, :]).any(axis=2).mean(axis=1)
    return {
        "nn_agreement": (own[:, 0] == true[:, 0]).astype(np.float64),
        **({f"overlap_at_{k}": shared} if k > 1 else {}),
        "cross_agreement": (cross[:, 0] == true[:, 0]).astype(np.float64),
    }


def _nearest(
    queries: Float32[np.ndarray, "n d"], gallery: Float32[np.ndarray, "n d"], k: int
) -> Int[np.ndarray, "n k"]:
    """The k nearest of every query, without the one of its own place; of equals the first is nearer."""
    rows: list[np.ndarray] = []
    for start in range(0, len(queries), CHUNK):
        similarity = queries[start : start + CHUNK] @ gallery.T
        place = np.arange(len(similarity))
        similarity[place, start + place] = -np.inf
        rows.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(rows)
