"""How a batch of samples meets the inputs of a model.

Enters what a source of data yields (pixels of photographs, or named arrays) and what a session declares; leaves the
mapping input name -> array that ONNX Runtime takes, of the declared element types and number of samples. This is the
only place where data and models are joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from corp_onnx.errors import ImageError, ModelError
from corp_onnx.images.batch import Batch

ELEMENT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's name of an input's type, and NumPy's."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One declared input of a model; an axis of unknown length is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def list_inputs(declared: Sequence[Any]) -> tuple[ModelInput, ...]:
    """The inputs that ONNX Runtime's session declares, in its order.

    Raises:
        ModelError: an input is not a tensor of numbers.
    """
    inputs: list[ModelInput] = []
    for value in declared:
        if value.type not in ELEMENT_TYPES:
            raise ModelError(f"input '{value.name}' has type {value.type}, expected a tensor of numbers.")
        shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in value.shape)
        inputs.append(ModelInput(value.name, shape, np.dtype(ELEMENT_TYPES[value.type])))
    return tuple(inputs)


def fixed_batch(inputs: Sequence[ModelInput]) -> int | None:
    """The number of samples that a model takes at once, or None where any number goes."""
    sizes = [i.shape[0] for i in inputs if i.shape]
    return next((size for size in sizes if size is not None), None)


def bind_feeds(batch: Batch, inputs: Sequence[ModelInput]) -> dict[str, np.ndarray]:
    """The arrays of a batch under a model's input names, in the model's element types.

    A model with one input takes the only array of a batch whatever its name; otherwise names must match, and arrays
    that no input asks for are left out. Floating-point arrays become the input's floating-point type, integers its
    integer type; never one the other.

    Raises:
        ImageError: an input has no array, or its array has another kind of numbers, shape or range.
    """
    arrays = dict(batch.arrays)
    if len(inputs) == 1 and len(arrays) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    missing = [i.name for i in inputs if i.name not in arrays]
    if missing:
        raise ImageError(
            f"the model's inputs are {', '.join(i.name for i in inputs)} and the data holds {', '.join(arrays)}: "
            f"nothing for {', '.join(missing)}. Give an .npz file with one array under each input's name."
        )
    return {i.name: _fit_array(arrays[i.name], i) for i in inputs}


def split_feeds(feeds: Mapping[str, np.ndarray], size: int | None) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Cut feeds into the number of samples that a model takes at once (None: any).

    Yields:
        (feeds of exactly `size` samples, how many of them are real): the last piece is filled up with its last sample.
    """
    n_samples = len(next(iter(feeds.values())))
    step = size or n_samples
    for start in range(0, n_samples, step):
        part = {name: array[start : start + step] for name, array in feeds.items()}
        n_real = min(step, n_samples - start)
        if n_real < step:
            part = {k: np.concatenate([a, np.repeat(a[-1:], step - n_real, axis=0)]) for k, a in part.items()}
        yield part, n_real


def _fit_array(array: np.ndarray, goal: ModelInput) -> np.ndarray:
    shapes = zip(array.shape[1:], goal.shape[1:], strict=False)
    if array.ndim != len(goal.shape) or any(want not in (None, have) for have, want in shapes):
        wanted = ", ".join("any" if axis is None else str(axis) for axis in ("n", *goal.shape[1:]))
        raise ImageError(f"input '{goal.name}' takes shape [{wanted}], and its array has {list(array.shape)}.")
    if (array.dtype.kind == "f") != (goal.dtype.kind == "f"):
        raise ImageError(
            f"input '{goal.name}' takes {goal.dtype} and its array is {array.dtype}: give arrays that are preprocessed "
            "already, in the input's own kind of numbers."
        )
    fitted = array.astype(goal.dtype, copy=False)
    if goal.dtype.kind != "f" and not np.array_equal(fitted, array):
        raise ImageError(
            f"input '{goal.name}' takes {goal.dtype}, and its {array.dtype} array does not fit that range."
        )
    return fitted
