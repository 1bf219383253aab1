"""Preprocessor files as Hugging Face and timm write them, in a few made-up numbers."""

from __future__ import annotations

from typing import Any

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
BASE: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3,
    "image_mean": MEAN, "image_std": STD,
}  # fmt: skip
TIMM = {"input_size": [3, 32, 48], "mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.8}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def processor(kind: str, **changes: Any) -> dict[str, Any]:
    return BASE | {"image_processor_type": f"{kind}ImageProcessor"} | changes
