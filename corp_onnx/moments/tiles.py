"""What running sums are made of: rows gathered into tiles, and products of tiles added up in two precisions.

Either can say its state, arrays by name that are exact to the bit and not copies, and go on from one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from corp_onnx.moments.blas import add_product, add_square

State = Mapping[str, np.ndarray]
"""Arrays by name, each contiguous and of one axis or more."""

TILE_ROWS = 512
"""Tokens of one product: enough that it is not the accumulator that is carried about, few enough to stay near."""

FLUSH_ROWS = 8 * TILE_ROWS
"""Tokens that are added up in float32."""


class Tiles:
    """Rows of several tensors side by side, gathered until there are `TILE_ROWS` of them; a copy in float32."""

    def __init__(self, *widths: int) -> None:
        self._widths = widths
        self._buffers: list[np.ndarray] = []
        self._n = 0

    def put(self, *arrays: Float[np.ndarray, "tokens _"]) -> Iterator[tuple[np.ndarray, ...]]:
        """Add rows; yields every tile that they fill, which is theirs to change until the next."""
        if not self._buffers:
            self._buffers = [np.empty((TILE_ROWS, width), dtype=np.float32) for width in self._widths]
        start = 0
        while start < len(arrays[0]):
            n = min(TILE_ROWS - self._n, len(arrays[0]) - start)
            for buffer, array in zip(self._buffers, arrays, strict=True):
                buffer[self._n : self._n + n] = array[start : start + n]
            self._n += n
            start += n
            if self._n == TILE_ROWS:
                yield from self.rest()

    def rest(self) -> Iterator[tuple[np.ndarray, ...]]:
        """The rows that wait, if any."""
        n, self._n = self._n, 0
        if n:
            yield tuple(buffer[:n] for buffer in self._buffers)

    def state(self) -> State:
        """The rows that wait."""
        return {f"tile.{i}": buffer[: self._n] for i, buffer in enumerate(self._buffers) if self._n}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        waiting = [state[f"tile.{i}"] for i in range(len(self._widths)) if f"tile.{i}" in state]
        self._n = 0
        for _ in self.put(*waiting) if waiting else ():
            raise AssertionError("fewer rows than a tile wait")


class Product:
    """A running float64 sum of products of tiles, in Fortran order; of x with itself only the upper triangle."""

    def __init__(self, n_rows: int, n_columns: int) -> None:
        self._recent = np.zeros((n_rows, n_columns), np.float32, order="F")
        self._total = np.zeros((n_rows, n_columns), order="F")
        self._n_recent = 0

    def add_square(self, x: Float[np.ndarray, "tokens n"]) -> bool:
        """Adds the upper triangle of x' x; whether all squares are finite."""
        add_square(x, self._recent)
        is_finite = bool(np.isfinite(self._recent.diagonal()).all())
        self._count(len(x))
        return is_finite

    def add(self, y: Float[np.ndarray, "tokens m"], x: Float[np.ndarray, "tokens n"]) -> None:
        """Adds y' x."""
        add_product(y, x, self._recent)
        self._count(len(x))

    def result(self) -> Float[np.ndarray, "m n"]:
        """The sum so far."""
        self._total += self._recent
        self._recent[...] = 0
        self._n_recent = 0
        return self._total

    def state(self) -> State:
        """Both accumulators, transposed: they lie in Fortran order."""
        return {"recent": self._recent.T, "total": self._total.T, "n_recent": np.array([self._n_recent])}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._recent[...] = state["recent"].T
        self._total[...] = state["total"].T
        self._n_recent = int(state["n_recent"][0])

    def _count(self, n_rows: int) -> None:
        self._n_recent += n_rows
        if self._n_recent >= FLUSH_ROWS:
            self.result()


def under(name: str, state: State) -> State:
    """A state with a name in front of every array's, so that it can stand in a larger one."""
    return {f"{name}.{key}": array for key, array in state.items()}


def inside(name: str, state: State) -> State:
    """What `under` put into a larger state."""
    return {key.removeprefix(f"{name}."): array for key, array in state.items() if key.startswith(f"{name}.")}
