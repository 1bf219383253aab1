"""Where the rows of a product land in the residual stream, whatever lies between: folded axes, windows, transposes.

Enters the graph and a residual addition  stream = skip + scale * move(W z + b);  leaves, for every row of the stream,
the row of the product that moves there. It is not read off operators but measured: the product's output is replaced by
row numbers, written in base 64 into four of its channels, and read back from the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.run.segments import Segment

BASE = 64
N_DIGITS = 4
"""16 million rows; a digit is exact in float16 as well, behind any LayerScale."""

MAX_ERROR = 0.1
"""Of a digit that is read back; more means that rows are mixed and not moved."""


@dataclass(frozen=True, slots=True, eq=False)
class RowFinder:
    """The way from a product's output to the stream behind it.

    Attributes:
        segment: from `product` and `skip` to `stream`.
        scale: LayerScale's vector, or one number.
    """

    segment: Segment
    product: str
    skip: str
    stream: str
    scale: Float[np.ndarray, " d_out"]
    known: dict[tuple[int, ...], Int[np.ndarray, " rows"] | None] = field(default_factory=dict)

    def find(
        self, leading: tuple[int, ...], stream_shape: tuple[int, ...], feeds: Mapping[str, np.ndarray]
    ) -> Int[np.ndarray, " rows"] | None:
        """The product's row for every row of the stream; None where a stream row is no single row of the product.

        Args:
            leading: shape of the product's output without its channels.
            stream_shape: of the stream.
            feeds: the model's inputs, which shapes on the way may be taken from.
        """
        key = (*leading, *stream_shape)
        if key not in self.known:
            self.known[key] = self._measure(leading, stream_shape, feeds)
        return self.known[key]

    def _measure(
        self, leading: tuple[int, ...], stream_shape: tuple[int, ...], feeds: Mapping[str, np.ndarray]
    ) -> Int[np.ndarray, " rows"] | None:
        n_rows, d_out = int(np.prod(leading)), stream_shape[-1]
        scale = np.broadcast_to(self.scale, (d_out,)).astype(np.float64)
        channels = np.argsort(-np.abs(scale), kind="stable")[:N_DIGITS]
        digits = np.arange(n_rows)[:, None] // BASE ** np.arange(N_DIGITS) % BASE  # [rows, digits]
        numbered = np.zeros((n_rows, d_out), dtype=np.float32)
        numbered[:, channels] = digits[:, : len(channels)]
        zero, skip = np.zeros_like(numbered), np.zeros(stream_shape, dtype=np.float32)
        found, base = (
            self.segment.run({self.product: y.reshape(*leading, d_out), self.skip: skip}, feeds)[self.stream]
            for y in (numbered, zero)
        )
        moved = (found.astype(np.float64) - base).reshape(-1, d_out)[:, channels] / scale[channels]
        read = np.rint(moved)
        rows = (read @ BASE ** np.arange(len(channels))).astype(np.int64)
        clean = np.abs(moved - read).max(initial=0.0) < MAX_ERROR
        single = len(np.unique(rows)) == len(rows)  # a mean of row numbers may be a row number, but not for every row
        return rows if clean and single and rows.min() >= 0 and rows.max() < n_rows else None
