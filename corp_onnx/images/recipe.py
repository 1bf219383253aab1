"""The preprocessing recipe: what happens to a photograph between its file and the network's input.

Enters a decoded Pillow image; leaves the uint8 crop and, for a stack of crops, the float32 pixels

    x = (crop / 255 - mean) / std        [n, c, h, w]

The geometry is torchvision's Resize(short side) + CenterCrop on Pillow images, as timm's evaluation transform composes
them, so a model sees the pixels that it was trained for (bit-equal to timm 1.0.31 with torchvision 0.28 on 400 random
sizes and recipes). One deviation, and two habits of timm that surprise:

* 16-bit greyscale files are scaled to 8 bits; Pillow's own conversion, which timm calls, clips them to white.
* The EXIF orientation is not applied.
* An alpha channel is dropped, so what a transparent pixel hides becomes visible.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from corp_onnx.errors import ModelError, OptionError
from corp_onnx.results import read_json

METADATA_KEY = "corp_onnx.preprocessing"
"""Where an ONNX file keeps its recipe."""

SCHEMA = 1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
"""The averages of the ImageNet figures over the colours, for a network with one input channel."""

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
BANDS = {"RGB": 3, "L": 1}
MAX_RESIZED_PIXELS = 2**27
"""A 1 x 100000 image resized by its short side would take gigabytes; beyond this many pixels it is refused."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a photograph becomes the network's input. The default is timm's recipe for ImageNet.

    Attributes:
        size: (height, width) of the network's input in pixels.
        resize: short side after resizing, in pixels; None derives it from `crop_pct` as floor(size / crop_pct).
        crop_pct: share of the resized image that the crop keeps, in (0, 1]; has no effect where `resize` is given.
        interpolation: bicubic, bilinear, nearest or lanczos.
        mean: subtracted from pixels in 0..1, one number a channel.
        std: divides them afterwards, one number a channel.
        channels: 'RGB' or 'L' (greyscale).
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = None
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "RGB"

    def __post_init__(self) -> None:
        _check_geometry(self)
        _check_colours(self)

    def to_json(self) -> str:
        """One line of JSON, schema 1: what stands in the ONNX file under `corp_onnx.preprocessing`."""
        return json.dumps({"schema": SCHEMA} | {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            ModelError: not JSON, of another schema, or with keys or values that make no recipe.
        """
        try:
            stored = read_json(text)
            if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
                raise OptionError(f"expected an object with schema {SCHEMA}")
            values: dict[str, Any] = {f.name: stored[f.name] for f in fields(cls)}
            values |= {k: tuple(values[k]) for k in ("size", "mean", "std")}
            return cls(**values)
        except (ValueError, TypeError, KeyError, OverflowError, OptionError) as error:
            raise ModelError(
                f"the preprocessing recipe in the model's metadata ({METADATA_KEY}) can not be read: {_reason(error)}. "
                f"Found {text[:80]!r}; remove the entry or give the recipe by options."
            ) from error


def make_recipe(
    size: tuple[int, int],
    *,
    base: Recipe | None = None,
    resize: int | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: str | None = None,
) -> Recipe:
    """The recipe for a network input of (height, width): what is given here, over `base`, over the defaults.

    A `crop_pct` given here replaces a `resize` of the base, since both say how large the image is before the crop.

    Raises:
        OptionError: a value out of its range, or `resize` and `crop_pct` together.
    """
    if resize is not None and crop_pct is not None:
        raise OptionError(
            f"resize {resize} and crop fraction {crop_pct} both set the size before the crop: give one of the two."
        )
    start = base if base is not None else default_recipe(size, channels or "RGB")
    given: dict[str, Any] = {"crop_pct": crop_pct, "interpolation": interpolation, "channels": channels}
    given |= {"mean": None if mean is None else tuple(mean), "std": None if std is None else tuple(std)}
    given = {k: v for k, v in given.items() if v is not None}
    if resize is not None or crop_pct is not None:
        given["resize"] = resize
    return replace(start, size=size, **given)


def default_recipe(size: tuple[int, int], channels: str = "RGB") -> Recipe:
    """timm's ImageNet recipe for an input of (height, width); for 'L' with the mean and std averaged over colours.

    Raises:
        OptionError: a size or channels out of range.
    """
    grey = channels == "L"
    mean, std = (GREY_MEAN, GREY_STD) if grey else (IMAGENET_MEAN, IMAGENET_STD)
    return Recipe(size=size, mean=mean, std=std, channels=channels)


def find_recipe(metadata: Mapping[str, str], shape: Sequence[int | str | None]) -> Recipe:
    """The recipe of a model: the one in its metadata, else the default for its input of shape [n, c, h, w].

    Args:
        metadata: the ONNX file's metadata properties.
        shape: of the image input; an axis of unknown length is anything but an int (height and width then count 224).

    Raises:
        ModelError: the metadata holds a broken recipe, or the input is not an image [n, 1 or 3, h, w].
    """
    if METADATA_KEY in metadata:
        return Recipe.from_json(metadata[METADATA_KEY])
    axes = [axis if isinstance(axis, int) and axis > 0 else None for axis in shape]
    if len(axes) != 4 or axes[1] not in (None, 1, 3):
        raise ModelError(
            f"the model's input has shape {list(shape)}, and images go into [n, 1 or 3, height, width] only: "
            "give preprocessed arrays as .npy or .npz instead of a folder."
        )
    return default_recipe((axes[2] or 224, axes[3] or 224), "L" if axes[1] == 1 else "RGB")


def crop_image(image: Image.Image, recipe: Recipe) -> UInt8[np.ndarray, "h w c"]:
    """The resized and centre-cropped image, padded with black where it is smaller than the crop.

    Raises:
        OSError, ValueError: Pillow can not decode or convert it, or resizing would take too much memory.
    """
    image = _to_eight_bits(image).convert(recipe.channels)
    width, height = _resized_size(image.width, image.height, recipe)
    if width < 1 or height < 1 or width * height > MAX_RESIZED_PIXELS:
        raise ValueError(f"too elongated: {image.width} x {image.height} would be resized to {width} x {height}")
    if (width, height) != image.size:
        image = image.resize((width, height), FILTERS[recipe.interpolation])
    crop_height, crop_width = recipe.size
    # torchvision pads first, the odd pixel right and below, and then crops what is still larger
    left = -((crop_width - width) // 2) if crop_width > width else round((width - crop_width) / 2.0)
    top = -((crop_height - height) // 2) if crop_height > height else round((height - crop_height) / 2.0)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(image, dtype=np.uint8).reshape(crop_height, crop_width, BANDS[recipe.channels])


def normalize_crops(crops: UInt8[np.ndarray, "n h w c"], recipe: Recipe) -> Float32[np.ndarray, "n c h w"]:
    """The network's input, (crop / 255 - mean) / std in float32: torchvision's ToTensor and Normalize."""
    pixels = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)  # [n, c, h, w]
    pixels /= np.float32(255)
    pixels -= np.asarray(recipe.mean, dtype=np.float32)[:, None, None]
    pixels /= np.asarray(recipe.std, dtype=np.float32)[:, None, None]
    return pixels


def _resized_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """(width, height) before the crop."""
    goal_height, goal_width = (
        (recipe.resize, recipe.resize)
        if recipe.resize is not None
        else (math.floor(recipe.size[0] / recipe.crop_pct), math.floor(recipe.size[1] / recipe.crop_pct))
    )
    if goal_height == goal_width:  # torchvision: the long side is cut down to an integer, not rounded
        if width <= height:
            return goal_width, int(goal_width * height / width)
        return int(goal_height * width / height), goal_height
    ratio = min(height / goal_height, width / goal_width)  # timm's ResizeKeepRatio: cover both sides, rounded
    return round(width / ratio), round(height / ratio)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and its byte orders; I is how older Pillow opens a 16-bit PNG
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    return image


def _check_geometry(recipe: Recipe) -> None:
    size = recipe.size
    if len(size) != 2 or any(not _is_count(s) for s in size):
        raise OptionError(f"the input size must be two positive integers (height, width), found {size}.")
    if recipe.resize is not None and not _is_count(recipe.resize):
        raise OptionError(f"resize must be a positive number of pixels, found {recipe.resize}.")
    if not _is_number(recipe.crop_pct) or not 0 < recipe.crop_pct <= 1:
        raise OptionError(f"the crop fraction must lie in (0, 1], found {recipe.crop_pct}.")
    if recipe.interpolation not in FILTERS:
        raise OptionError(f"interpolation must be one of {', '.join(FILTERS)}, found '{recipe.interpolation}'.")


def _check_colours(recipe: Recipe) -> None:
    if recipe.channels not in BANDS:
        raise OptionError(f"channels must be RGB or L, found '{recipe.channels}'.")
    n_channels = BANDS[recipe.channels]
    for name, values in (("mean", recipe.mean), ("std", recipe.std)):
        if len(values) != n_channels or not all(_is_number(v) and math.isfinite(v) for v in values):
            raise OptionError(f"{name} must be {n_channels} finite numbers for {recipe.channels}, found {values}.")
    if min(recipe.std) <= 0:
        raise OptionError(f"std must be positive, found {recipe.std}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reason(error: Exception) -> str:
    text = str(error).rstrip(".")
    return f"{text} is missing" if isinstance(error, KeyError) else text
