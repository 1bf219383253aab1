"""Sums that are made elsewhere, in the graph of the model: what comes out of it is added up here in float64.

Enters float32 sums over a few thousand tokens each; leaves frozen moments. Everything is as in `sums.py` but for the
pivot of channels, which is the mean of the first batch, and that a Gram of queries and keys is float32 over several
images: an entry of either is a sum of at most `FLUSH_ROWS` tokens and one batch before it is float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments.sums import move_back
from corp_onnx.moments.tiles import State, inside, under
from corp_onnx.moments.values import AnyMoments, ChannelMoments, LogitMoments


class GatheredSum(Protocol):
    """Sums of one unit.

    Attributes:
        shapes: of what the graph adds up, by name.
        n_pivot: channels that are taken about a pivot; 0 where nothing is.
        pivot: it, once it is known.
    """

    shapes: Mapping[str, tuple[int, ...]]
    n_pivot: int
    pivot: np.ndarray | None

    def count(self, shapes: Sequence[tuple[int, ...]], real: Fraction) -> int:
        """Count a batch by the shapes of what was added up, of which a part is no filling; its rows."""
        ...

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add what the graph added up.

        Raises:
            NonFiniteError: it holds NaN or Inf.
        """
        ...

    def result(self) -> AnyMoments:
        """The moments; raises InputError where nothing was counted."""
        ...

    def state(self) -> State:
        """As of a running sum."""
        ...

    def restore(self, state: State) -> None:
        """As of a running sum."""
        ...


class _Gathered:
    """What both kinds have in common: counts, float64 sums and a pivot."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], n_pivot: int, name: str) -> None:
        self.shapes = shapes
        self.n_pivot = n_pivot
        self.pivot: np.ndarray | None = None
        self.name = name
        self._counts = np.zeros(3, np.int64)
        self._sums = {key: np.zeros(shape) for key, shape in shapes.items()}

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add what the graph added up."""
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NonFiniteError(f"{self.name} holds NaN or Inf, or numbers over 1e19; check the model on these images")
        for key, array in arrays.items():
            self._sums[key] += array

    def state(self) -> State:
        """Counts, sums and the pivot."""
        pivot = {} if self.pivot is None else {"pivot": self.pivot}
        return {"counts": self._counts, **pivot, **under("sums", self._sums)}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._counts[...] = state["counts"]
        self.pivot = state["pivot"].copy() if "pivot" in state else None
        for key, array in inside("sums", state).items():
            self._sums[key][...] = array

    def _require_counted(self) -> None:
        if not self._counts[0]:
            raise InputError(f"expected at least one image for {self.name}, found none; give at least one image")


class GatheredChannels(_Gathered):
    """`ChannelMoments` of a tensor with `n_channels` channels."""

    def __init__(self, n_channels: int, name: str = "the tensor") -> None:
        super().__init__({"gram": (n_channels, n_channels), "total": (n_channels,)}, n_channels, name)

    def count(self, shapes: Sequence[tuple[int, ...]], real: Fraction) -> int:
        """Of [tokens, channels]."""
        n_rows = int(shapes[0][0] * real)
        self._counts[0] += n_rows
        return n_rows

    def result(self) -> ChannelMoments:
        """The moments of everything seen."""
        self._require_counted()
        assert self.pivot is not None
        gram = (self._sums["gram"] + self._sums["gram"].T) / 2  # rounding of a product need not be symmetric
        return move_back(float(self._counts[0]), self._sums["total"], gram, self.pivot)


class GatheredLogits(_Gathered):
    """`LogitMoments` of `n_heads` heads of `d_head` dimensions."""

    def __init__(self, n_heads: int, d_head: int, name: str = "the tensor") -> None:
        square = (n_heads, d_head, d_head)
        super().__init__({"q": square, "k_centred": square, "k_mean": square, "energy": square[:2]}, 0, name)

    def count(self, shapes: Sequence[tuple[int, ...]], real: Fraction) -> int:
        """Of queries and keys, [images, heads, tokens, dimensions]."""
        n_images = int(shapes[0][0] * real)
        rows = [n_images * shape[2] for shape in shapes]
        self._counts += [n_images, *rows]
        return max(rows)

    def result(self) -> LogitMoments:
        """The moments of everything seen."""
        self._require_counted()
        n_images, n_tokens, n_key_tokens = (int(n) for n in self._counts)
        centred = self._sums["k_centred"]
        return LogitMoments(
            n_images=n_images,
            n_tokens=n_tokens,
            n_key_tokens=n_key_tokens,
            q_gram=self._sums["q"],
            k_gram=centred + self._sums["k_mean"],
            k_centred_gram=centred,
            logit_energy=self._sums["energy"],
        )
