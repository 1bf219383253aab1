"""Classify photographs through a Triton server that serves a repository of `corp-onnx triton`.

    pip install 'tritonclient[http,grpc]' numpy pillow
    python client.py deit cat.jpg dog.jpg
    python client.py --protocol grpc --url localhost:8001 --version 2 deit cat.jpg

How photographs are prepared is read from the model's configuration, and the server itself knows the class names.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
from PIL import Image
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException

RECIPE = "corp_onnx.preprocessing"
PROTOCOLS = {"http": (http, "localhost:8000"), "grpc": (grpc, "localhost:8001")}
N_SHOWN = 5


def main() -> None:
    """Print the first five answers for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="name in the repository")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="http")
    parser.add_argument("--url", help="host:port  [default: localhost:8000, or :8001 for grpc]")
    parser.add_argument("--version", default="", help="of the model  [default: the newest]")
    arguments = parser.parse_args()
    library, url = PROTOCOLS[arguments.protocol]
    client = library.InferenceServerClient(arguments.url or url)
    try:
        config = read_config(client, arguments.protocol, arguments.model, arguments.version)
        if RECIPE not in config.get("parameters", {}):
            parser.error(f"{arguments.model} takes no photographs: its configuration has no {RECIPE}.")
        recipe = json.loads(config["parameters"][RECIPE]["string_value"])
        for path in arguments.images:
            with Image.open(path) as image:
                pixels = prepare_image(image, recipe)
            print(path)
            for share, name in classify(client, library, config, pixels, arguments.version)[:N_SHOWN]:
                print(f"  {share:6.1%}  {name}")
    except (InferenceServerException, OSError) as error:
        parser.error(str(error))
    finally:
        client.close()


def read_config(client: Any, protocol: str, model: str, version: str) -> dict[str, Any]:
    """The configuration that the server has loaded; the two clients wrap it differently."""
    if protocol == "http":
        return client.get_model_config(model, version)
    return client.get_model_config(model, version, as_json=True)["config"]


def classify(
    client: Any, library: Any, config: dict[str, Any], pixels: np.ndarray, version: str
) -> list[tuple[float, str]]:
    """(probability, class name) of every class, the likeliest first; the server sorts and names them."""
    data_type = config["input"][0]["data_type"].removeprefix("TYPE_")
    tensor = library.InferInput(config["input"][0]["name"], list(pixels.shape), data_type)
    tensor.set_data_from_numpy(pixels.astype(np.float16 if data_type == "FP16" else np.float32))
    labelled = next((o for o in config["output"] if o.get("label_filename")), config["output"][0])
    wanted = library.InferRequestedOutput(labelled["name"], class_count=int(labelled["dims"][-1]))
    answer = client.infer(config["name"], [tensor], model_version=version, outputs=[wanted])
    found = [entry.decode().split(":", 2) for entry in answer.as_numpy(labelled["name"]).ravel()]  # logit:index:label
    logits = np.array([float(parts[0]) for parts in found])
    shares = np.exp(logits - logits.max())
    return [(share, parts[-1]) for share, parts in zip(shares / shares.sum(), found, strict=True)]


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
