"""Arrays in memory -> an `ArraySet`: one array, a mapping by name, or an iterable of either.

Enters what a person holds in Python; leaves the samples as if a .npy or .npz file had held them. Anything that NumPy
makes an array of will do, tensors on a CPU too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx.errors import ImageError
from corp_onnx.images.arrays import LABELS, ArraySet, make_arrays
from corp_onnx.images.batch import PIXELS

IN_MEMORY = Path("arrays in memory")
"""What errors and reports call them."""

IMAGE_AXES = 4
"""Of a batch of images, where no model says how many axes its input has."""


def gather_arrays(source: Any, ranks: Mapping[str, int]) -> ArraySet:
    """The samples of an array, of a mapping of arrays, or of an iterable, which is read once and kept.

    What an iterable yields are batches where their arrays have as many axes as the model's input, and single samples
    where they have one less. Labels of a batch are whole numbers [n], of a sample one. Where no model is known an input
    counts as an image, with 4 axes.

    Args:
        source: an array [n, ...]; a mapping of such by the names of the model's inputs, with `labels` where known; or
            an iterable of arrays, of mappings, or of pairs (array, labels).
        ranks: axes of every input of the model, the batch among them.

    Raises:
        ImageError: nothing that arrays could be made of, or of shapes that do not go together.
    """
    if isinstance(source, Mapping):
        return make_arrays(IN_MEMORY, {str(name): _make_array(value) for name, value in source.items()})
    if not isinstance(source, Iterable) or hasattr(source, "__array__"):
        return make_arrays(IN_MEMORY, {PIXELS: _make_array(source)})
    batches = [_read_item(item, ranks) for item in source]
    if not batches:
        raise ImageError(f"{IN_MEMORY}: the iterable of images yields nothing; a generator can be read only once.")
    if len({frozenset(batch) for batch in batches}) > 1:
        raise ImageError(f"{IN_MEMORY}: some samples have other names than others; expected the same of all.")
    try:
        joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    except ValueError as error:
        shapes = sorted({str(list(array.shape[1:])) for batch in batches for array in batch.values()})
        raise ImageError(
            f"{IN_MEMORY}: samples of different shapes ({', '.join(shapes[:3])}) can not be joined; bring them to the "
            "size of the model's input."
        ) from error
    return make_arrays(IN_MEMORY, joined)


def _make_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # a tensor on another device, a ragged list: each library has its own classes
        text = " ".join(str(error).split())[:160].rstrip(".")
        raise ImageError(f"{IN_MEMORY}: NumPy makes no array of a {type(value).__name__} ({text}).") from error


def _read_item(item: Any, ranks: Mapping[str, int]) -> dict[str, np.ndarray]:
    """One thing that an iterable yields, as a batch of arrays by name."""
    if isinstance(item, Mapping):
        arrays = {str(name): _make_array(value) for name, value in item.items()}
    elif isinstance(item, Sequence) and len(item) == 2 and _make_array(item[1]).dtype.kind in "iu":
        arrays = {PIXELS: _make_array(item[0]), LABELS: _make_array(item[1])}
    else:
        arrays = {PIXELS: _make_array(item)}
    inputs = {name: array for name, array in arrays.items() if name != LABELS}
    wanted = {name: _rank(name, ranks) for name in inputs if name in ranks} or {n: _rank(n, ranks) for n in inputs}
    if all(inputs[name].ndim == rank for name, rank in wanted.items()):
        return {name: array[None] if array.ndim == 0 else array for name, array in arrays.items()}
    if all(inputs[name].ndim == rank - 1 for name, rank in wanted.items()):
        return {name: array.reshape((1, *array.shape)) if name != LABELS else array.reshape(-1)
                for name, array in arrays.items()}  # fmt: skip
    found = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    raise ImageError(
        f"{IN_MEMORY}: expected samples of {', '.join(str(r - 1) for r in wanted.values())} axes or batches of one "
        f"more, and the iterable yields {found}."
    )


def _rank(name: str, ranks: Mapping[str, int]) -> int:
    """Axes of the input that an array is for; the only array goes to the only input whatever its name."""
    if name in ranks:
        return ranks[name]
    return next(iter(ranks.values())) if len(ranks) == 1 else IMAGE_AXES
