"""The command lines that a model meets, and what each may leave.

The model is m.onnx, what it was before it was spoilt is sound.onnx, and its arrays are calib.npz.
"""

from __future__ import annotations

from fuzz.values import Command

PRUNED = ("p.onnx", "p.onnx.data", "p.report.json")
"""What prune writes; the data only where the source had some."""

VERBS = {
    "inspect": Command(("inspect", "m.onnx", "--json")),
    "prune": Command(("prune", "m.onnx", "--calib", "calib.npz", "--macs", "0.8", "-o", "p.onnx"), PRUNED),
    "paper": Command(("prune", "m.onnx", "--calib", "calib.npz", "--preset", "paper", "-o", "p.onnx"), PRUNED),
    "evaluate": Command(("evaluate", "m.onnx", "--images", "calib.npz", "--reference", "sound.onnx", "--json")),
    "fp16": Command(("convert", "m.onnx", "--fp16", "-o", "p.onnx"), PRUNED[:2]),
    "int8": Command(("convert", "m.onnx", "--int8", "dynamic", "-o", "p.onnx"), PRUNED[:2]),
    "static": Command(
        ("convert", "m.onnx", "--int8", "static", "--calib", "calib.npz", "-o", "p.onnx"), PRUNED[:2]
    ),
    "fit": Command(("fit", "m.onnx", "--target", "onnxruntime-cpu", "-o", "p.onnx"), PRUNED[:2]),
    "triton": Command(("triton", "m.onnx", "-o", "repository"), ("repository",)),
    "python": Command(("triton", "m.onnx", "-o", "repository", "--backend", "python"), ("repository",)),
    "bench": Command(("bench", "m.onnx", "--batch", "1", "--repeats", "1", "--warmup", "1", "--provider", "cpu")),
}  # fmt: skip

FITTING = {"fit": "timm_vit_ts17_fused_fixed"}
"""The fixture of a verb that refuses the others as they are, for cases that must come to an end."""


def list_needed(command: Command) -> tuple[str, ...]:
    """What must be there when a command is done."""
    return tuple(name for name in command.outputs if not name.endswith(".data"))
