"""Embeddings against embeddings: one an image, or one for every token or pixel.

    cosine      of the model's vector and the reference's; of several vectors of an image their mean
    cosine_p1   what all but one in a hundred vectors reach

and, of one vector an image, what a search would notice (neighbours.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from corp_onnx.metrics.intervals import mean_interval, wilson_interval
from corp_onnx.metrics.neighbours import compare_neighbours
from corp_onnx.metrics.tally import Tally, join_pieces, mean_metric
from corp_onnx.metrics.task import OutputTask
from corp_onnx.results import Metric


class EmbedTally(Tally):
    """Embeddings, one an image or one for every token or pixel."""

    kept_name = "cosine"

    def __init__(self, task: OutputTask) -> None:
        super().__init__(task)
        self._cosines: list[np.ndarray] = []  # [n, positions] each
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def compare(self, outputs: Float64[np.ndarray, "n ..."], reference: Float64[np.ndarray, "n ..."]) -> None:
        """Cosines of a batch; single vectors are kept for their neighbours."""
        x, x_ref = (_unit(self.task.rows(values)) for values in (outputs, reference))
        both_zero = ~(x.any(axis=-1) | x_ref.any(axis=-1))  # as of tokens that a model masks
        self._cosines.append(np.where(both_zero, 1.0, (x * x_ref).sum(axis=-1)))
        if x.shape[1] == 1:
            self._pairs.append((x[:, 0].astype(np.float32), x_ref[:, 0].astype(np.float32)))

    @property
    def loss(self) -> float:
        """1 - the mean cosine."""
        return float((1 - self.kept).mean())

    @property
    def kept(self) -> Float64[np.ndarray, " n"]:
        """The mean cosine of an image's vectors."""
        return join_pieces([cosines.mean(axis=1) for cosines in self._cosines])

    def distances(self, confidence: float) -> Iterator[Metric]:
        """The worst of a hundred vectors, and neighbours."""
        yield Metric("cosine_p1", float(np.percentile(np.concatenate([c.ravel() for c in self._cosines]), 1)))
        if self._pairs:
            found, expected = (np.concatenate(side) for side in zip(*self._pairs, strict=True))
            for name, values in compare_neighbours(found, expected).items():
                is_share = bool(np.isin(values, (0.0, 1.0)).all())
                wilson = wilson_interval(float(values.sum()), len(values), confidence)
                yield mean_metric(name, values, wilson if is_share else mean_interval(values, confidence))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
