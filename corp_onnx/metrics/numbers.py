"""Numbers against numbers: maps of one channel, and anything else.

correlation      Pearson's, over the places of an image's map
iou              places that both maps call 'here' over those that either does: above 1/2 where all values of the
                 reference lie in 0..1, above 0 where they have both signs, as logits; not defined of other maps
r2               1 - E|z - z_ref|^2 / E|z_ref - E z_ref|^2
relative_error   |z - z_ref| / |z_ref|
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from corp_onnx.metrics.intervals import mean_interval
from corp_onnx.metrics.tally import Tally, join_pieces, mean_metric, sum_pieces
from corp_onnx.metrics.task import OutputTask
from corp_onnx.results import Metric

HALF = 0.5
"""Where a map counts as 'here', on a scale of probabilities."""


class MapTally(Tally):
    """Maps of one number at every place."""

    kept_name = "correlation"

    def __init__(self, task: OutputTask) -> None:
        super().__init__(task)
        self._correlations: list[np.ndarray] = []
        self._overlaps: list[np.ndarray] = []
        self._lowest, self._highest = math.inf, -math.inf

    def compare(self, outputs: Float64[np.ndarray, "n ..."], reference: Float64[np.ndarray, "n ..."]) -> None:
        """Correlations and overlaps of a batch."""
        x, y = (values.reshape(len(values), -1) for values in (outputs, reference))  # [n, pixels]
        self._correlations.append(_correlate(x, y))
        self._lowest, self._highest = min(self._lowest, float(y.min())), max(self._highest, float(y.max()))
        # whether the scale is of probabilities or of logits shows over all images only, so both are counted
        self._overlaps.append(np.stack([_overlap(x > edge, y > edge) for edge in (HALF, 0.0)], axis=1))

    @property
    def loss(self) -> float:
        """The squared relative error."""
        return sum_pieces(self._error_energy) / (sum_pieces(self._reference_energy) or 1.0)

    @property
    def kept(self) -> Float64[np.ndarray, " n"]:
        """The correlation of an image's map."""
        return join_pieces(self._correlations)

    def distances(self, confidence: float) -> Iterator[Metric]:
        """The overlap of what both maps show."""
        is_probability = self._lowest >= 0 and self._highest <= 1
        if not is_probability and self._lowest * self._highest >= 0:
            return  # a depth, say: nothing tells where it begins to be 'here'
        overlaps = join_pieces(self._overlaps)[:, 0 if is_probability else 1]
        yield mean_metric("iou", overlaps, mean_interval(overlaps, confidence))


class NumberTally(Tally):
    """Numbers of any kind."""

    kept_name = "r2"

    def __init__(self, task: OutputTask) -> None:
        super().__init__(task)
        self._sum: np.ndarray | float = 0.0
        self._square: np.ndarray | float = 0.0

    def compare(self, outputs: Float64[np.ndarray, "n ..."], reference: Float64[np.ndarray, "n ..."]) -> None:  # noqa: ARG002
        """How much the reference's numbers vary."""
        self._sum = self._sum + reference.sum(axis=0)
        self._square = self._square + np.square(reference).sum(axis=0)

    @property
    def loss(self) -> float:
        """The squared relative error."""
        return sum_pieces(self._error_energy) / (sum_pieces(self._reference_energy) or 1.0)

    @property
    def kept(self) -> Float64[np.ndarray, " n"]:
        """1 - |z - z_ref|^2 / E|z_ref - E z_ref|^2 of every image: their mean is R2."""
        variance = float(np.sum(self._square - np.square(self._sum) / self.n_samples)) / self.n_samples
        return 1 - join_pieces(self._error_energy) / (variance or 1.0)


def _correlate(x: Float64[np.ndarray, "n pixels"], y: Float64[np.ndarray, "n pixels"]) -> Float64[np.ndarray, " n"]:
    """Pearson's correlation over the pixels of every image; two flat maps correlate fully, one of them not at all."""
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scales = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    product = scales[0] * scales[1]
    flat = np.where((scales[0] == 0) & (scales[1] == 0), 1.0, 0.0)
    return np.where(product > 0, (x * y).sum(axis=1) / np.where(product > 0, product, 1.0), flat)


def _overlap(x: np.ndarray, y: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Intersection over union of every image; 1 where both are empty."""
    both, either = (x & y).sum(axis=1), (x | y).sum(axis=1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
