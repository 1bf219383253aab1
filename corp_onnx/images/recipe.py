"""The preprocessing recipe: what happens to a photograph between its file and the network's input, as a value.

Enters what a person, a model or a file says; leaves a `Recipe`. What is done with it: crop.py; where one comes from:
preprocessing.py. Three ways to bring a photograph to the size of the input:

    cover      its short side becomes `resize`, then the centre is cropped: torchvision, timm, CLIP, DINOv2
    squash     both sides become `resize`, whatever the ratio, then the centre is cropped: ViT, DeiT, BEiT, SigLIP
    letterbox  its long side becomes `resize`, and what is missing to the size is filled with a colour
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
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
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
BANDS = {"RGB": 3, "L": 1}
MAX_PIXEL = float(np.finfo(np.float32).max)
Fit = Literal["cover", "squash", "letterbox"]
CropRounding = Literal["even", "down"]
LATER = ("fit", "fill", "crop_rounding")
"""Fields that recipes of the first release do not have; they mean the default."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a photograph becomes the network's input. The default is timm's recipe for ImageNet.

    Attributes:
        size: (height, width) of the network's input in pixels.
        resize: the side that `fit` speaks of, in pixels, or (height, width); None derives both from `crop_pct` as
            floor(size / crop_pct).
        crop_pct: share of the resized image that the crop keeps, in (0, 1]; has no effect where `resize` is given.
        interpolation: bicubic, bilinear, nearest, lanczos, box or hamming.
        mean: subtracted from pixels in 0..1, one number a channel.
        std: divides them afterwards, one number a channel.
        channels: 'RGB' or 'L' (greyscale).
        fit: cover, squash or letterbox, as the module says.
        fill: the colour of padding, a number 0..255 for each channel; none is black.
        crop_rounding: of half the difference between image and crop: to even (torchvision), or down (Hugging Face).
    """

    size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = None
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: str = "RGB"
    fit: Fit = "cover"
    fill: tuple[int, ...] = ()
    crop_rounding: CropRounding = "even"

    def __post_init__(self) -> None:
        _check_geometry(self)
        _check_colours(self)

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) that the image is resized to, cover or fit into, before the crop."""
        if self.resize is None:
            return math.floor(self.size[0] / self.crop_pct), math.floor(self.size[1] / self.crop_pct)
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

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
            values: dict[str, Any] = {f.name: stored[f.name] for f in fields(cls) if f.name not in LATER}
            values |= {name: stored[name] for name in LATER if name in stored}
            values |= {k: tuple(values[k]) for k in ("size", "mean", "std", "fill") if k in values}
            values |= {"resize": tuple(values["resize"])} if isinstance(values["resize"], list) else {}
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
    fit: str | None = None,
    fill: Sequence[int] | None = None,
) -> Recipe:
    """The recipe for a network input of (height, width): what is given here, over `base`, over the defaults.

    A `crop_pct` given here replaces a `resize` of the base, since both say how large the image is before the crop.
    Another `fit` than the base's crops nothing, unless one of the two is given with it.

    Raises:
        OptionError: a value out of its range, or `resize` and `crop_pct` together.
    """
    if resize is not None and crop_pct is not None:
        raise OptionError(
            f"resize {resize} and crop fraction {crop_pct} both set the size before the crop: give one of the two."
        )
    start = base if base is not None else default_recipe(size, channels or "RGB")
    given: dict[str, Any] = {"crop_pct": crop_pct, "interpolation": interpolation, "channels": channels}
    given |= {name: None if v is None else tuple(v) for name, v in (("mean", mean), ("std", std), ("fill", fill))}
    given = {k: v for k, v in (given | {"fit": fit}).items() if v is not None}
    if resize is not None or crop_pct is not None:
        given["resize"] = resize
    elif fit is not None and fit != start.fit:
        given |= {"resize": None, "crop_pct": 1.0}
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


def _check_geometry(recipe: Recipe) -> None:
    size = recipe.size
    if len(size) != 2 or any(not _is_count(s) for s in size):
        raise OptionError(f"the input size must be two positive integers (height, width), found {size}.")
    sides = recipe.resize if isinstance(recipe.resize, tuple) else (recipe.resize,) * 2
    if recipe.resize is not None and (len(sides) != 2 or not all(_is_count(side) for side in sides)):
        raise OptionError(f"resize must be a positive number of pixels, found {recipe.resize}.")
    if not _is_number(recipe.crop_pct) or not 0 < recipe.crop_pct <= 1:
        raise OptionError(f"the crop fraction must lie in (0, 1], found {recipe.crop_pct}.")
    if recipe.interpolation not in FILTERS:
        raise OptionError(f"interpolation must be one of {', '.join(FILTERS)}, found '{recipe.interpolation}'.")
    for name, value, known in (("fit", recipe.fit, Fit), ("crop_rounding", recipe.crop_rounding, CropRounding)):
        if value not in get_args(known):
            raise OptionError(f"{name} must be one of {', '.join(get_args(known))}, found '{value}'.")


def _check_colours(recipe: Recipe) -> None:
    if recipe.channels not in BANDS:
        raise OptionError(f"channels must be RGB or L, found '{recipe.channels}'.")
    n_channels = BANDS[recipe.channels]
    for name, values in (("mean", recipe.mean), ("std", recipe.std)):
        if len(values) != n_channels or not all(_is_number(v) and math.isfinite(v) for v in values):
            raise OptionError(f"{name} must be {n_channels} finite numbers for {recipe.channels}, found {values}.")
    if min(recipe.std) <= 0:
        raise OptionError(f"std must be positive, found {recipe.std}.")
    if max(max(abs(m), abs(1 - m)) / s for m, s in zip(recipe.mean, recipe.std, strict=True)) > MAX_PIXEL:
        raise OptionError(f"mean {recipe.mean} and std {recipe.std} make pixels that float32 can not hold.")
    whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in recipe.fill)
    if len(recipe.fill) not in (0, n_channels) or not whole:
        raise OptionError(f"fill must be {n_channels} numbers 0..255 for {recipe.channels}, found {recipe.fill}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reason(error: Exception) -> str:
    text = str(error).rstrip(".")
    return f"{text} is missing" if isinstance(error, KeyError) else text
