"""Inputs to run a model once where nobody gave any: noise of the declared types and shapes, and likely sizes to try.

Enters a `Model`; leaves arrays by input name, and with `run_possible` what the model made of the first that it took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from onnx import TensorProto

from corp_onnx.errors import InputError, ModelError
from corp_onnx.graph.model import Model, input_dims
from corp_onnx.graph.proto import feed_dtype

IMAGE_SIZES = (224, 384, 256, 448, 336, 518, 512, 240, 288, 320, 192, 160, 128, 96, 64)
TOKEN_COUNTS = (16, 77, 64, 128, 197, 257, 512)
"""Tried in turn where a model declares an axis dynamic that its position embedding fixes; optimum exports are such.
No size so small that it is one patch, which any position embedding would broadcast over."""

_Outputs = TypeVar("_Outputs")


def possible_feeds(model: Model, n_images: int) -> Iterator[dict[str, np.ndarray]]:
    """Inputs to run a model once, likely sizes first; just one of them where the sizes are declared.

    Raises:
        InputError: an input is not a tensor of numbers.
    """
    dims = input_dims(model).values()
    if any(len(d) == 4 and None in d[2:] for d in dims):
        yield from (random_feeds(model, n_images, image_size=size) for size in IMAGE_SIZES)
    elif any(len(d) != 4 and None in d[1:] for d in dims):
        yield from (random_feeds(model, n_images, n_tokens=count) for count in TOKEN_COUNTS)
    else:
        yield random_feeds(model, n_images)


def run_possible(
    model: Model, n_images: int, run: Callable[[dict[str, np.ndarray]], _Outputs]
) -> tuple[dict[str, np.ndarray], _Outputs]:
    """(inputs, outputs) of the first run that works; where an axis is dynamic by name only, sizes are tried.

    Raises:
        ModelError: that of the first run, where none works.
    """
    first: ModelError | None = None
    for feeds in possible_feeds(model, n_images):
        try:
            return feeds, run(feeds)
        except ModelError as error:
            first = first or error
    assert first is not None
    raise first


def random_feeds(model: Model, n_images: int, *, image_size: int = 224, n_tokens: int = 16) -> dict[str, np.ndarray]:
    """Inputs of the declared types and shapes to run a model once: noise for images, ones for token ids and masks.

    Args:
        n_images: rows where the batch is dynamic.
        image_size: height and width where they are dynamic.
        n_tokens: sequence length where it is dynamic.

    Raises:
        InputError: an input is not a tensor of numbers.
        MemoryError: so many rows that no memory holds them.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    dims = input_dims(model)
    for value in model.proto.graph.input:
        declared = dims[value.name]
        image, tokens = (n_images, 3, image_size, image_size), (n_images, *[n_tokens] * max(len(declared) - 1, 0))
        shape = tuple(d or size for d, size in zip(declared, image if len(declared) == 4 else tokens, strict=False))
        element = value.type.tensor_type.elem_type
        if element in (TensorProto.UNDEFINED, TensorProto.STRING):
            raise InputError(f"input '{value.name}' is not a tensor of numbers; corp-onnx reads images and token ids.")
        dtype = feed_dtype(element)
        try:
            noise = rng.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
        except ValueError as error:  # more numbers than an address can name
            raise MemoryError from error
        feeds[value.name] = noise.astype(dtype)
    return feeds


def fitting_feeds(model: Model, n_images: int, axes: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The same where the sizes are known: of every input, its axes behind the batch."""
    images = [of for of in axes if len(of) == 3]
    tokens = [of for of in axes if len(of) != 3 and of]
    return random_feeds(
        model, n_images, image_size=images[0][1] if images else 1, n_tokens=tokens[0][0] if tokens else 1
    )


def describe_feeds(feeds: Mapping[str, np.ndarray]) -> str:
    """Names and shapes, for a sentence: `x (2, 3, 224, 224)`."""
    return ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
