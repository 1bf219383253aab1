"""Whether labels are in the order of a model's answers: a model that agrees with itself and not with them says no.

Enters answers and labels, batch by batch; leaves a sentence, or none. Labels that are shuffled among the classes leave
top-1 at chance, and yet images of one label still get one answer. So three things are asked together:

    top-1 is near chance              up to min(3 / n, 0.2 + 0.8 / n) and one standard error, n classes
    images of a label go together     P(same answer | same label) - P(same answer | other label) >= 0.3
    or, where labels hardly repeat    the mean probability of the first answer >= 0.5, with many different answers

A model that was broken, and answers the same to everything, or anything, passes the first and neither of the others.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

CHANCE = 3.0
"""Times the accuracy of guessing; with few classes that is no bound, see `_is_near_chance`."""

FEW_IMAGES = 10
"""Fewer than this show nothing."""

TOGETHER = 0.3
"""A true top-1 of a gives a difference near a^2: models from 55 % on show it."""

CONFIDENT = 0.5
FEW_PAIRS = 20
"""Pairs of images with the same label; below this many confidence is looked at instead."""

VARIED = 0.25
"""Different answers, as a share of the images or of the classes, whichever are fewer."""


class LabelWatch:
    """Answers and labels of one model over all images."""

    def __init__(self) -> None:
        self._labels: list[Int64[np.ndarray, " n"]] = []
        self._answers: list[Int64[np.ndarray, " n"]] = []
        self._confidence = 0.0
        self._n_classes = 0

    def add(self, outputs: Float64[np.ndarray, "n ..."], labels: Int64[np.ndarray, " n"] | None) -> None:
        """Count a batch; without labels, or where outputs are not [n, classes], nothing."""
        if labels is None or outputs.ndim != 2:
            return
        self._labels.append(labels)
        self._answers.append(outputs.argmax(axis=1))
        is_distribution = outputs.min() >= 0 and np.allclose(outputs.sum(axis=1), 1, atol=1e-3)
        highest = outputs.max(axis=1)
        softmax = 1 / np.exp(outputs - highest[:, None]).sum(axis=1)  # of the first answer
        self._confidence += float((highest if is_distribution else softmax).sum())
        self._n_classes = outputs.shape[1]

    def describe_order(self, model: Path) -> str:
        """Says that the labels look as if they were in another order than the answers; empty where they do not."""
        if not self._labels or self._n_classes < 2:
            return ""
        labels, answers = np.concatenate(self._labels), np.concatenate(self._answers)
        top1 = float((labels == answers).mean())
        if not _is_near_chance(top1, len(labels), self._n_classes):
            return ""
        share, gap, n_pairs = _measure_pairs(labels, answers)
        if n_pairs >= FEW_PAIRS and gap >= TOGETHER:
            evidence = f"images of the same label get the same answer ({share:.0%} of pairs)"
        elif n_pairs < FEW_PAIRS and self._is_sure(answers):
            evidence = f"the model is sure of its answers ({self._confidence / len(labels):.0%} on average)"
        else:
            return ""
        return (
            f"top-1 of {model} is at chance ({top1:.1%} with {self._n_classes} classes), and yet {evidence}: the "
            "labels are probably in another order than the model's answers. Give --labels in the order of the answers."
        )

    def _is_sure(self, answers: Int64[np.ndarray, " n"]) -> bool:
        n_possible = min(len(answers), self._n_classes)
        return self._confidence >= CONFIDENT * len(answers) and len(np.unique(answers)) > VARIED * n_possible


def _is_near_chance(top1: float, n_images: int, n_classes: int) -> bool:
    bound = min(CHANCE / n_classes, 0.2 + 0.8 / n_classes)
    return n_images >= FEW_IMAGES and top1 <= bound + math.sqrt(bound * (1 - bound) / n_images)


def _measure_pairs(labels: Int64[np.ndarray, " n"], answers: Int64[np.ndarray, " n"]) -> tuple[float, float, int]:
    """(share of same answers among pairs of one label, how much more than among other pairs, number of such pairs)."""
    _, by_both = np.unique(np.stack([labels, answers]), axis=1, return_counts=True)
    _, by_label = np.unique(labels, return_counts=True)
    _, by_answer = np.unique(answers, return_counts=True)
    n_both, n_label, n_answer, n_all = (float((c * (c - 1.0) / 2).sum()) for c in
                                        (by_both, by_label, by_answer, np.array([len(labels)])))  # fmt: skip
    inside = n_both / n_label if n_label else 0.0
    outside = (n_answer - n_both) / (n_all - n_label) if n_all > n_label else 0.0
    return inside, inside - outside, int(n_label)
