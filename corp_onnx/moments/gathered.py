"""Sums that are made elsewhere, in the graph of the model: what is known of them here, and the moments they become.

Enter the shapes of batches, and float64 sums at the end; leave frozen moments. Everything is as in `sums.py` but for
the pivot of channels, which is the mean of the first batch, and that an entry is float32 over one batch of images
before it is float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments.sums import move_back
from corp_onnx.moments.tiles import State
from corp_onnx.moments.values import AnyMoments, ChannelMoments, LogitMoments


class GatheredSum(Protocol):
    """Sums of one unit.

    Attributes:
        shapes: of what the graph adds up, by name.
        watched: the small one of them, in which a NaN shows.
        n_pivot: channels that are taken about a pivot; 0 where nothing is.
        pivot: it, once it is known.
    """

    shapes: Mapping[str, tuple[int, ...]]
    watched: str
    n_pivot: int
    pivot: np.ndarray | None

    def count(self, shapes: Sequence[tuple[int, ...]], real: Fraction) -> None:
        """Count a batch by the shapes of what was added up, of which a part is no filling."""
        ...

    def require_finite(self, *sums: np.ndarray) -> None:
        """Refuse sums of something that is no number.

        Raises:
            NonFiniteError: they hold NaN or Inf.
        """
        ...

    def result(self, sums: Mapping[str, np.ndarray]) -> AnyMoments:
        """The moments.

        Raises:
            InputError: nothing was counted.
            NonFiniteError: the sums hold NaN or Inf.
        """
        ...

    def state(self) -> State:
        """What is known beside the sums."""
        ...

    def restore(self, state: State) -> None:
        """Go on from a state."""
        ...


class _Gathered:
    """What both kinds have in common: counts and a pivot."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], watched: str, n_pivot: int, name: str) -> None:
        self.shapes = shapes
        self.watched = watched
        self.n_pivot = n_pivot
        self.pivot: np.ndarray | None = None
        self.name = name
        self._counts = np.zeros(3, np.int64)

    def require_finite(self, *sums: np.ndarray) -> None:
        """Refuse sums of something that is no number."""
        if not all(np.isfinite(array).all() for array in sums):
            raise NonFiniteError(f"{self.name} holds NaN or Inf, or numbers over 1e19; check the model on these images")

    def state(self) -> State:
        """Counts and the pivot."""
        return {"counts": self._counts, **({} if self.pivot is None else {"pivot": self.pivot})}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._counts[...] = state["counts"]
        self.pivot = state["pivot"].copy() if "pivot" in state else None

    def _check(self, sums: Mapping[str, np.ndarray]) -> None:
        if not self._counts[0]:
            raise InputError(f"expected at least one image for {self.name}, found none; give at least one image")
        self.require_finite(*sums.values())


class GatheredChannels(_Gathered):
    """`ChannelMoments` of a tensor with `n_channels` channels."""

    def __init__(self, n_channels: int, name: str = "the tensor") -> None:
        super().__init__({"gram": (n_channels, n_channels), "total": (n_channels,)}, "total", n_channels, name)

    def count(self, shapes: Sequence[tuple[int, ...]], real: Fraction) -> None:
        """Of [tokens, channels]."""
        self._counts[0] += int(shapes[0][0] * real)

    def result(self, sums: Mapping[str, np.ndarray]) -> ChannelMoments:
        """The moments of everything seen."""
        self._check(sums)
        assert self.pivot is not None
        return move_back(float(self._counts[0]), sums["total"], sums["gram"], self.pivot)


class GatheredLogits(_Gathered):
    """`LogitMoments` of `n_heads` heads of `d_head` dimensions."""

    def __init__(self, n_heads: int, d_head: int, name: str = "the tensor") -> None:
        square = (n_heads, d_head, d_head)
        super().__init__({"q": square, "k_centred": square, "k_mean": square, "energy": square[:2]}, "energy", 0, name)

    def count(self, shapes: Sequence[tuple[int, ...]], real: Fraction) -> None:
        """Of queries and keys, [images, heads, tokens, dimensions]."""
        n_images = int(shapes[0][0] * real)
        self._counts += [n_images, *(n_images * shape[2] for shape in shapes)]

    def result(self, sums: Mapping[str, np.ndarray]) -> LogitMoments:
        """The moments of everything seen."""
        self._check(sums)
        n_images, n_tokens, n_key_tokens = (int(n) for n in self._counts)
        centred = sums["k_centred"]
        return LogitMoments(
            n_images=n_images,
            n_tokens=n_tokens,
            n_key_tokens=n_key_tokens,
            q_gram=sums["q"],
            k_gram=centred + sums["k_mean"],
            k_centred_gram=centred,
            logit_energy=sums["energy"],
        )
