"""Preprocessing as other tools write it down: a JSON file -> a `Recipe`.

Enters the text of a `preprocessor_config.json` (Hugging Face, with the keys of its image processors and of the older
feature extractors), of a `config.json` of timm, or of our own recipe; leaves the recipe that gives the same pixels, or
a sentence about the first key that no recipe can say. Nothing is guessed: a key that decides about pixels and is
missing is an error.

Hugging Face scales and shifts in steps, x = ((f crop - o) - mean) / std; a recipe has one step on crop / 255, so

    mean' = (mean + o) / (255 f),    std' = std / (255 f)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images.recipe import Fit, Recipe
from corp_onnx.images.regular import read_text
from corp_onnx.results import read_json

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers."""

SHORT_SIDE = ("CLIP", "ChineseCLIP", "Bit", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "PoolFormer")
"""Kinds whose `size`, where it is one number, is the short side; that of the others below is both sides."""

BOTH_SIDES = ("ViT", "DeiT", "Beit", "Siglip", "EfficientNet")

CONVNEXT_SQUASHES = 384
"""From this size on its processor crops nothing and keeps no ratio."""

TIMM_FITS: dict[str, Fit] = {"center": "cover", "squash": "squash", "border": "letterbox"}
TIMM_CROP_PCT = 0.875
"""What timm takes where a configuration does not say."""


