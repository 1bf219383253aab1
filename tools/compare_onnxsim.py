"""What onnxsim's structured pruning does to ONNX files: a JSON that `compatibility.py` puts beside our figures.

In: `tests/fixtures/manifest.json`, and files given by hand. Out: `docs/onnxsim.json`, one record a file: parameters
before and after, whether ONNX Runtime loads and runs the result, and whether its outputs keep their shapes. Records of
files given by hand in an earlier run stay.

onnxsim 0.8.1 has no pruning on its command line; its documentation and package give functions, and these are called:

    as_is       onnxsim.apply_structured_pruning(model, sparsity=0.5)          half of every chain's hidden channels
    as_is_cpp   onnxsim.apply_structured_pruning_cpp(model, sparsity=0.5)      the same, its C++ port
    simplified  the first, after onnxsim.simplify
    heads       onnxsim.apply_attention_head_pruning(model, sparsity=0.5)      half of the attention heads
    refit       onnxsim.apply_pruning_finetune(model, as_is)                   its ridge refit, on its own random data

It needs an environment of its own (onnxsim wants Python 3.11 or later) and nothing of corp-onnx:

    python3 -m venv /tmp/onnxsimenv && /tmp/onnxsimenv/bin/pip install onnxsim==0.8.1 onnxruntime
    /tmp/onnxsimenv/bin/python tools/compare_onnxsim.py [more.onnx ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxsim
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
SPARSITY = 0.5
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
Prune = Callable[[onnx.ModelProto], onnx.ModelProto]


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """onnxsim's main function with its defaults."""
    return onnxsim.simplify(model)[0]


def prune(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half of the hidden channels."""
    return onnxsim.apply_structured_pruning(model, sparsity=SPARSITY)


def prune_cpp(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same by the C++ port."""
    return onnxsim.apply_structured_pruning_cpp(model, sparsity=SPARSITY)


def prune_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half of the attention heads."""
    return onnxsim.apply_attention_head_pruning(model, sparsity=SPARSITY)


def refit(model: onnx.ModelProto) -> onnx.ModelProto:
    """Its ridge refit after `prune`."""
    return onnxsim.apply_pruning_finetune(model, prune(model))


def unchanged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it stands."""
    return model


WAYS: dict[str, tuple[Prune, Prune]] = {
    "as_is": (unchanged, prune),
    "as_is_cpp": (unchanged, prune_cpp),
    "simplified": (simplify, prune),
    "heads": (unchanged, prune_heads),
    "refit": (unchanged, refit),
}


def main() -> None:
    """Every file in every way; a crash of one is a record of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="beside the fixtures")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "onnxsim.json")
    args = parser.parse_args()
    entries = json.loads((FIXTURES / "manifest.json").read_text(encoding="utf-8"))["fixtures"]
    records = read_records(args.output, {e["name"] for e in entries})
    for path in [*(FIXTURES / e["file"] for e in entries), *args.files]:
        records[path.stem] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **try_ways(path)}
        print(path.stem, describe(records[path.stem]), file=sys.stderr, flush=True)
    versions = {p: version(p) for p in ("onnxsim", "onnx", "onnxruntime")}
    head = {"schema": 1, "python": sys.version.split()[0], "versions": versions, "sparsity": SPARSITY}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(record)}" for name, record in records.items())
    text = (
        f'{json.dumps(head, indent=1)[:-2]},\n "files": {{\n{lines}\n }}\n}}\n'  # one line a file: a diff can be read
    )
    args.output.write_text(text, encoding="utf-8")


def read_records(path: Path, fixtures: set[str]) -> dict[str, Any]:
    """What an earlier run of the same onnxsim said of files that are no fixtures."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["versions"]["onnxsim"] != version("onnxsim"):
        return {}
    return {name: record for name, record in found["files"].items() if name not in fixtures}


def try_ways(path: Path) -> dict[str, Any]:
    """A record for each way."""
    model = onnx.load(path)
    feeds = make_feeds(model)
    dense = run(model, feeds)
    return {name: try_way(model, feeds, dense, *way) for name, way in WAYS.items()}


def try_way(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], dense: Any, prepare: Prune, change: Prune
) -> dict[str, Any]:  # fmt: skip
    """Parameters before and after one way, and what ONNX Runtime makes of the result."""
    try:
        prepared = prepare(copy(model))
        before, shapes = prepared.n_parameters, stored_shapes(prepared)
        pruned = change(prepared)
    except Exception as error:  # another package's functions: whatever they raise is the finding
        return {"error": f"{type(error).__name__}: {first_line(error)}"}
    answers = run(pruned, feeds)
    return {
        "parameters_before": before,
        "parameters_after": pruned.n_parameters,
        "weights_resized": sum(stored_shapes(pruned).get(name) != shape for name, shape in shapes.items()),
        "runs": not isinstance(answers, str),
        "reason": answers if isinstance(answers, str) else "",
        "same_shapes": _shapes(answers) == _shapes(dense),
        "finite": not isinstance(answers, str) and all(np.isfinite(a.astype(np.float64)).all() for a in answers),
    }


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """So that no way sees what another did in place."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    return fresh


def stored_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Every stored float tensor with a dimension, initializers and Constant nodes."""
    inline = [(n.output[0], a.t) for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.t.dims]
    stored = [(t.name, t) for t in model.graph.initializer if t.dims] + inline
    return {name: tuple(t.dims) for name, t in stored if t.data_type in FLOATS}


def count_parameters(model: onnx.ModelProto) -> int:
    """Elements of those."""
    return sum(math.prod(shape) for shape in stored_shapes(model).values())


def make_feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Noise for images, ones for token ids; 2 images of 8 x 8 or 16 tokens where a dimension is dynamic."""
    rng = np.random.default_rng(0)
    stored = {t.name for t in model.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        dims = value.type.tensor_type.shape.dim
        defaults = (2, 3, 8, 8) if len(dims) == 4 else (2, 16, 20)
        shape = [d.dim_value or default for d, default in zip(dims, defaults, strict=False)]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        whole = dtype.kind in "iub"
        feeds[value.name] = (np.ones(shape) if whole else rng.standard_normal(shape)).astype(dtype)
    return feeds


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | str:
    """The outputs, or why ONNX Runtime gives none."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception as error:  # onnxruntime raises a class of its own for every status code
        return first_line(error)


def _shapes(answers: list[np.ndarray] | str) -> list[tuple[int, ...]] | None:
    return None if isinstance(answers, str) else [a.shape for a in answers]


def first_line(error: Exception) -> str:
    """Short enough for a table."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else "")[:200]


def describe(record: dict[str, Any]) -> str:
    """A line for whoever waits."""
    parts = []
    for name in WAYS:
        way = record[name]
        parts.append(f"{name}: " + (way.get("error") or f"{way['parameters_before']} -> {way['parameters_after']}"))
    return "; ".join(parts)


if __name__ == "__main__":
    main()
