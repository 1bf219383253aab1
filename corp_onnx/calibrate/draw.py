"""Some tokens of every image in place of all: sums of fewer rows, unbiased whatever the tokens are.

The tokens of an image are much alike, and the products of the sums are half of what calibration costs. Which are drawn
depends on the image's place alone, not on how images are cut into batches; the class token is one among the others, so
that it weighs what it does in all rows. What it saves and costs: benchmarks/calibration.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from corp_onnx.units.base import Values


@dataclass(frozen=True, slots=True)
class TokenDraw:
    """So many tokens of every image, drawn without replacement."""

    n_tokens: int

    def take(self, values: Values, n_images: int, first: int) -> Values:
        """What a unit reads of a batch, with fewer rows; what is no row a token, as queries and keys, stays whole.

        Args:
            n_images: in the batch.
            first: place of the first of them among all images.
        """
        return tuple(value[self._draw_rows(len(value), n_images, first)] if value.ndim == 2 else value
                     for value in values)  # fmt: skip

    def _draw_rows(self, n_rows: int, n_images: int, first: int) -> Int[np.ndarray, " n"] | slice:
        each = n_rows // max(n_images, 1)
        if n_rows % max(n_images, 1) or each <= self.n_tokens:
            return slice(None)
        rows = [
            start * each + np.sort(np.random.default_rng(first + start).permutation(each)[: self.n_tokens])
            for start in range(n_images)
        ]
        return np.concatenate(rows)
