"""How far a unit's output is off: squares over one batch, which add up to those of all images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True, eq=False)
class Energy:
    """Sums of squares over the rows of a unit's output.

    Attributes:
        error: of what the solution is off.
        error_without: the same without compensation.
        reference: of the output about its mean in the batch.
        total: sum of the rows; 0 for an output that has no mean to be told from.
        n_rows: in it.
        of_means: n_rows |mean|^2, by which the mean of all parts may differ from that of each.
    """

    error: float = 0.0
    error_without: float = 0.0
    reference: float = 0.0
    total: Float[np.ndarray, " channels"] | float = 0.0
    n_rows: int = 0
    of_means: float = 0.0

    @classmethod
    def of(
        cls, exact: Float[np.ndarray, "rows channels"], solved: Float[np.ndarray, "rows channels"],
        dropped: Float[np.ndarray, "rows channels"],
    ) -> Energy:  # fmt: skip
        """Of the outputs of one batch: dense, solved, and without compensation."""
        total = exact.sum(axis=0, dtype=np.float64)
        mean = total / len(exact)
        of_means = len(exact) * float(mean @ mean)
        reference = _square(exact - mean.astype(np.float32))
        return cls(_square(solved - exact), _square(dropped - exact), reference, total, len(exact), of_means)

    def __add__(self, other: Energy) -> Energy:
        return Energy(
            self.error + other.error,
            self.error_without + other.error_without,
            self.reference + other.reference,
            self.total + other.total,
            self.n_rows + other.n_rows,
            self.of_means + other.of_means,
        )

    def relative(self) -> tuple[float, float]:
        """(error, error without compensation) over the output about its mean; of one that does not vary, as it is."""
        between = self.of_means - float(np.square(self.total).sum()) / max(self.n_rows, 1)
        scale = max(self.reference + between, 0.0) or 1.0
        return float(np.sqrt(self.error / scale)), float(np.sqrt(self.error_without / scale))


def _square(x: np.ndarray) -> float:
    """The sum of squares of a batch: float32, one product."""
    flat = x.reshape(-1)
    return float(flat @ flat)
