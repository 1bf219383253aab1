"""Running sums: activations of one batch enter, nothing of size tokens x width stays, frozen moments leave.

Rows are gathered into tiles of `TILE_ROWS`, so that how the images are cut into batches has no say in the sums, and a
model of batch 1 pays for a product as often as any. Every tile is one symmetric product (ssyrk) into a float32
accumulator, which goes into float64 after `FLUSH_ROWS`. Channels are taken about a pivot (the mean of the first tile)
and moved back at the end in float64, so that a large mean does not eat the float32 digits of the covariance.

What float32 costs: an entry of the Gram is a sum of at most `FLUSH_ROWS` products before it is float64, so its error is
below FLUSH_ROWS 2^-24 = 2.4e-4 of sqrt(G_ii G_jj), however many images there are. Roundings mostly cancel: on tokens
drawn at random it is below 1e-6 (tests/moments/test_sums.py).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments.tiles import Product, State, Tiles, inside, under
from corp_onnx.moments.values import AnyMoments, ChannelMoments, CrossMoments, LogitMoments

SQUARE = 256
"""Rows and columns of a Gram that are finished at once; three such squares of float64 are 1.5 MiB."""


class RunningSum(Protocol):
    """What all sums below have in common."""

    def update(self, *values: Any) -> None:
        """Adds a batch."""
        ...

    def result(self) -> AnyMoments:
        """The moments of everything seen; the sum is over then."""
        ...

    def state(self) -> State:
        """Everything that it holds, as arrays that are not copies: to be written before the next `update`."""
        ...

    def restore(self, state: State) -> None:
        """Go on from a state as if everything had been added here; every later bit is the same."""
        ...


class ChannelSum:
    """Running `ChannelMoments` of a tensor with `n_channels` channels; `name` is what an error calls the tensor."""

    def __init__(self, n_channels: int, name: str = "the tensor") -> None:
        self.name = name
        self.pivot: np.ndarray | None = None
        self._count = 0.0
        self._total = np.zeros(n_channels)
        self._gram = Product(n_channels, n_channels)
        self._tiles = Tiles(n_channels, 1)

    def update(self, x: Float[np.ndarray, "tokens n"], weights: Float[np.ndarray, "tokens"] | None = None) -> None:
        """Adds rows: n^2 flops each.

        Raises:
            NonFiniteError: `x` holds NaN or Inf, or values whose squares overflow float32; when its tile is full.
        """
        for tile, roots in self._tiles.put(x, _roots(weights, len(x))):
            self.add_tile(tile, roots)

    def add_tile(self, x: Float[np.ndarray, "tokens n"], roots: Float[np.ndarray, "tokens 1"]) -> None:
        """Adds a tile, which is centred and multiplied by the roots of its weights; raises as `update` does."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.pivot = _find_pivot(x) if self.pivot is None else self.pivot
            _centre(x, self.pivot, roots)
            if not self._gram.add_square(x):
                raise NonFiniteError(
                    f"{self.name} holds NaN or Inf, or numbers over 1e19; check the model on these images"
                )
            self._total += roots[:, 0] @ x
        self._count += float(np.square(roots, dtype=np.float64).sum())

    def result(self) -> ChannelMoments:
        """The moments of everything seen.

        Raises:
            InputError: nothing was seen.
            NonFiniteError: as `update`.
        """
        for tile, roots in self._tiles.rest():
            self.add_tile(tile, roots)
        if self.pivot is None or self._count == 0:
            raise InputError(f"expected at least one token of {self.name}, found none; give at least one image")
        return move_back(self._count, self._total, self._gram.result(), self.pivot)

    def state(self) -> State:
        """Pivot, sums, and the rows that wait."""
        pivot = {} if self.pivot is None else {"pivot": self.pivot}
        counted = {"count": np.array([self._count]), "sum": self._total, **pivot}
        return {**counted, **under("gram", self._gram.state()), **self._tiles.state()}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.pivot = state["pivot"].copy() if "pivot" in state else None
        self._count = float(state["count"][0])
        self._total[...] = state["sum"]
        self._gram.restore(inside("gram", state))
        self._tiles.restore(state)