def read_preprocessor(path: Path) -> Recipe:
    """The recipe that a file says.

    Raises:
        ImageError: the file can not be read, is no JSON, or says nothing that a recipe could be made of.
    """
    try:
        stored = read_json(read_text(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a JSON text"
        raise ImageError(f"{path}: the preprocessor file can not be read ({reason}).") from error
    try:
        if isinstance(stored, dict) and is_preprocessor(stored):
            return parse_preprocessor(stored)
        raise OptionError("it has neither image_mean (Hugging Face) nor pretrained_cfg (timm) nor a schema (ours)")
    except (OptionError, ModelError, TypeError, ValueError, KeyError, OverflowError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ImageError(
            f"{path}: no preprocessing can be read from it: {text}. Expected the preprocessor_config.json of a Hugging "
            "Face image processor or timm's config.json; --resize, --mean and the like say it too."
        ) from error


def is_preprocessor(stored: Mapping[str, Any]) -> bool:
    """Whether a JSON object says how images are prepared, and is not some other configuration."""
    nested = stored.get("image_processor"), stored.get("pretrained_cfg")
    has_processor = any(key in stored for key in ("image_mean", "image_processor_type", "feature_extractor_type"))
    ours = stored.get("schema") == 1 and "interpolation" in stored
    return has_processor or ours or any(isinstance(n, dict) for n in nested) or {"mean", "input_size"} <= set(stored)


def parse_preprocessor(stored: Mapping[str, Any]) -> Recipe:
    """The recipe of a JSON object for which `is_preprocessor` holds.

    Raises:
        OptionError, TypeError, ValueError, KeyError: a value that is no recipe's, or is missing.
    """
    if stored.get("schema") == 1:
        return Recipe.from_json(json.dumps(stored))
    if isinstance(stored.get("image_processor"), dict):
        return parse_processor(stored["image_processor"])
    timm = stored.get("pretrained_cfg", stored)
    return parse_timm(timm) if "input_size" in timm and "image_mean" not in stored else parse_processor(stored)


def parse_timm(stored: Mapping[str, Any]) -> Recipe:
    """The recipe of timm's `pretrained_cfg`, and of what its `resolve_data_config` gives."""
    n_channels, height, width = stored["input_size"]
    mode = stored.get("crop_mode") or "center"
    if mode not in TIMM_FITS:
        raise OptionError(f"crop_mode must be one of {', '.join(TIMM_FITS)}, found '{mode}'")
    mean = tuple(map(float, stored["mean"]))
    return Recipe(
        size=(height, width), crop_pct=float(stored.get("crop_pct") or TIMM_CROP_PCT),
        interpolation=stored["interpolation"], mean=mean, std=tuple(map(float, stored["std"])),
        channels=_name_channels(n_channels), fit=TIMM_FITS[mode],
        fill=tuple(round(255 * m) for m in mean) if mode == "border" else (),
    )  # fmt: skip


def parse_processor(stored: Mapping[str, Any]) -> Recipe:
    """The recipe of a Hugging Face image processor."""
    kind = _read_kind(stored)
    for key, wanted in (("do_resize", True), ("do_pad", False), ("do_flip_channel_order", False)):
        if bool(stored.get(key, wanted)) != wanted:
            raise OptionError(f"{key} is {str(not wanted).lower()}, which no recipe can say")
    mean, std = _read_colours(stored, kind)
    size, resize, fit = _read_geometry(stored, kind)
    if stored.get("resample") not in RESAMPLE:
        raise OptionError(f"resample must be a number 0 to 5 of Pillow's filters, found {stored.get('resample')}")
    return Recipe(
        size=size, resize=resize, crop_pct=1.0, interpolation=RESAMPLE[stored["resample"]], mean=mean, std=std,
        channels=_name_channels(len(mean)), fit=fit, crop_rounding="down",
    )  # fmt: skip


def _read_kind(stored: Mapping[str, Any]) -> str:
    """`ViT` of `ViTImageProcessorFast`, `CLIP` of `CLIPFeatureExtractor`; empty where it is not said."""
    name = str(stored.get("image_processor_type") or stored.get("feature_extractor_type") or "")
    return name.split("ImageProcessor")[0].split("FeatureExtractor")[0]


def _read_colours(stored: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of crop / 255, all steps together."""
    factor = float(stored.get("rescale_factor", 1 / 255)) if stored.get("do_rescale", True) else 1.0
    if not (math.isfinite(factor) and factor > 0):
        raise OptionError(f"rescale_factor must be positive, found {factor}")
    offset = 1.0 if stored.get("rescale_offset") else 0.0
    normalizes, again = bool(stored.get("do_normalize", True)), bool(stored.get("include_top", kind == "EfficientNet"))
    given = _list_numbers(stored["image_std"]) if normalizes or again else (1.0, 1.0, 1.0)
    mean = _list_numbers(stored["image_mean"]) if normalizes else (0.0,) * len(given)
    std = [(s if normalizes else 1.0) * (s if again else 1.0) for s in given]  # include_top divides by it once more
    scale = 255 * factor
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)


def _list_numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),) * 3


def _read_geometry(stored: Mapping[str, Any], kind: str) -> tuple[tuple[int, int], int | tuple[int, int] | None, Fit]:
    """(size of the input, what `resize` is, fit)."""
    sides, short = _read_size(stored["size"], kind)
    if kind.startswith("ConvNext") and short is not None:
        square = (short, short)
        if short >= CONVNEXT_SQUASHES:
            return square, square, "squash"
        return square, int(short / float(stored.get("crop_pct") or 224 / 256)), "cover"
    crops = bool(stored.get("do_center_crop", "crop_size" in stored))
    crop = _read_size(stored["crop_size"], "ViT")[0] if crops else None
    if sides is not None:
        return crop or sides, sides, "squash"
    assert short is not None
    if crop is None:
        raise OptionError("size is the short side alone and do_center_crop is off, so images differ in size")
    if stored.get("crop_pct"):  # PoolFormer
        short = int(short / float(stored["crop_pct"]))
    return crop, int(256 / 224 * short) if kind == "Levit" else short, "cover"


def _read_size(value: Any, kind: str) -> tuple[tuple[int, int] | None, int | None]:
    """((height, width), None) or (None, the short side)."""
    if isinstance(value, int):
        if kind not in (*SHORT_SIDE, *BOTH_SIDES):
            raise OptionError(f"size is one number, and whether '{kind}' means the short side by it is not known")
        return (None, value) if kind in SHORT_SIDE else ((value, value), None)
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return (value["height"], value["width"]), None
    if isinstance(value, dict) and set(value) == {"shortest_edge"}:
        return None, value["shortest_edge"]
    found = ", ".join(map(str, value)) if isinstance(value, (dict, list)) else str(value)
    raise OptionError(f"size must say height and width, or the shortest_edge alone; found {found}")


def _name_channels(n_channels: int) -> str:
    if n_channels not in (1, 3):
        raise OptionError(f"photographs have 1 or 3 channels, found {n_channels}")
    return "L" if n_channels == 1 else "RGB"
