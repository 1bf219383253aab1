"""What a source of data yields: `Batch`es of samples, and `Skipped` files that gave none.

A source never knows a model's input names, and a model never knows where its data comes from: run/feeds.py joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from corp_onnx.errors import ImageError, OptionError

PIXELS = "pixels"
"""The name of the one array that a batch of photographs holds."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that gave no sample, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """n samples.

    Attributes:
        arrays: name -> array whose first axis is n long; a batch of photographs holds `pixels` only, [n, c, h, w].
        names: the file (or row) each sample came from.
        labels: class index of each sample, or None.
    """

    arrays: Mapping[str, np.ndarray]
    names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if any(length != len(self.names) for length in lengths.values()):
            raise ImageError(f"a batch of {len(self.names)} samples holds arrays of other lengths: {lengths}.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def pixels(self) -> Float32[np.ndarray, "n c h w"]:
        """The only array of the batch.

        Raises:
            ImageError: the batch holds several arrays, so none is *the* pixels.
        """
        if len(self.arrays) != 1:
            raise ImageError(f"expected one array of pixels, found {', '.join(self.arrays)}.")
        return next(iter(self.arrays.values()))


def check_batch_size(batch_size: int) -> None:
    """Raise OptionError for a batch size below 1."""
    if batch_size < 1:
        raise OptionError(f"the batch size must be at least 1, found {batch_size}.")
