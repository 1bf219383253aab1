"""Classify photographs with OpenVINO, NumPy and Pillow, and nothing else.

    pip install openvino numpy pillow
    python classify.py deit.pruned.onnx cat.jpg dog.jpg
    python classify.py deit.pruned.onnx cat.jpg --precision f32

Files written by corp-onnx carry how photographs are prepared for them, and their class names where those are known.
OpenVINO reads ONNX files as they are; it keeps nothing of their metadata, so that is read here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.modules["openvino_telemetry"] = None  # OpenVINO's package would send statistics when it is imported
import openvino  # noqa: E402

RECIPE, LABELS = "corp_onnx.preprocessing", "corp_onnx.labels"
N_SHOWN = 5
METADATA_PROPS, KEY, VALUE = 14, 1, 2
"""Numbers of fields in ONNX's onnx.proto: of a ModelProto, and of a StringStringEntryProto."""


def main() -> None:
    """Print the first five answers for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--device", default="CPU", help="of OpenVINO  [default: CPU]")
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], help="[default: what the device does by itself]")
    arguments = parser.parse_args()
    hints = {"PERFORMANCE_HINT": "LATENCY"}
    if arguments.precision is not None:
        hints["INFERENCE_PRECISION_HINT"] = arguments.precision
    try:
        model = openvino.Core().read_model(arguments.model)
        metadata = read_metadata(arguments.model)
        if RECIPE not in metadata:
            parser.error(f"{arguments.model} does not say how photographs are prepared for it ({RECIPE}).")
        recipe = json.loads(metadata[RECIPE])
        labels = json.loads(metadata.get(LABELS, "[]"))
        request = None
        for path in arguments.images:
            with Image.open(path) as image:
                pixels = prepare_image(image, recipe)
            if request is None:  # compiled for one photograph: faster than for any number of them
                model.reshape(list(pixels.shape))
                request = openvino.compile_model(model, arguments.device, hints).create_infer_request()
            logits = request.infer([pixels])[0][0].astype(np.float64)
            print(path)
            for idx in np.argsort(-logits, kind="stable")[:N_SHOWN]:
                share = math.exp(logits[idx] - logits.max()) / np.exp(logits - logits.max()).sum()
                print(f"  {share:6.1%}  {labels[idx] if labels else idx}")
    except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:  # OpenVINO raises RuntimeError
        parser.error(str(error))


def read_metadata(path: str) -> dict[str, str]:
    """The metadata of an ONNX file: protobuf, fields of a number, a wire type and a value."""
    found = {}
    for number, value in read_fields(Path(path).read_bytes()):
        if number == METADATA_PROPS:
            entry = dict(read_fields(value))
            found[entry[KEY].decode()] = entry.get(VALUE, b"").decode()
    return found


def read_fields(data: bytes) -> list[tuple[int, bytes]]:
    """(number, bytes) of every field of a protobuf message that is a text or a message."""
    fields, at = [], 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 2:
            length, at = read_varint(data, at)
            fields.append((tag >> 3, data[at : at + length]))
            at += length
        elif tag & 7 == 0:
            _, at = read_varint(data, at)
        else:
            at += {1: 8, 5: 4}[tag & 7]
    return fields


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number that begins there, where it ends): seven bits a byte, the lowest first."""
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return number, at


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
