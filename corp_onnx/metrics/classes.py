"""Classes against classes: one answer an image, or one for every token or pixel.

agreement   the largest of the model's logits is that of the reference's
kl          KL(softmax of the reference || softmax of the model), nats
top1, top5  the label is the first answer, or among the first five
mean_iou    of maps: pixels that both call a class over those that either does, mean over the classes that occur
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64

from corp_onnx.metrics.intervals import mean_interval, paired_interval, wilson_interval
from corp_onnx.metrics.logits import kl_divergence, rank_of_label, read_probabilities, stretch_to_change
from corp_onnx.metrics.tally import Tally, join_pieces, mean_metric
from corp_onnx.metrics.task import OutputTask
from corp_onnx.results import Metric

TOP_K = 5
"""With this many classes or fewer, top-5 is always right and is left out."""


class ClassTally(Tally):
    """Classes, one answer an image or one for every token or pixel."""

    kept_name = "agreement"

    def __init__(self, task: OutputTask) -> None:
        super().__init__(task)
        self.is_share = len(task.shape) == 1
        self.ranks: list[np.ndarray] = []
        self._agree: list[np.ndarray] = []
        self._stretch: list[np.ndarray] = []
        self._kl: list[np.ndarray] = []
        self._both = np.zeros(task.n_channels)
        self._either = np.zeros(task.n_channels)

    def judge(self, outputs: Float64[np.ndarray, "n ..."], labels: Int64[np.ndarray, " n"]) -> None:
        """Where the label stands among the answers."""
        if outputs.ndim == 2:
            self.ranks.append(rank_of_label(outputs, labels))

    def compare(self, outputs: Float64[np.ndarray, "n ..."], reference: Float64[np.ndarray, "n ..."]) -> None:
        """First answers and divergences of a batch."""
        z, z_ref = self.task.rows(outputs), self.task.rows(reference)  # [n, positions, classes]
        if self.task.is_probability:
            z, z_ref = read_probabilities(z), read_probabilities(z_ref)
        first, expected = z.argmax(axis=-1), z_ref.argmax(axis=-1)
        self._agree.append((first == expected).mean(axis=1))
        if self.is_share:
            self._stretch.append(stretch_to_change(z_ref, z)[:, 0])
        self._kl.append(kl_divergence(z_ref, z).mean(axis=1))
        if self.task.task == "dense":
            counts = [np.bincount(c.ravel(), minlength=len(self._both)) for c in (first, expected)]
            both = np.bincount(first[first == expected], minlength=len(self._both))
            self._both += both
            self._either += counts[0] + counts[1] - both

    @property
    def loss(self) -> float:
        """The mean KL, in nats."""
        return float(join_pieces(self._kl).mean())

    @property
    def kept(self) -> Float64[np.ndarray, " n"]:
        """Whether the first answer stays; of several an image, how many of them."""
        return join_pieces(self._agree)

    @property
    def stretch(self) -> Float64[np.ndarray, " n"] | None:
        """How many times as far off an image may be until its first answer is another; None of several an image."""
        return join_pieces(self._stretch) if self.is_share else None

    @property
    def moved(self) -> Float64[np.ndarray, " n"]:
        """The KL of every image, in nats; of several answers an image, their mean."""
        return join_pieces(self._kl)

    @property
    def right(self) -> Int64[np.ndarray, " n"] | None:
        """Which images have their label as the first answer; None without labels."""
        return (join_pieces(self.ranks) == 0).astype(np.int64) if self.ranks else None

    def _list_metrics(self, confidence: float) -> Iterator[Metric]:
        if self.ranks:
            ranks = join_pieces(self.ranks)
            for name, k in (("top1", 1), ("top5", TOP_K)):
                if k == 1 or self.task.n_channels > k:
                    right = ranks < k
                    yield mean_metric(name, right, wilson_interval(float(right.sum()), len(right), confidence))
        yield from super()._list_metrics(confidence)

    def distances(self, confidence: float) -> Iterator[Metric]:
        """KL, and of maps the overlap."""
        yield mean_metric("kl", join_pieces(self._kl), mean_interval(join_pieces(self._kl), confidence))
        if self.task.task == "dense":
            seen = self._either > 0
            yield Metric("mean_iou", float((self._both[seen] / self._either[seen]).mean()))


def compare_right(tally: Tally, reference: Tally, confidence: float) -> Metric | None:
    """Top-1 of a model less that of a reference on the same images; None where either has no labels."""
    if not (isinstance(tally, ClassTally) and isinstance(reference, ClassTally)):
        return None
    right, expected = tally.right, reference.right
    if right is None or expected is None:
        return None
    n_gained, n_lost = int((right > expected).sum()), int((right < expected).sum())
    low, high = paired_interval(n_gained, n_lost, len(right), confidence)
    return Metric("top1_difference", (n_gained - n_lost) / len(right), low, high)
