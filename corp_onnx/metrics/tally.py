"""Running sums over batches that say how far a model's output is from the reference's, by what the output is.

Every tally answers the same questions, whatever the task:

    loss       what probes and budgets minimise: KL of classes, 1 - cosine of embeddings, squared relative error else
    kept       one number an image, at most 1, whose mean a promise is about: agreement, cosine, correlation, R2
    metrics    all figures with their intervals, each defined in docs/metrics.md

Enters float64 arrays whose first axis counts images, batch by batch; leaves numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from corp_onnx.metrics.intervals import Interval, kept_interval
from corp_onnx.metrics.task import OutputTask
from corp_onnx.results import Metric
from corp_onnx.settings import CONFIDENCE


class Tally(ABC):
    """One output of one model over all batches so far.

    Attributes:
        kept_name: the metric whose mean a promise is about.
        is_share: whether `kept` is 0 or 1 for every image.
    """

    kept_name: ClassVar[str]
    is_share: bool = False

    def __init__(self, task: OutputTask) -> None:
        self.task = task
        self.n_samples = 0
        self._error_energy: list[np.ndarray] = []
        self._reference_energy: list[np.ndarray] = []

    def add(
        self,
        outputs: Float64[np.ndarray, "n ..."],
        reference: Float64[np.ndarray, "n ..."] | None = None,
        labels: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        """Count one batch; labels mean something to classes only."""
        self.n_samples += len(outputs)
        if labels is not None:
            self.judge(outputs, labels)
        if reference is not None:
            axes = tuple(range(1, outputs.ndim))
            self._error_energy.append(np.square(outputs - reference).sum(axis=axes))
            self._reference_energy.append(np.square(reference).sum(axis=axes))
            self.compare(outputs, reference)

    def judge(self, outputs: Float64[np.ndarray, "n ..."], labels: Int64[np.ndarray, " n"]) -> None:
        """Count what labels say of a batch: nothing, but of classes."""
        del outputs, labels

    @abstractmethod
    def compare(self, outputs: Float64[np.ndarray, "n ..."], reference: Float64[np.ndarray, "n ..."]) -> None:
        """Count how far a batch is from the reference's."""

    @property
    def is_compared(self) -> bool:
        """Whether there was a reference."""
        return bool(self._error_energy)

    @property
    @abstractmethod
    def loss(self) -> float:
        """What the search minimises; a mean over images."""

    @property
    @abstractmethod
    def kept(self) -> Float64[np.ndarray, " n"]:
        """What a promise counts, one number an image."""

    @property
    def stretch(self) -> Float64[np.ndarray, " n"] | None:
        """How many times as far from the reference each image may be until nothing of it is kept; None: by degrees."""
        return None

    @property
    def moved(self) -> Float64[np.ndarray, " n"]:
        """How far every image's answer is from the reference's, at least 0: what is not kept."""
        return 1 - self.kept

    @property
    def relative_error(self) -> float | None:
        """|z - z_ref| / |z_ref| over everything counted; None without a reference, or where that is all zero."""
        reference = sum_pieces(self._reference_energy)
        return math.sqrt(sum_pieces(self._error_energy) / reference) if reference else None

    def metrics(self, confidence: float = CONFIDENCE) -> tuple[Metric, ...]:
        """Every figure that is defined; those of the comparison only with a reference."""
        return tuple(self._list_metrics(confidence)) if self.n_samples else ()

    def _list_metrics(self, confidence: float) -> Iterator[Metric]:
        if not self.is_compared:
            return
        yield mean_metric(self.kept_name, self.kept, self.interval(confidence))
        yield from self.distances(confidence)
        if (error := self.relative_error) is not None:
            yield Metric("relative_error", error)

    def distances(self, confidence: float) -> Iterator[Metric]:
        """What a task measures besides, with intervals of a confidence."""
        del confidence
        yield from ()

    def interval(self, confidence: float = CONFIDENCE) -> Interval | None:
        """Of the mean of what is kept."""
        return kept_interval(self.kept, self.is_share, confidence)


def mean_metric(name: str, values: np.ndarray, interval: Interval | None) -> Metric:
    """The mean of one number an image, with its interval."""
    low, high = interval if interval is not None else (None, None)
    return Metric(name, float(np.mean(values)), low, high)


def join_pieces(pieces: list[np.ndarray]) -> np.ndarray:
    """What batches gave, as one array."""
    return np.concatenate(pieces) if pieces else np.zeros(0)


def sum_pieces(pieces: list[np.ndarray]) -> float:
    """The sum over everything that batches gave."""
    return float(sum(piece.sum() for piece in pieces))
