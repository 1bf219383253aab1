"""A merge in NumPy: what comes of a graph's choices, and whether they were the right ones."""

from __future__ import annotations

import numpy as np

from corp_onnx.tokens.sites import MergeStep, part_tokens

CHOICE_TOLERANCE = 2e-3
"""Of a cosine, by which a choice may be worse than NumPy's: near-ties fall either way, in 16 bits more than in 32."""


def replay_merge(
    step: MergeStep, n_special: int, h: np.ndarray, sizes: np.ndarray, order: np.ndarray, partner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, sizes) behind a step by NumPy, for what the graph chose to merge.

    Args:
        h: [B, n, d_model] in front of it.
        sizes: [B, n, 1].
        order: [B, n_sources, 1], sources by falling cost: the last `n_merged` merge.
        partner: [B, n_sources], the target of each, counted behind the special ones.
    """
    sources, targets = part_tokens(h.shape[1], n_special)
    tokens, new_sizes = [], []
    for row, size, by_cost, to in zip(
        h.astype(np.float64), sizes.astype(np.float64), order[..., 0].astype(int), partner.astype(int), strict=True
    ):
        n_kept = len(sources) - step.n_merged
        kept, gone = sources[by_cost[:n_kept]], by_cost[n_kept:]
        total, count = (row * size)[targets], size[targets]
        np.add.at(total, n_special + to[gone], (row * size)[sources[gone]])
        np.add.at(count, n_special + to[gone], size[sources[gone]])
        tokens.append(np.concatenate([total / count, row[kept]]))
        new_sizes.append(np.concatenate([count, size[kept]]))
    return np.stack(tokens), np.stack(new_sizes)


def explain_choice(
    step: MergeStep, n_special: int, x: np.ndarray, sizes: np.ndarray, order: np.ndarray, partner: np.ndarray
) -> float:
    """By how much a cosine or cost is worse than the best that NumPy finds; infinite where tokens are lost or doubled.

    Args:
        x: the source [B, n, d_model]; the others as for `replay_merge`.
    """
    sources, targets = part_tokens(x.shape[1], n_special)
    by_cost, to = order[..., 0].astype(int), partner.astype(int)
    if not np.array_equal(np.sort(by_cost, axis=1), np.broadcast_to(np.arange(len(sources)), by_cost.shape)):
        return float("inf")
    f = x.astype(np.float64) @ step.metric.directions
    f = f if step.metric.offset is None else f + step.metric.offset
    f /= np.maximum(np.linalg.norm(f, axis=-1, keepdims=True), 1e-12)
    cosine = f[:, sources] @ f[:, targets[n_special:]].swapaxes(1, 2)
    nearest = cosine.max(axis=2)
    short = nearest - np.take_along_axis(cosine, to[..., None], axis=2)[..., 0]
    weight = np.ones_like(nearest) if step.metric.importance is None else np.exp(x[:, sources] @ step.metric.importance)
    weight = weight * sizes[:, sources, 0]
    cost = np.take_along_axis((1 - nearest) * weight, by_cost, axis=1)
    n_kept = len(sources) - step.n_merged
    if not step.n_merged:
        return float(short.max())
    disorder = (cost[:, n_kept:].max(axis=1) - cost[:, :n_kept].min(axis=1)) / weight.mean(axis=1)
    return float(max(short.max(), disorder.max()))
