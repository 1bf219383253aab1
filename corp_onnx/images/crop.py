"""A decoded photograph -> the crop that a recipe asks for -> the pixels that a network takes.

Enters a Pillow image; leaves the uint8 crop and, for a stack of crops, the float32 pixels

    x = (crop / 255 - mean) / std        [n, c, h, w]

Everything happens on Pillow images, as in timm's evaluation transform and in the image processors of Hugging Face
that do not run on tensors, so a model sees the pixels that it was trained for (bit-equal to timm 1.0.31 with
torchvision 0.28 on 400 random sizes and recipes that cover, and crops equal to those of transformers 5.24). One
deviation, and two habits of both that surprise:

* 16-bit greyscale files are scaled to 8 bits; Pillow's own conversion, which timm calls, clips them to white.
* The EXIF orientation is not applied.
* An alpha channel is dropped, so what a transparent pixel hides becomes visible.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from corp_onnx.images.recipe import BANDS, FILTERS, Recipe

MAX_RESIZED_PIXELS = 2**27
"""A 1 x 100000 image resized by its short side would take gigabytes; beyond this many pixels it is refused."""


def crop_image(image: Image.Image, recipe: Recipe) -> UInt8[np.ndarray, "h w c"]:
    """The resized and centre-cropped image, padded with the recipe's colour where it is smaller than the crop.

    Raises:
        OSError, ValueError: Pillow can not decode or convert it, or resizing would take too much memory.
    """
    image = _to_eight_bits(image).convert(recipe.channels)
    width, height = resized_size(image.width, image.height, recipe)
    if width < 1 or height < 1 or width * height > MAX_RESIZED_PIXELS:
        raise ValueError(f"too elongated: {image.width} x {image.height} would be resized to {width} x {height}")
    if (width, height) != image.size:
        image = image.resize((width, height), FILTERS[recipe.interpolation])
    crop_height, crop_width = recipe.size
    left, top = _offset(width, crop_width, recipe), _offset(height, crop_height, recipe)
    if any(recipe.fill) and (crop_width > width or crop_height > height):
        colour = recipe.fill if recipe.channels == "RGB" else max(recipe.fill)
        canvas = Image.new(recipe.channels, (crop_width, crop_height), colour)
        canvas.paste(image, (-left, -top))
        image = canvas
    else:
        image = image.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(image, dtype=np.uint8).reshape(crop_height, crop_width, BANDS[recipe.channels])


def normalize_crops(crops: UInt8[np.ndarray, "n h w c"], recipe: Recipe) -> Float32[np.ndarray, "n c h w"]:
    """The network's input, (crop / 255 - mean) / std in float32: torchvision's ToTensor and Normalize."""
    pixels = np.ascontiguousarray(crops.transpose(0, 3, 1, 2)).astype(np.float32)  # [n, c, h, w]
    pixels /= np.float32(255)
    pixels -= np.asarray(recipe.mean, dtype=np.float32)[:, None, None]
    pixels /= np.asarray(recipe.std, dtype=np.float32)[:, None, None]
    return pixels


def resized_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """(width, height) of an image before the crop."""
    goal_height, goal_width = recipe.resized
    if recipe.fit == "squash":
        return goal_width, goal_height
    if recipe.fit == "letterbox":  # timm's ResizeKeepRatio of the longest side: inside both goals, rounded
        ratio = max(height / goal_height, width / goal_width)
        return round(width / ratio), round(height / ratio)
    if goal_height == goal_width:  # torchvision: the long side is cut down to an integer, not rounded
        if width <= height:
            return goal_width, int(goal_width * height / width)
        return int(goal_height * width / height), goal_height
    ratio = min(height / goal_height, width / goal_width)  # timm's ResizeKeepRatio: cover both sides, rounded
    return round(width / ratio), round(height / ratio)


def _offset(side: int, crop: int, recipe: Recipe) -> int:
    """Where the crop begins on a side; negative where it pads.

    torchvision pads first, the odd pixel right and below, and then crops what is still larger, its half rounded to
    even; Hugging Face rounds both down, so that its odd pixel of padding is left and above.
    """
    if recipe.crop_rounding == "down":
        return (side - crop) // 2
    return -((crop - side) // 2) if crop > side else round((side - crop) / 2.0)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and its byte orders; I is how older Pillow opens a 16-bit PNG
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    return image
