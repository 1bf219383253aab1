"""What an output is: classes, an embedding, a map, or numbers. It decides how two answers are compared.

    classify   [n, classes], or classes for every token [n, tokens, classes]
    embed      [n, d], or a vector for every token or pixel [n, tokens, d], [n, d, h, w]
    dense      a map: classes for every pixel [n, classes, h, w], or one number for each [n, 1, h, w], [n, h, w]
    regress    any other numbers

The first answer of an embedding is its largest coordinate, which pruning seldom changes: to count how often it stays
promises nothing. So whatever may be an embedding is compared as one, and a person says `--task classify` where the
numbers are classes after all. Enters an output's name, its values on a few images and what the file says of itself;
leaves an `OutputTask` with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from corp_onnx.errors import OptionError

Task = Literal["classify", "embed", "dense", "regress"]
TASKS: tuple[Task, ...] = ("classify", "embed", "dense", "regress")

WORDS: tuple[tuple[Task, tuple[str, ...]], ...] = (
    ("embed", ("embed", "feature", "hidden", "pool", "repr")),
    ("dense", ("mask", "heatmap", "saliency", "segm", "depth", "alpha", "matte")),
    ("regress", ("box", "coord", "keypoint", "landmark")),
    ("classify", ("logit", "class", "prob", "score", "label", "softmax")),
)
"""What names of outputs hold, as exporters and people write them; the first that fits counts ("class_embedding")."""

EMBEDDING_STEP = 32
"""Embeddings are nearly always this many numbers or a multiple; numbers of classes seldom are."""

TOLERANCE = 1e-3
"""How far a sum of probabilities or a length may be from 1: float16 has a rounding of 1e-3."""

GUESSES = (
    "nothing says that its numbers are classes; --task classify would",
    "the same number is the largest on every image looked at; --task classify would count it",
)
"""Why an output is taken for an embedding that may be classes: labels for it would say so."""

SMALL_MAP = 4
"""Pixels a side: fewer are no map."""


@dataclass(frozen=True, slots=True)
class OutputTask:
    """How an output is compared.

    Attributes:
        output: its name.
        task: what it is.
        why: what says so.
        shape: of one image's part, as it was seen.
        is_probability: whether its channels are probabilities already.
        channel_axis: of the numbers that belong together, counting images as axis 0; None where there is but one.
        is_guess: whether it is taken for an embedding only because nothing says that its numbers are classes.
    """

    output: str
    task: Task
    why: str
    shape: tuple[int, ...]
    is_probability: bool = False
    channel_axis: int | None = None
    is_guess: bool = False

    @property
    def is_classes(self) -> bool:
        """Whether it answers with classes, so that answers can be counted."""
        return self.task == "classify" or (self.task == "dense" and self.n_channels > 1)

    @property
    def n_classes(self) -> int | None:
        """Classes that there would be, if an image has one answer; None where it has several, or none."""
        return self.n_channels if len(self.shape) == 1 and self.n_channels > 1 else None

    @property
    def n_channels(self) -> int:
        """Classes, or the length of a vector."""
        return 1 if self.channel_axis is None else self.shape[self.channel_axis - 1]

    def rows(self, values: Float64[np.ndarray, "n ..."]) -> Float64[np.ndarray, "n positions channels"]:
        """The output as vectors at positions: one of them, or those of tokens or pixels."""
        if self.channel_axis is None:
            return values.reshape(len(values), -1, 1)
        moved = np.moveaxis(values, self.channel_axis, -1)
        return moved.reshape(len(values), -1, moved.shape[-1])

    def describe(self) -> str:
        """One line for a person."""
        kinds = {
            "classify": f"{self.n_channels} classes",
            "embed": f"an embedding of {self.n_channels} numbers",
            "dense": "a map" if self.n_channels == 1 else f"a map of {self.n_channels} classes",
            "regress": "numbers",
        }
        where = " for every token" if self.task in ("classify", "embed") and len(self.shape) == 2 else ""
        return f"output '{self.output}' is taken for {kinds[self.task]}{where} ({self.why})."


def find_task(
    output: str, values: Float64[np.ndarray, "n ..."], *, n_labels: int | None = None, given: Task | None = None,
    image_size: Sequence[int] = (),
) -> OutputTask:  # fmt: skip
    """What an output is.

    Args:
        values: what it gives for a few images; real ones, where its numbers are to be looked at.
        n_labels: class names that the file carries.
        given: what a person says.
        image_size: (height, width) of the input, where it has them.

    Raises:
        OptionError: it can not be what a person says.
    """
    shape = values.shape[1:]
    if given is not None:
        return _follow(output, shape, given, _is_probability(values, _guess_axis(shape, image_size)), image_size)
    if values.ndim == 1 or values.size == len(values):
        return OutputTask(output, "regress", "one number an image", shape)
    axis = _guess_axis(shape, image_size)
    if values.ndim == 3 and _read_name(output) == "dense":
        return OutputTask(output, "dense", "its name", shape)
    if axis is None:
        return OutputTask(output, "dense", "one number at every place", shape)
    probable = _is_probability(values, axis)
    task, why = _look(output, values, axis, n_labels, probable)
    return OutputTask(output, task, why, shape, probable and task in ("classify", "dense"), axis, why in GUESSES)


def _look(
    output: str, values: Float64[np.ndarray, "n ..."], axis: int, n_labels: int | None, probable: bool
) -> tuple[Task, str]:
    """(task, reason) of an output with channels."""
    n_channels, is_map = values.shape[axis], values.ndim == 4
    classes: Task = "dense" if is_map else "classify"
    if n_labels == n_channels:
        return classes, f"the model names {n_labels} classes"
    if probable:
        return classes, "its numbers are probabilities"
    lengths = np.linalg.norm(values, axis=axis)
    if n_channels > 2 and np.abs(lengths - 1).max() < TOLERANCE:
        return "embed", "its vectors have length 1"
    named = _read_name(output)
    if named in ("classify", "dense"):
        return classes, "its name"
    if named is not None:
        return named, "its name"
    if values.ndim == 3 or n_channels % EMBEDDING_STEP == 0:
        return "embed", GUESSES[0]
    if values.ndim == 2 and n_channels > 2 and _answers_alike(values):
        return "embed", GUESSES[1]
    return classes, f"{n_channels} numbers, which is no usual length of an embedding"


def _read_name(output: str) -> Task | None:
    """What a name says, or nothing."""
    lowered = output.lower()
    return next((task for task, words in WORDS if any(word in lowered for word in words)), None)


def _guess_axis(shape: Sequence[int], image_size: Sequence[int]) -> int | None:
    """The axis of the channels, counting images as axis 0; None where every position has one number."""
    if len(shape) == 1:
        return 1 if shape[0] > 1 else None
    if len(shape) == 2:
        return None if tuple(shape) == tuple(image_size) or shape[1] == 1 else 2
    if len(shape) == 3 and shape[0] > 1 and min(shape[1:]) >= SMALL_MAP:
        return 1
    if len(shape) == 3 and shape[2] > 1 and min(shape[:2]) >= SMALL_MAP and shape[0] > 1:
        return 3
    return None if 1 in shape else len(shape)


def _is_probability(values: Float64[np.ndarray, "n ..."], axis: int | None) -> bool:
    """Whether channels are at least 0 and add up to 1."""
    if axis is None or values.min(initial=0.0) < 0:
        return False
    return bool(np.abs(values.sum(axis=axis) - 1).max() < TOLERANCE)


def _answers_alike(values: Float64[np.ndarray, "n d"]) -> bool:
    """Whether eight images or more have the same largest coordinate, as an embedding's outlying one is."""
    return len(values) >= 8 and len(np.unique(values.argmax(axis=1))) == 1


def _follow(output: str, shape: tuple[int, ...], given: Task, probable: bool, image_size: Sequence[int]) -> OutputTask:
    """What a person says, where it can be."""
    axis = _guess_axis(shape, image_size)
    n_channels = 1 if axis is None else shape[axis - 1]
    if given in ("classify", "embed") and n_channels < 2:
        raise OptionError(
            f"--task {given}: output '{output}' has shape {['n', *shape]}, one number at every place; expected several "
            "that belong together. Give --task dense or regress."
        )
    if given == "dense" and len(shape) < 2:
        raise OptionError(
            f"--task dense: output '{output}' has shape {['n', *shape]}; expected a map [n, h, w] or "
            "[n, channels, h, w]."
        )
    if given == "dense" and len(shape) == 2:
        axis = None  # [n, h, w]: one number at every place, whatever its size
    is_classes = given in ("classify", "dense") and axis is not None
    return OutputTask(output, given, "--task", shape, probable and is_classes, axis)
