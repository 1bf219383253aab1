"""A made-up data set of twelve colours and a model that knows them: what labels are measured with.

Five of the 36 photographs lie under the next class, so that a right reading of labels gives 31 of 36 and no other does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from corp_onnx.images.recipe import METADATA_KEY, Recipe

NAMES = ("zebra", "ant", "cat", "great dane", "bee", "yak", "emu", "fox", "gnu", "hen", "ibis", "jay")
"""In index order, which is not the sorted one."""

SYNSETS = tuple(f"n{100 + 7 * k:08d}" for k in range(len(NAMES)))
N_CLASSES, N_EACH, N_WRONG = len(NAMES), 3, 5
ACCURACY = 1 - N_WRONG / (N_CLASSES * N_EACH)
RECIPE = Recipe(size=(8, 8), crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)


def directions() -> np.ndarray:
    angles = 2 * np.pi * np.arange(N_CLASSES) / N_CLASSES
    return np.stack([np.cos(angles), np.sin(angles), np.zeros(N_CLASSES)])  # [3, n_classes]


def make_classifier(path: Path, metadata: Mapping[str, str] | None = None, order: list[int] | None = None) -> Path:
    """pixels -> mean colour -> the cosine with each class's colour, times 40: a sure answer."""
    weight = (40 * directions()).astype(np.float32)[:, order or list(range(N_CLASSES))]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", N_CLASSES])]
    graph = helper.make_graph(nodes, "colours", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: RECIPE.to_json()} | dict(metadata or {}))
    onnx.save(model, path)
    return path


def write_classes(root: Path, folders: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """(path below the root, class) of every image, by path; without folders all of them lie in the root."""
    rows: list[tuple[str, int]] = []
    for i in range(N_CLASSES * N_EACH):
        answer = i % N_CLASSES
        label = (answer + 1) % N_CLASSES if i < N_WRONG else answer
        name = f"ILSVRC2012_val_{i + 1:08d}.png" if not folders else f"{folders[label]}/{i:02d}.png"
        rng = np.random.default_rng(i)
        colour = 127.5 + 110 * directions()[:, answer] + rng.uniform(-5, 5, 3)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.broadcast_to(colour.round().astype(np.uint8), (10, 12, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(root / name)
        rows.append((name, label))
    return sorted(rows)
