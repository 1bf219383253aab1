"""How far two sets of answers are apart: top-k, agreement, Kullback-Leibler divergence, error of logits.

Enters logits as float64 arrays, one row a sample; leaves one number a sample, or a number with its standard error. With
z_ref, z the logits of the reference and of the model, p = softmax(z_ref), q = softmax(z):

    KL = sum_k p_k (log p_k - log q_k)      in nats
    logit error = |z - z_ref| / |z_ref|     over all samples and outputs

NumPy only. Softmax is taken through log-sum-exp, so logits of any finite size are safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

TOP_K = 5
"""With this many classes or fewer, top-5 is always right and is left out."""


@dataclass(slots=True, eq=False)
class Tally:
    """Running counts and sums of one model over batches; None is what was never defined."""

    n_samples: int = 0
    n_top1: int | None = None
    n_top5: int | None = None
    n_agree: int | None = None
    kl_sum: float | None = None
    error_energy: float | None = None
    reference_energy: float | None = None

    def add(
        self,
        outputs: Float64[np.ndarray, "n ..."],
        labels: Int64[np.ndarray, " n"] | None = None,
        reference: Float64[np.ndarray, "n ..."] | None = None,
    ) -> None:
        """Count one batch. Outputs of other than two axes have no classes, so only their energies are summed."""
        self.n_samples += len(outputs)
        is_logits = outputs.ndim == 2
        if labels is not None and is_logits:
            ranks = rank_of_label(outputs, labels)
            self.n_top1 = (self.n_top1 or 0) + int((ranks == 0).sum())
            if outputs.shape[1] > TOP_K:
                self.n_top5 = (self.n_top5 or 0) + int((ranks < TOP_K).sum())
        if reference is not None:
            self.error_energy = (self.error_energy or 0.0) + float(np.square(outputs - reference).sum())
            self.reference_energy = (self.reference_energy or 0.0) + float(np.square(reference).sum())
            if is_logits:
                self.n_agree = (self.n_agree or 0) + int((outputs.argmax(axis=1) == reference.argmax(axis=1)).sum())
                self.kl_sum = (self.kl_sum or 0.0) + float(kl_divergence(reference, outputs).sum())

    @property
    def agreement(self) -> float | None:
        """Share of the samples with the reference's first answer; None where the output is no logits."""
        return None if self.n_agree is None else self.n_agree / self.n_samples

    @property
    def agreement_error(self) -> float | None:
        """Binomial standard error of the agreement."""
        return None if self.agreement is None else binomial_error(self.agreement, self.n_samples)

    @property
    def kl(self) -> float | None:
        """Mean KL(softmax of the reference || softmax of the outputs), nats; None as for agreement."""
        return None if self.kl_sum is None else self.kl_sum / self.n_samples

    @property
    def loss(self) -> float:
        """The mean KL where the output is logits, else the squared relative error: what the search minimises."""
        return self.kl if self.kl is not None else (self.error_energy or 0.0) / (self.reference_energy or 1.0)

    def relative_error(self) -> float | None:
        """|z - z_ref| / |z_ref| over everything counted; None without a reference, or where that is all zero."""
        if not self.reference_energy:
            return None
        return math.sqrt((self.error_energy or 0.0) / self.reference_energy)


def log_softmax(logits: Float64[np.ndarray, "n n_classes"]) -> Float64[np.ndarray, "n n_classes"]:
    """The logarithm of the softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl_divergence(
    reference: Float64[np.ndarray, "n n_classes"], logits: Float64[np.ndarray, "n n_classes"]
) -> Float64[np.ndarray, " n"]:
    """KL(softmax of the reference || softmax of the logits) of each sample, in nats, never negative."""
    log_p, log_q = log_softmax(reference), log_softmax(logits)
    # the sum is at least 0 in exact arithmetic; two equal rows may round to -1e-17
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


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


def binomial_error(share: float, n: int) -> float:
    """Standard error of a share of n independent samples, sqrt(p (1 - p) / n)."""
    return math.sqrt(max(share * (1 - share), 0.0) / n)