class CrossSum:
    """Running `CrossMoments` of a regressor with `n_x` and a target with `n_y` channels."""

    def __init__(self, n_x: int, n_y: int, name: str = "the tensor") -> None:
        self._x = ChannelSum(n_x, name)
        self._y_pivot: np.ndarray | None = None
        self._y_total = np.zeros(n_y)
        self._y_energy = np.zeros(n_y)
        self._cross = Product(n_x, n_y)  # of the wider by the narrower: fastest that way
        self._tiles = Tiles(n_x, n_y, 1)

    def update(
        self,
        x: Float[np.ndarray, "tokens n"],
        y: Float[np.ndarray, "tokens m"],
        weights: Float[np.ndarray, "tokens"] | None = None,
    ) -> None:
        """Adds rows; `weights` multiply the squares of the error, so uniform weights change only the count.

        Raises:
            NonFiniteError: as of `ChannelSum`, of `x` or of `y`.
        """
        for tile in self._tiles.put(x, y, _roots(weights, len(x))):
            self._add(*tile)

    def _add(self, x: np.ndarray, y: np.ndarray, roots: np.ndarray) -> None:
        self._x.add_tile(x, roots)
        with np.errstate(over="ignore", invalid="ignore"):
            self._y_pivot = _find_pivot(y) if self._y_pivot is None else self._y_pivot
            _centre(y, self._y_pivot, roots)
            energy = np.square(y).sum(axis=0, dtype=np.float64)
        if not np.isfinite(energy).all():
            raise NonFiniteError(f"the target of {self._x.name} holds NaN or Inf, or numbers over 1e19")
        self._y_energy += energy
        self._y_total += roots[:, 0] @ y
        self._cross.add(x, y)

    def result(self) -> CrossMoments:
        """The moments of everything seen; raises what `ChannelSum.result` does."""
        for tile in self._tiles.rest():
            self._add(*tile)
        x = self._x.result()
        assert self._x.pivot is not None
        assert self._y_pivot is not None
        x_pivot, y_pivot = self._x.pivot.astype(np.float64), self._y_pivot.astype(np.float64)
        energy = self._y_energy + y_pivot * (2 * self._y_total + x.count * y_pivot)
        # E-free form of sum y x': x.total already has its pivot back, so only x_pivot is missing beside y_total
        cross = self._cross.result().T + np.outer(self._y_total, x_pivot) + np.outer(y_pivot, x.total)
        return CrossMoments(x.count, x.total, x.gram, self._y_total + x.count * y_pivot, energy, cross)

    def state(self) -> State:
        """Of the regressor, then what the target adds, and the rows that wait."""
        pivot = {} if self._y_pivot is None else {"pivot": self._y_pivot}
        target = {"sum": self._y_total, "energy": self._y_energy, **pivot}
        cross = under("cross", self._cross.state())
        return {**under("x", self._x.state()), **target, **cross, **self._tiles.state()}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._x.restore(inside("x", state))
        self._y_pivot = state["pivot"].copy() if "pivot" in state else None
        self._y_total[...] = state["sum"]
        self._y_energy[...] = state["energy"]
        self._cross.restore(inside("cross", state))
        self._tiles.restore(state)


