"""How far a solution is off, multiplied out on the tokens themselves: no moments, so no formula of the solvers."""

from __future__ import annotations

import math

import numpy as np

from corp_onnx.solve.qk import QkSolution


def output_error(dense: np.ndarray, found: np.ndarray) -> float:
    """E|y - y'|^2 / E|y - E y|^2 of outputs [tokens, d_out]: 0 is identity, 1 as bad as answering with the mean."""
    return float(np.square(dense - found).sum() / np.square(dense - dense.mean(axis=0)).sum())


def logit_error(q: np.ndarray, k: np.ndarray, solution: QkSolution) -> float:
    """|q k' - q Mq' Mk k'|^2 / |q k'|^2 of one image, [heads, tokens, d]: 1 is dropping every dimension."""
    dense = q @ k.transpose(0, 2, 1)
    mapped_q, mapped_k = (x @ m.transpose(0, 2, 1) for x, m in ((q, solution.q_map), (k, solution.k_map)))
    return float(np.square(dense - mapped_q @ mapped_k.transpose(0, 2, 1)).sum() / np.square(dense).sum())


def naive_kl(reference: np.ndarray, logits: np.ndarray) -> float:
    """KL(softmax of the reference || softmax of the logits), nats, term by term."""
    p = [math.exp(v) for v in reference]
    q = [math.exp(v) for v in logits]
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))


def naive_rank(logits: np.ndarray, label: int) -> int:
    """The place of the label; of equal logits the lower class is first."""
    return np.argsort(-logits, kind="stable").tolist().index(label)
