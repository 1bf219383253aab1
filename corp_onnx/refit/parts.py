"""The rows that a refit sums: those of a fold's images, every leading token and an even part of the others.

Enters a batch of regressors and streams; leaves `Part`s, at most a batch at a time. Patches of an image are much alike,
and sums over all of them are a quarter of a refit. Which are taken depends on the image's place alone; every position
is taken as often as any other (benchmarks/refit.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.refit.stream import is_by_image
from corp_onnx.refit.token_weights import N_LEADING

N_FOLDS = 4
"""Of the images, to choose the ridge by."""

POOLED = 8
"""Images in a row that go into one fold, whatever the batch."""

ENOUGH_TOKENS, ROWS_A_CHANNEL = 48, 16
"""More rows than this many tokens of an image, and than so many for every channel of the regressor, tell a refit next
to nothing. More images do: the class token, which counts most, gives one row of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of some images: regressor [rows, n], target [rows, m], and weights, where they are not all 1."""

    z: np.ndarray
    target: np.ndarray
    weights: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The real images of a batch at a stop, whose rows are those of the residual stream.

    Attributes:
        z: regressor [rows, n].
        skip, dense: of the pruned model before the addition, of the dense one behind it.
        first: place of its first image among all.
        n_images: with those that only fill it up.
        n_tokens: of an image that are enough, beside the leading ones.
    """

    z: np.ndarray
    skip: np.ndarray
    dense: np.ndarray
    first: int
    n_images: int
    n_tokens: float

    def cut(self, start: int, stop: int, weights: np.ndarray | None, scale: np.ndarray) -> Part:
        """The rows of the images from `start` to `stop`, counted among all.

        Args:
            weights: of the token positions.
            scale: LayerScale's vector, which the target is divided by.
        """
        rows, of_rows = self._choose(start - self.first, stop - self.first, weights)
        n_rows = len(self.z)
        target = self.dense.reshape(n_rows, -1)[rows] - self.skip.reshape(n_rows, -1)[rows]
        target /= scale
        return Part(self.z[rows], target, of_rows)

    def _choose(self, start: int, stop: int, weights: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
        leading = self.skip.shape[:-1]
        n_tokens = self.skip.shape[1]
        stride = choose_stride(leading, self.n_images, self.n_tokens)
        if stride > 1:
            of_tokens = np.ones(n_tokens, np.float32) if weights is None else fit_weights(weights, n_tokens)
            of_tokens[:N_LEADING] /= stride
            tokens = [draw_tokens(n_tokens, stride, self.first + image) for image in range(start, stop)]
            rows = np.concatenate([image * n_tokens + own for image, own in enumerate(tokens, start)])
            return rows, of_tokens[rows % n_tokens]
        of_rows = None if weights is None else np.tile(fit_weights(weights, n_tokens), len(self.z) // n_tokens)
        if stop - start == self.n_images:
            return slice(None), of_rows
        image_idx = find_images(leading, self.n_images)
        rows = np.flatnonzero((image_idx >= start) & (image_idx < stop))
        return rows, None if of_rows is None else of_rows[rows]


def cut_folds(
    n_real: Iterable[int], group: int, n_folds: int = 1, fold: int = 0
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Of every batch with images of a fold: its place, its first image, and from which to which images they are.

    Args:
        n_real: images of every batch.
        group: images in a row that are one fold's; no border between two of them is crossed.
    """
    first = 0
    for batch, n in enumerate(n_real):
        end = first + n
        borders = [first, *range((first // group + 1) * group, end, group), end]
        wanted = [pair for pair in pairwise(borders) if pair[0] // group % n_folds == fold]
        if wanted:
            yield batch, first, wanted
        first = end


def count_tokens(n_images: int, n_channels: int) -> float:
    """Tokens of an image that are enough, of so many images and channels of the regressor."""
    return max(ENOUGH_TOKENS, ROWS_A_CHANNEL * n_channels / n_images)


def choose_stride(leading: tuple[int, ...], n_images: int, n_tokens: float) -> int:
    """Every so many of the tokens behind the leading ones are summed; all where the stream is not [images, tokens, d].

    Args:
        leading: shape of a batch of the stream without its channels.
        n_images: in the batch.
        n_tokens: that are enough.
    """
    if not is_by_image(leading, n_images):
        return 1
    return max(1, int((leading[1] - N_LEADING) / n_tokens))


def draw_tokens(n_tokens: int, stride: int, image: int) -> Int[np.ndarray, " n"]:
    """The leading ones, and of the others those on the image's turn: each is drawn by one image of `stride`."""
    return np.concatenate([np.arange(N_LEADING), np.arange(N_LEADING + image % stride, n_tokens, stride)])


def fold_group(n_images: int) -> int:
    """Images in a row that go into one fold: at least one group for every fold, where there are enough."""
    return max(1, min(POOLED, n_images // N_FOLDS))


def find_images(leading: tuple[int, ...], n_images: int) -> Int[np.ndarray, " rows"]:
    """The image that each row of a stream belongs to, counted in its batch.

    Args:
        leading: shape of the stream without its channels.
        n_images: in the batch, filled up or not. Where neither of the first axes can be theirs, all rows are the
            first's.
    """
    n_rows = math.prod(leading)
    if leading[0] % n_images == 0:  # windows and heads are folded behind their image
        return np.repeat(np.arange(n_images), n_rows // n_images)
    if len(leading) == 2 and leading[1] == n_images:
        return np.tile(np.arange(n_images), leading[0])
    return np.zeros(n_rows, dtype=np.int64)


def fit_weights(weights: Float[np.ndarray, " n"], n_tokens: int) -> Float[np.ndarray, " n_tokens"]:
    """Weights for another number of tokens: the leading positions, which differ, keep theirs."""
    return np.concatenate([weights[:n_tokens], np.ones(max(0, n_tokens - len(weights)), weights.dtype)])