class LogitSum:
    """Running `LogitMoments` of `n_heads` heads of `d_head` dimensions."""

    def __init__(self, n_heads: int, d_head: int, name: str = "the tensor") -> None:
        self.name = name
        self._n_images = self._n_tokens = self._n_key_tokens = 0
        self._energy = np.zeros((n_heads, d_head))
        self._q_gram, self._k_gram, self._k_centred_gram = np.zeros((3, n_heads, d_head, d_head))

    def update(self, q: Float[np.ndarray, "images nq h d"], k: Float[np.ndarray, "images nk h d"]) -> None:
        """Adds one batch of images; queries and keys as they meet in the product, before any scale.

        Raises:
            NonFiniteError: `q` or `k` holds NaN or Inf, or values whose squares overflow float32.
        """
        if len(q) == 0:
            return
        q, k = _heads_first(q), _heads_first(k)  # [images, h, tokens, d]
        n_key_tokens = k.shape[2]
        with np.errstate(over="ignore", invalid="ignore"):
            k_mean = k.mean(axis=2)  # [images, h, d]
            k = k - k_mean[:, :, None]
            q_gram, k_centred = (a.swapaxes(-1, -2) @ a for a in (q, k))  # of every image: [images, h, d, d]
        if not (np.isfinite(q_gram).all() and np.isfinite(k_centred).all()):
            raise NonFiniteError(f"{self.name} holds NaN or Inf, or numbers over 1e19; check the model on these images")
        k_mean = k_mean.astype(np.float64)
        k_square = np.diagonal(k_centred, axis1=-2, axis2=-1) + n_key_tokens * np.square(k_mean)
        self._n_images += len(q)
        self._n_tokens += len(q) * q.shape[2]
        self._n_key_tokens += len(q) * n_key_tokens
        k_gram = k_centred.sum(axis=0, dtype=np.float64)
        self._q_gram += q_gram.sum(axis=0, dtype=np.float64)
        self._k_centred_gram += k_gram
        self._k_gram += k_gram + n_key_tokens * np.einsum("nhd,nhe->hde", k_mean, k_mean)
        self._energy += (np.diagonal(q_gram, axis1=-2, axis2=-1) * k_square).sum(axis=0, dtype=np.float64)

    def result(self) -> LogitMoments:
        """The moments of everything seen.

        Raises:
            InputError: nothing was seen.
        """
        if self._n_images == 0:
            raise InputError(f"expected at least one image for {self.name}, found none; give at least one image")
        return LogitMoments(
            n_images=self._n_images,
            n_tokens=self._n_tokens,
            n_key_tokens=self._n_key_tokens,
            q_gram=self._q_gram.copy(),
            k_gram=self._k_gram.copy(),
            k_centred_gram=self._k_centred_gram.copy(),
            logit_energy=self._energy.copy(),
        )

    def state(self) -> State:
        """The counts and the sums."""
        counts = np.array([self._n_images, self._n_tokens, self._n_key_tokens])
        grams = {"q": self._q_gram, "k": self._k_gram, "k_centred": self._k_centred_gram}
        return {"counts": counts, "energy": self._energy, **grams}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._n_images, self._n_tokens, self._n_key_tokens = (int(n) for n in state["counts"])
        for name, array in self.state().items():
            if name != "counts":
                array[...] = state[name]


def move_back(
    count: float, total: Float[np.ndarray, " n"], upper: Float[np.ndarray, "n n"], pivot: Float[np.ndarray, " n"]
) -> ChannelMoments:
    """The moments of channels that were summed about a pivot; of `upper` only the upper triangle is read.

    Square by square, so that what is computed stays near and nothing of the Gram's size lies beside it.
    """
    about, gram = pivot.astype(np.float64), np.empty(upper.shape)
    shift = total + 0.5 * count * about
    squares = [slice(start, start + SQUARE) for start in range(0, len(total), SQUARE)]
    for at, rows in enumerate(squares):
        for columns in squares[at:]:
            moved = np.outer(shift[rows], about[columns])
            moved += np.outer(about[rows], shift[columns])
            moved += upper[rows, columns]
            gram[columns, rows] = moved.T
            gram[rows, columns] = moved if rows != columns else np.triu(moved) + np.triu(moved, 1).T
    return ChannelMoments(count, total + count * about, gram)


def _roots(weights: np.ndarray | None, n_tokens: int) -> Float[np.ndarray, "tokens 1"]:
    if weights is None:
        return np.ones((n_tokens, 1), dtype=np.float32)
    return np.sqrt(weights, dtype=np.float32)[:, None]


def _find_pivot(x: Float[np.ndarray, "tokens n"]) -> Float[np.ndarray, " n"]:
    return x.mean(axis=0, dtype=np.float64).astype(np.float32)


def _centre(x: np.ndarray, pivot: np.ndarray, roots: np.ndarray) -> None:
    """Takes the pivot away and multiplies by the roots, in place; ones cost nothing, and most are."""
    x -= pivot
    rows = np.flatnonzero(roots[:, 0] != 1)
    if 2 * len(rows) > len(x):
        x *= roots
    elif len(rows):
        x[rows] *= roots[rows]


def _heads_first(x: np.ndarray) -> np.ndarray:
    """In float32 as [images, h, tokens, d]; nothing is copied where BLAS can read a head as it lies."""
    return x.transpose(0, 2, 1, 3).astype(np.float32, copy=False)
