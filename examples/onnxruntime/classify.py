"""Classify photographs with ONNX Runtime, NumPy and Pillow, and nothing else.

    pip install onnxruntime numpy pillow
    python classify.py deit.pruned.onnx cat.jpg dog.jpg

Files written by corp-onnx carry how photographs are prepared for them, and their class names where those are known.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

RECIPE, LABELS = "corp_onnx.preprocessing", "corp_onnx.labels"
N_SHOWN = 5


def main() -> None:
    """Print the first five answers for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    arguments = parser.parse_args()
    try:
        session = onnxruntime.InferenceSession(arguments.model)
        metadata = session.get_modelmeta().custom_metadata_map
        if RECIPE not in metadata:
            parser.error(f"{arguments.model} does not say how photographs are prepared for it ({RECIPE}).")
        recipe = json.loads(metadata[RECIPE])
        labels = json.loads(metadata.get(LABELS, "[]"))
        for path in arguments.images:
            with Image.open(path) as image:
                pixels = prepare_image(image, recipe)
            logits = session.run(None, {session.get_inputs()[0].name: pixels})[0][0].astype(np.float64)
            print(path)
            for idx in np.argsort(-logits, kind="stable")[:N_SHOWN]:
                share = math.exp(logits[idx] - logits.max()) / np.exp(logits - logits.max()).sum()
                print(f"  {share:6.1%}  {labels[idx] if labels else idx}")
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        parser.error(str(error))


def prepare_image(image: Image.Image, recipe: dict[str, Any]) -> np.ndarray:
    """An image as the model wants it, [1, channels, height, width]: resized, centre cropped or padded, normalised."""
    crop_height, crop_width = recipe["size"]
    resize, fit = recipe["resize"], recipe.get("fit", "cover")
    derived = [resize or math.floor(size / recipe["crop_pct"]) for size in (crop_height, crop_width)]
    goals = resize if isinstance(resize, list) else derived
    scale = (min if fit == "letterbox" else max)(goals[0] / image.height, goals[1] / image.width)
    rounded = int if fit == "cover" and goals[0] == goals[1] else round  # int as torchvision, round as timm
    height, width = (
        goal if fit == "squash" or (fit == "cover" and side * scale <= goal) else rounded(side * scale)
        for side, goal in zip((image.height, image.width), goals, strict=True)
    )
    image = image.convert(recipe["channels"])
    image = image.resize((width, height), Image.Resampling[recipe["interpolation"].upper()])
    left, top = (
        extra // 2 if recipe.get("crop_rounding") == "down" else round(extra / 2) if extra > 0 else -(-extra // 2)
        for extra in (width - crop_width, height - crop_height)
    )
    canvas = Image.new(recipe["channels"], (crop_width, crop_height), tuple(recipe.get("fill", ())) or 0)
    canvas.paste(image, (-left, -top))
    pixels = np.asarray(canvas, dtype=np.float32).reshape(crop_height, crop_width, -1) / np.float32(255)
    pixels = (pixels - np.asarray(recipe["mean"], np.float32)) / np.asarray(recipe["std"], np.float32)
    return pixels.transpose(2, 0, 1)[None]


if __name__ == "__main__":
    main()
