"""What models say of the first real batch, asked once for all checks that compare it.

Enters models and a batch; leaves their outputs as copies: what ONNX Runtime gives keeps all the memory of its session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float64

from corp_onnx.graph import Model, batch_kind
from corp_onnx.images import Images
from corp_onnx.run.comparison import join_outputs, run_outputs
from corp_onnx.run.tapped import open_tapped

T = TypeVar("T")


class Once(Generic[T]):
    """What a function gives, for whoever asks first and for all others; one that raises is asked again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._made, self._lock = make, list[T](), Lock()

    def __call__(self) -> T:
        """That, made now if nobody has asked before."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


def answer_first(
    model: Model, images: Images, n_images: int, provider: str = "cpu"
) -> tuple[dict[str, np.ndarray], Float64[np.ndarray, " n"]]:
    """The first images as a model takes them, and every output for them in one row."""
    tapped = open_tapped(model, [], provider=provider)
    feeds, _ = next(tapped.session.stream(images, n_images))
    return feeds, join_outputs(tapped.run(feeds))


@dataclass(frozen=True, slots=True, eq=False)
class PrunedAnswers:
    """What a finished model says of a batch.

    Attributes:
        feeds: the batch, of two rows at least where the model takes any number.
        outputs: for it, by name.
        choices: integer tensors of the graph that rounding may turn (`Pass.choices`), as it made them.
        ask_alone: gives the outputs for the first row alone, with the same choices.
    """

    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    choices: Mapping[str, np.ndarray]
    ask_alone: Callable[[], Mapping[str, np.ndarray]]


def answer_pruned(
    pruned: Model, feeds: Mapping[str, np.ndarray], choices: Sequence[str] = (), provider: str = "cpu"
) -> PrunedAnswers:
    """All that checks ask a finished model for: of one session, where it makes no choices.

    Args:
        choices: integer tensors of the graph that rounding may turn.
    """
    if batch_kind(pruned) is None and len(next(iter(feeds.values()))) < 2:
        feeds = {k: _double(v) for k, v in feeds.items()}
    tapped = open_tapped(pruned, choices, provider=provider)
    outputs = {name: array.copy() for name, array in tapped.run(feeds).items()}
    made = {name: outputs.pop(name).astype(np.int64) for name in choices}
    single, own = {k: v[:1] for k, v in feeds.items()}, {name: array[:1] for name, array in made.items()}
    if made:
        return PrunedAnswers(feeds, outputs, made, lambda: run_outputs(pruned, single, provider, own))
    return PrunedAnswers(feeds, outputs, made, lambda: tapped.run(single))


def _double(array: np.ndarray) -> np.ndarray:
    """Two rows of one, the second shifted, so that it is another image with the same numbers."""
    return np.concatenate([array, np.roll(array, 1, axis=-1)])
