"""An axis that counts tokens, as a value, and where it stands in another shape of the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


class BlockedError(Exception):
    """What a node does with tokens is not known to be right after merging; caught by flow.py."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """An axis that counts tokens: entry i holds token `start` + (i // inner) % n_tokens.

    Attributes:
        weighed: whether the numbers along it are weights of tokens that sum to one.
    """

    axis: int
    n_tokens: int
    inner: int = 1
    start: int = 0
    weighed: bool = False

    def is_plain(self, shape: tuple[int, ...]) -> bool:
        """Whether the axis of a tensor of this shape holds every token once and nothing else."""
        return shape[self.axis] == self.n_tokens

    def at(self, axis: int) -> Tokens:
        """The same tokens along another axis, no longer as weights."""
        return replace(self, axis=axis, weighed=False)

    def matches(self, other: Tokens) -> bool:
        """Whether both count the same tokens in the same way."""
        return (self.n_tokens, self.inner, self.start) == (other.n_tokens, other.inner, other.start)


def relabel(tokens: Tokens, dims: tuple[int, ...], out: tuple[int, ...]) -> Tokens:
    """The tokens of a tensor in another shape: every number is labelled with its token, and the labels are read.

    Raises:
        BlockedError: no axis of the other shape counts them.
    """
    along = np.arange(dims[tokens.axis]) // tokens.inner % tokens.n_tokens
    label = np.broadcast_to(along.reshape(-1, *[1] * (len(dims) - tokens.axis - 1)), dims).reshape(out)
    varying = [axis for axis in range(len(out)) if np.any(np.diff(label, axis=axis))]
    if len(varying) != 1:
        raise BlockedError("it mixes tokens with something else in one axis")
    row = label[tuple(slice(None) if a == varying[0] else 0 for a in range(len(out)))]
    inner = int(np.argmax(row != row[0]))
    if not np.array_equal(row, np.arange(len(row)) // inner % tokens.n_tokens):
        raise BlockedError("it reorders tokens")
    return replace(tokens, axis=varying[0], inner=inner)
