"""docs/tensorrt.json: what TensorRT for RTX makes of every test graph, for `compatibility.py` to write a section of.

In: the graphs of `tests/fixtures`. Each is built as it stands, and again in float16 where `convert --fp16` takes it,
for SM86 and a batch of 1 to 8; nothing runs. Out: kernels and fused attentions, or the reason why there is no engine.

    make .venv-tensorrt/.installed
    .venv-tensorrt/bin/python tools/tensorrt_builds.py              # writes docs/tensorrt.json, about three minutes
    .venv-tensorrt/bin/python tools/tensorrt_builds.py --only 'timm_vit_*'   # prints those
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from corp_onnx.errors import CorpOnnxError
from corp_onnx.precision.convert import convert_model
from corp_onnx.tensorrt.blueprint import read_source
from corp_onnx.tensorrt.engine import build_engine
from corp_onnx.tensorrt.library import find_library

ROOT = Path(__file__).resolve().parent.parent
FIXTURES, RECORD = ROOT / "tests" / "fixtures", ROOT / "docs" / "tensorrt.json"
GPU = "SM86"


def main() -> int:
    """Every graph, and the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="print these instead of writing the record")
    args = parser.parse_args()
    paths = [p for p in list_graphs() if not args.only or fnmatch(p.stem, args.only)]
    files = {path.stem: examine(path) for path in paths}
    record = {"library": find_library("tensorrt-rtx").title, "gpu": GPU, "files": files}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    if args.only:
        print(text)
    else:
        RECORD.write_text(text, encoding="utf-8")
    return 0


def list_graphs() -> list[Path]:
    """The test graphs."""
    return sorted(FIXTURES.glob("*.onnx"))


def examine(path: Path) -> dict[str, Any]:
    """One graph: as it stands, and in float16; None where it is not converted."""
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "half.onnx"
        try:
            convert_model(path, half, fp16=True)
        except CorpOnnxError:
            converted = None
        else:
            converted = build(half)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"sha256": digest, "as_it_stands": build(path), "float16": converted}


def build(path: Path) -> dict[str, Any]:
    """Kernels, attentions, those fused and why others are not, of its engine; or the reason why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            options: dict[str, Any] = {"library": "tensorrt-rtx", "gpus": (GPU,), "explain": True}
            if any(dims[:1] == (None,) for dims in read_source(path).inputs.values()):
                options |= {"minimum": 1, "optimum": 8, "maximum": 8}
            layers = build_engine(path, Path(folder) / "x.plan", **options).layers
        except CorpOnnxError as error:
            return {"error": shorten(str(error))}
    assert layers is not None
    reasons = sorted({part.reason for part in layers.parts if part.attention == "apart"})
    return {"kernels": layers.kernels, "fused": layers.fused, "attentions": layers.attentions, "apart": reasons}


def shorten(text: str) -> str:
    """The reason in an error, without the path in front of it."""
    text = text.partition(".onnx: ")[2] or text
    for words in ("parser refuses it (", "could not build an engine ("):
        if words in text:
            return text.partition(words)[2].rstrip(".").rstrip(")")
    return text


# ---- the section ----------------------------------------------------------------------------------------------------

HEADER = """\
## TensorRT for RTX

Each graph as it stands, and again behind `corp-onnx convert --fp16`, built for {gpu} by {library} (written by
tools/tensorrt_builds.py, held by `make test-tensorrt`; what fuses: [tensorrt.md](tensorrt.md)). Nothing ran.
"""


def render(record: dict[str, Any]) -> str:
    """How many build and fuse, and every reason why others do not."""
    files = record["files"]
    lines = [HEADER.format(**record)]
    refused, apart = dict[str, list[str]](), dict[str, list[str]]()
    for way, title in (("as_it_stands", "as they stand"), ("float16", "in float16")):
        made = {name: file[way] for name, file in files.items() if file[way] is not None}
        built = {name: found for name, found in made.items() if "error" not in found}
        fused, attentions = (sum(found[key] for found in built.values()) for key in ("fused", "attentions"))
        lines.append(f"- {title}: {len(built)} of {len(made)} build, {fused} of their {attentions} attentions fused.")
        for name, found in made.items():
            if "error" in found and (way == "as_it_stands" or "error" not in files[name]["as_it_stands"]):
                refused.setdefault(found["error"], []).append(name + (" (float16)" if way == "float16" else ""))
            for reason in found.get("apart", ()) if way == "float16" else ():
                apart.setdefault(reason, []).append(name)
    for title, reasons in (("no engine", refused), ("not fused in float16", apart)):
        lines += ["", f"| {title} | reason |", "|---|---|"]
        lines += [f"| {', '.join(names)} | {escape(reason)} |" for reason, names in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Words of a message as a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
