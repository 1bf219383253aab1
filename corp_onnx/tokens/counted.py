"""An axis that counts tokens, as a value; where it stands in another shape of the same numbers; what a reduction folds.

Shared by the rules that go from an output to the inputs (axis.py) and from the inputs to an output (forward.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from corp_onnx.graph import Graph, Node


class BlockedError(Exception):
    """An operator does with tokens what no rule follows; caught in this room."""


@dataclass(frozen=True, slots=True)
class TokenAxis:
    """An axis that counts tokens: entry i holds token (i // inner) % n_tokens; longer where images are folded in."""

    axis: int
    n_tokens: int
    inner: int = 1

    def is_plain(self, shape: tuple[int, ...]) -> bool:
        """Whether the axis of a tensor of this shape holds every token once and nothing else."""
        return shape[self.axis] == self.n_tokens


Axis = TypeVar("Axis", bound=TokenAxis)


@dataclass(frozen=True, slots=True)
class Tokens(TokenAxis):
    """A token axis on its way forward: its first token is `start`.

    Attributes:
        weighed: whether the numbers along it are weights of tokens that sum to one.
    """

    start: int = 0
    weighed: bool = False

    def at(self, axis: int) -> Tokens:
        """The same tokens along another axis, no longer as weights."""
        return replace(self, axis=axis, weighed=False)

    def matches(self, other: Tokens) -> bool:
        """Whether both count the same tokens in the same way."""
        return (self.n_tokens, self.inner, self.start) == (other.n_tokens, other.inner, other.start)


def relabel(tokens: Axis, dims: tuple[int, ...], out: tuple[int, ...]) -> Axis:
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


def reduced_axes(graph: Graph, node: Node) -> set[int] | None:
    """The axes that a reduction folds, named by an attribute or an input; None where it folds all of them."""
    named = node.attrs.get("axes")
    if named is None:
        named = next((graph.value(name) for name in node.inputs[1:2] if name), None)
    return None if named is None else {int(a) % len(graph.dims(node.inputs[0])) for a in np.asarray(named).reshape(-1)}
