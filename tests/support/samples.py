"""What the tests of whole runs share: photographs, small models, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from corp_onnx.settings import PAPER, Fractions, PruneSettings

ROOT = Path(__file__).parent.parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
DEMO = ROOT / "models" / "demo_vit.onnx"

COMPUTED_SCALE = "timm_vit_ts17_fused"  # fused qkv, its scale computed from Shape(q); d_hidden 48
OPERATOR = "timm_vit_dynamo23_fused"  # the Attention operator of opset 23; the fastest
SEPARATE = "hf_vit_dynamo23_sdpa"  # q, k and v apart, one block
EXTERNAL = "timm_vit_ts17_external"  # weights in a file beside
FIXED = "timm_vit_dynamo23_fused_fixed"  # batch of 1
TEXT = "hf_bert_classifier_ts17_sdpa"  # three integer inputs


GUESS = (
    "preprocessing: guessed (ImageNet, 8); give --preprocessor FILE (preprocessor_config.json, timm's config.json), or "
    "--mean, --std and --crop-pct, where the model was trained on other pixels."
)
"""What is said of photographs for a fixture that carries no recipe."""


def fixture_path(name: str) -> Path:
    return FIXTURES / f"{name}.onnx"


def expectation(name: str) -> dict[str, Any]:
    manifest = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))
    return next(f["expect"] for f in manifest["fixtures"] if f["name"] == name)


def paper(mlp: float = 0.5, attn: float = 0.5, **options: Any) -> PruneSettings:
    """The paper's method; options of `Method` go there, the others to the settings."""
    of_method = {name: options.pop(name) for name in ("rank", "ridge", "compensate") if name in options}
    return PruneSettings(replace(PAPER, widths=Fractions(mlp, attn), **of_method), **options)


def write_photos(folder: Path, n: int, seed: int = 0) -> Path:
    """Smooth colour photographs, all different."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((12, 10), Image.Resampling.BILINEAR).save(folder / f"{i:03d}.png")
    return folder


def write_sum(path: Path, batch: int | str = "n") -> Path:
    """A model that gives one number for each row of two, so its output has no axis but the batch."""
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
        "sum",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch])],
        [axes],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def weights_of(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def listing(folder: Path) -> list[str]:
    """Everything below a folder, hidden names too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def run_cli(*arguments: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, as `corp-onnx` would start it."""
    command = [sys.executable, "-m", "corp_onnx", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=120)


def without_warnings(err: str) -> str:
    """What a run said on stderr, less what it warned of, and what memory it expected to take, before it ended."""
    lines = (line for line in err.splitlines(keepends=True) if not line.startswith(("warning: ", "memory: ")))
    return "".join(lines).lstrip("\n")


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that nobody has asked for (Linux)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """One thread a library: the small models are slower with more."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | (extra or {})
