"""Running sums: activations of one batch enter, nothing of size tokens x width stays, frozen moments leave.

Batch Grams are float32 (one BLAS product), their sum over batches is float64. Channel sums are taken about a pivot (the
mean of the first batch) and moved back at the end in float64, so that a large mean does not eat the float32 digits of
the covariance. How the images are cut into batches changes nothing but rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_blas_funcs

from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments.values import AnyMoments, ChannelMoments, CrossMoments, LogitMoments

Rows = tuple[np.ndarray | None, ...]
"""What one batch adds to a sum: arrays whose first axis is that of tokens or images."""


class ChannelSum:
    """Running `ChannelMoments` of a tensor with `n_channels` channels; `name` is what an error calls the tensor."""

    def __init__(self, n_channels: int, name: str = "the tensor") -> None:
        self.name = name
        self._count = 0.0
        self._pivot: np.ndarray | None = None
        self._total = np.zeros(n_channels)
        # the Fortran order of ssyrk; only the upper triangle is ever written
        self._gram = np.zeros((n_channels, n_channels), order="F")

    def update(self, x: Float[np.ndarray, "tokens n"], weights: Float[np.ndarray, "tokens"] | None = None) -> None:
        """Adds one batch: n^2 * tokens flops, a float32 copy of `x` while it runs.

        Raises:
            NonFiniteError: `x` holds NaN or Inf, or values whose squares overflow float32.
        """
        if len(x) == 0:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            if self._pivot is None:
                self._pivot = x.mean(axis=0, dtype=np.float64).astype(np.float32)
            self._add(_weighted(x - self._pivot, weights), _root(weights, len(x)))

    def _add(self, x: np.ndarray, root: np.ndarray) -> None:
        (syrk,) = get_blas_funcs(("syrk",), dtype=np.float32)
        gram = syrk(1.0, x.T)  # the upper triangle of x' x
        if not np.isfinite(np.diagonal(gram)).all():
            raise NonFiniteError(f"{self.name} holds NaN or Inf, or numbers over 1e19; check the model on these images")
        self._gram += gram
        self._total += root @ x
        self._count += float(np.square(root, dtype=np.float64).sum())

    def result(self) -> ChannelMoments:
        """The moments of everything seen.

        Raises:
            InputError: nothing was seen.
        """
        if self._pivot is None or self._count == 0:
            raise InputError(f"expected at least one token of {self.name}, found none; give at least one image")
        pivot = self._pivot.astype(np.float64)
        gram = np.triu(self._gram)
        gram += np.triu(self._gram, 1).T
        shift = np.outer(self._total + 0.5 * self._count * pivot, pivot)
        gram += shift + shift.T
        return ChannelMoments(self._count, self._total + self._count * pivot, gram)


class CrossSum:
    """Running `CrossMoments` of a regressor with `n_x` and a target with `n_y` channels."""

    def __init__(self, n_x: int, n_y: int, name: str = "the tensor") -> None:
        self._x = ChannelSum(n_x, name)
        self._y_pivot: np.ndarray | None = None
        self._y_total = np.zeros(n_y)
        self._y_energy = np.zeros(n_y)
        self._cross = np.zeros((n_y, n_x))

    def update(
        self,
        x: Float[np.ndarray, "tokens n"],
        y: Float[np.ndarray, "tokens m"],
        weights: Float[np.ndarray, "tokens"] | None = None,
    ) -> None:
        """Adds one batch; `weights` multiply the squares of the error, so uniform weights change only the count."""
        if len(x) == 0:
            return
        self._x.update(x, weights)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._y_pivot is None:
                self._y_pivot = y.mean(axis=0, dtype=np.float64).astype(np.float32)
            y = _weighted(y - self._y_pivot, weights)
            energy = np.square(y).sum(axis=0, dtype=np.float64)
        if not np.isfinite(energy).all():
            raise NonFiniteError(f"the target of {self._x.name} holds NaN or Inf, or numbers over 1e19")
        self._y_energy += energy
        self._y_total += _root(weights, len(x)) @ y
        self._cross += y.T @ _weighted(x - self._x._pivot, weights)

    def result(self) -> CrossMoments:
        """The moments of everything seen; Raises `InputError` as `ChannelSum.result` does."""
        x = self._x.result()
        assert self._x._pivot is not None
        assert self._y_pivot is not None
        x_pivot, y_pivot = self._x._pivot.astype(np.float64), self._y_pivot.astype(np.float64)
        energy = self._y_energy + y_pivot * (2 * self._y_total + x.count * y_pivot)
        # E-free form of sum y x': x.total already has its pivot back, so only x_pivot is missing beside y_total
        cross = self._cross + np.outer(self._y_total, x_pivot) + np.outer(y_pivot, x.total)
        return CrossMoments(x.count, x.total, x.gram, self._y_total + x.count * y_pivot, energy, cross)


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
        q, k = _heads_first(q), _heads_first(k)  # [h, images, tokens, d]
        n_key_tokens = k.shape[2]
        with np.errstate(over="ignore", invalid="ignore"):
            k_mean = k.mean(axis=2, dtype=np.float64).astype(np.float32)  # [h, images, d]
            k -= k_mean[:, :, None]
            q_gram, k_centred = _pooled_gram(q), _pooled_gram(k)
            k_mean = k_mean.astype(np.float64)
            k_square = np.square(k).sum(axis=2, dtype=np.float64) + n_key_tokens * np.square(k_mean)
            q_square = np.square(q).sum(axis=2, dtype=np.float64)
        if not (np.isfinite(q_gram).all() and np.isfinite(k_centred).all()):
            raise NonFiniteError(f"{self.name} holds NaN or Inf, or numbers over 1e19; check the model on these images")
        self._n_images += q.shape[1]
        self._n_tokens += q.shape[1] * q.shape[2]
        self._n_key_tokens += q.shape[1] * n_key_tokens
        self._q_gram += q_gram
        self._k_centred_gram += k_centred
        self._k_gram += k_centred + n_key_tokens * (k_mean.transpose(0, 2, 1) @ k_mean)
        self._energy += (q_square * k_square).sum(axis=1)

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


Running = ChannelSum | CrossSum | LogitSum


class PooledSum:
    """A running sum that takes several small batches as one: a model of batch 1 gives so few rows that starting a
    product, and adding its n^2 numbers in float64, costs more than the product."""

    def __init__(self, running: Running, enough: int) -> None:
        self._running, self._enough = running, enough
        self._waiting: list[Rows] = []
        self._n_images = 0

    def update(self, n_images: int, *arrays: np.ndarray | None) -> None:
        """As the sum's own `update` of these arrays; they are kept until `enough` images are there."""
        self._waiting.append(arrays)
        self._n_images += n_images
        if self._n_images >= self._enough:
            self._flush()

    def result(self) -> AnyMoments:
        """The moments of everything seen; raises what the sum's own `result` does."""
        self._flush()
        return self._running.result()

    def _flush(self) -> None:
        waiting, self._waiting, self._n_images = self._waiting, [], 0
        if waiting:
            self._running.update(*(_join(parts) for parts in zip(*waiting, strict=True)))


def _join(parts: Rows) -> Any:
    """The same rows in one array; nothing of nothing, which is how weights are left out."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) > 1 else next(iter(known), None)


def _weighted(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    x = np.ascontiguousarray(x, dtype=np.float32)
    return x if weights is None else x * _root(weights, len(x))[:, None]


def _root(weights: np.ndarray | None, n_tokens: int) -> np.ndarray:
    if weights is None:
        return np.ones(n_tokens, dtype=np.float32)
    return np.sqrt(weights, dtype=np.float32)


def _heads_first(x: np.ndarray) -> np.ndarray:
    """A float32 copy [h, images, tokens, d], contiguous so that each head is one BLAS product."""
    return np.array(x.transpose(2, 0, 1, 3), dtype=np.float32, order="C")


def _pooled_gram(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(x.shape[0], -1, x.shape[-1])  # [h, images * tokens, d]
    return flat.transpose(0, 2, 1) @ flat
