"""Logits: softmax, Kullback-Leibler divergence, ranks.

With z_ref, z the logits of the reference and of the model, p = softmax(z_ref), q = softmax(z):

    KL = sum_k p_k (log p_k - log q_k)      in nats

Softmax is taken through log-sum-exp over the last axis, so logits of any finite size are safe.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

SMALLEST_PROBABILITY = 1e-12
"""What a probability of 0 counts as: float32 softmax rounds to 0 what is below 1e-38, and a KL must stay finite."""


def log_softmax(logits: Float64[np.ndarray, "*n n_classes"]) -> Float64[np.ndarray, "*n n_classes"]:
    """The logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def read_probabilities(probabilities: Float64[np.ndarray, "*n n_classes"]) -> Float64[np.ndarray, "*n n_classes"]:
    """Logits whose softmax are these probabilities."""
    return np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))


def kl_divergence(
    reference: Float64[np.ndarray, "*n n_classes"], logits: Float64[np.ndarray, "*n n_classes"]
) -> Float64[np.ndarray, "*n"]:
    """KL(softmax of the reference || softmax of the logits) of each row, in nats, never negative."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    # the sum is at least 0 in exact arithmetic; two equal rows may round to -1e-17
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=-1), 0.0)


def rank_of_label(
    logits: Float64[np.ndarray, "n n_classes"], labels: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """How many classes stand before the label's, 0 for a correct answer; of equal logits the lower class is first.

    A sample is right in the top k when its rank is below k. Ties are cut as by a stable sort, so that a model with
    constant output is right on class 0 only.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # [n, 1]
    before = np.arange(logits.shape[1])[None, :] < labels[:, None]  # [n, n_classes]
    return ((logits > own) | ((logits == own) & before)).sum(axis=1)


def stretch_to_change(
    reference: Float64[np.ndarray, "*n n_classes"], logits: Float64[np.ndarray, "*n n_classes"]
) -> Float64[np.ndarray, "*n"]:
    """How many times as far from the reference the logits of each row may be until the first answer is another.

    With m_k >= 0 what class k is behind the reference's first, and d_k what of that the model makes up: min m_k / d_k
    over d_k > 0. Above 1 where the answer is the same, infinite where it stays whatever the distance.
    """
    first = reference.argmax(axis=-1)[..., None]
    behind = np.take_along_axis(reference, first, axis=-1) - reference
    gained = behind - (np.take_along_axis(logits, first, axis=-1) - logits)
    rises = gained > 0
    return np.where(rises, behind / np.where(rises, gained, 1.0), np.inf).min(axis=-1)
