"""docs/runtimes.md: what other runtimes make of our files, against ONNX Runtime on photographs.

In: DeiT-Tiny, or another model, and its calibration photographs; the demo model comes by itself. Each is pruned without
and with merged tokens, and all three files are converted to float16 and to integers. Every runtime of `runners/` opens
every file in a process of its own, with a limit of time: a crash is a row of the table. Out: docs/runtimes.json and the
page, the same as tables. Needs pip, and npm with node for two of them; environments and files go into --cache.

    .venv/bin/python tools/runtimes.py deit_tiny.onnx --calib calib --cache DIR           # answers, half an hour
    .venv/bin/python tools/runtimes.py deit_tiny.onnx --calib calib --cache DIR --speed   # then speed, machine quiet
    .venv/bin/python tools/runtimes.py ... --only tract --only 'deit_tiny.merged.*'       # those runtimes, those files
    .venv/bin/python tools/runtimes.py --table                                            # the page from the record
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from runners.environments import RUNTIMES, THREADS, Broken, Runtime, run_child
from runners.page import judge, write_page

from corp_onnx.calibrate.data import open_for_model
from corp_onnx.errors import CorpOnnxError
from corp_onnx.graph import load_model
from corp_onnx.precision.convert import convert_model
from corp_onnx.prune import prune_model
from corp_onnx.results import describe_environment
from corp_onnx.settings import Preprocessing

ROOT = Path(__file__).resolve().parent.parent
DOCS, DEMO = ROOT / "docs", ROOT / "models"
REFERENCE = RUNTIMES[0]

SHAPES: dict[str, dict[str, Any]] = {"dense": {}, "pruned": {"macs": 0.617, "merge": "none"}, "merged": {"macs": 0.5}}
"""What becomes of a model, with the options of `prune`."""

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {}, "float16": {"fp16": True}, "int8-static": {"int8": "static"}, "int8-dynamic": {"int8": "dynamic"},
}  # fmt: skip
"""In which precisions, with the options of `convert`."""

N_IMAGES, N_ALONE = 32, 8
"""Photographs that are answered eight at a time, and those of them that are answered one by one as well."""

ROUNDS = 9
LIMIT = 150.0
"""Seconds of a child process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Answers or speed of what was asked for, the record and the page."""
    args = read_arguments(argv)
    record = read_record(DOCS / "runtimes.json")
    if not args.table:
        files = list(make_files("demo", DEMO / "demo_vit.onnx", DEMO / "calib", args.cache))
        if args.model is not None:
            files += make_files("deit_tiny", args.model, args.calib, args.cache)
        measure = measure_speed if args.speed else compare_answers
        for runtime in RUNTIMES:
            if is_asked(runtime.name, args.only, [r.name for r in RUNTIMES]):
                measure(
                    runtime, [f for f in files if is_asked(f.stem, args.only, [f.stem for f in files])], args, record
                )
                write_record(DOCS / "runtimes.json", record)
    (DOCS / "runtimes.md").write_text(write_page(record), encoding="utf-8")
    return 0


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="beside the demo model; an ONNX file of a classifier")
    parser.add_argument("--calib", type=Path, help="its photographs")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "corp-onnx-runtimes")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="these runtimes or files (repeatable)")
    parser.add_argument("--speed", action="store_true", help="time what answered right, in place of answers")
    parser.add_argument("--table", action="store_true", help="only write the page from the record")
    args = parser.parse_args(argv)
    args.cache = args.cache.resolve()  # a child process has a folder of its own
    if args.model is not None and args.calib is None:
        parser.error("a model needs --calib")
    return args


def is_asked(name: str, patterns: Sequence[str] | None, names: Sequence[str]) -> bool:
    """Whether a pattern takes it, or none of them is of its kind."""
    own = [p for p in patterns or () if any(fnmatch(other, p) for other in names)]
    return not own or any(fnmatch(name, p) for p in own)


def read_record(path: Path) -> dict[str, Any]:
    """What is known so far."""
    empty: dict[str, Any] = {"schema": 1, "environment": {}, "runtimes": {}}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def write_record(path: Path, record: dict[str, Any]) -> None:
    """The same, runtimes in the order of the page."""
    known = record["runtimes"]
    record["runtimes"] = {r.name: known[r.name] for r in RUNTIMES if r.name in known}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- files ----------------------------------------------------------------------------------------------------------


def make_files(name: str, model: Path, calib: Path, cache: Path) -> Iterator[Path]:
    """The model, pruned and merged, in every precision, and its photographs as an array; what is there stays."""
    folder = cache / "files"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = folder / f"{name}.npy"
    if not pixels.exists():
        images = open_for_model(load_model(model), calib, Preprocessing(), limit=N_IMAGES, seed=0, minimum=2)
        np.save(pixels, np.concatenate([batch.arrays["pixels"] for batch in images.batches(8)])[:N_IMAGES])
    for shape, options in SHAPES.items():
        source = folder / f"{name}.{shape}.float32.onnx"
        if not source.exists():
            if options:
                prune_model(model, calib, source, **options)
            else:
                source.symlink_to(model.resolve())
        yield source
        for precision, asked in PRECISIONS.items():
            made = folder / f"{name}.{shape}.{precision}.onnx"
            if asked and not made.exists():
                given = {"calib": calib} if asked.get("int8") == "static" else {"images": calib}
                convert_model(source, made, **asked, **given)
            if asked:
                yield made


def find_pixels(path: Path) -> Path:
    """The photographs of a file."""
    return path.with_name(f"{path.name.partition('.')[0]}.npy")


# ---- answers --------------------------------------------------------------------------------------------------------


def compare_answers(runtime: Runtime, files: Sequence[Path], args: argparse.Namespace, record: dict[str, Any]) -> None:
    """What a runtime answers to the photographs, beside ONNX Runtime with the same file."""
    for path in files:
        rows = record["runtimes"].setdefault(runtime.name, {"packages": [], "files": {}})
        rows["packages"] = [*runtime.packages, *runtime.bare]
        try:
            expected = find_answers(REFERENCE, path, args.cache)
            found = find_answers(runtime, path, args.cache) if runtime is not REFERENCE else expected
            row: dict[str, Any] = {batch: compare(rows_, expected[batch]) for batch, rows_ in found.items()}
        except Broken as error:
            row = {"refused": str(error)}
        if "speedup" in rows["files"].get(path.stem, {}) and "refused" not in row:
            row["speedup"] = rows["files"][path.stem]["speedup"]
        rows["files"][path.stem] = row
        print(f"{runtime.name}: {path.stem}: {row}", flush=True)
    record |= {"environment": asdict(describe_environment("cpu")), "threads": THREADS}
    record |= {"n_images": N_IMAGES, "n_alone": N_ALONE}


def find_answers(runtime: Runtime, path: Path, cache: Path) -> dict[str, np.ndarray]:
    """Answers by batch; those of the reference are kept beside the file."""
    kept = path.with_suffix(".answers.json")
    if runtime is REFERENCE and kept.exists() and kept.stat().st_mtime > path.stat().st_mtime:
        text = kept.read_text(encoding="utf-8")
    else:
        plan = [f"{batch}:{N_IMAGES if batch > 1 else N_ALONE}" for batch in runtime.batches]
        text = run_child(runtime, cache, ["answer", path, find_pixels(path), *plan], LIMIT)
        if runtime is REFERENCE:
            kept.write_text(text, encoding="utf-8")
    return {batch: np.array(rows) for batch, rows in json.loads(text).items()}


def compare(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """How far answers are apart: first classes that are equal, and the largest difference beside the largest logit."""
    if found.shape != expected.shape:
        return {"n": len(expected), "equal": 0, "difference": None, "relative": None, "shape": list(found.shape)}
    difference = np.abs(found - expected).max()
    return {
        "n": len(expected),
        "equal": int((found.argmax(1) == expected.argmax(1)).sum()),
        "difference": float(f"{difference:.3g}"),
        "relative": float(f"{difference / np.abs(expected).max():.3g}"),
    }


# ---- speed ----------------------------------------------------------------------------------------------------------


def measure_speed(runtime: Runtime, files: Sequence[Path], args: argparse.Namespace, record: dict[str, Any]) -> None:
    """How much faster a runtime is with the pruned file than with the dense one of its precision."""
    rows = record["runtimes"].get(runtime.name, {"files": {}})["files"]
    for path in files if runtime.timed else ():
        name, shape, precision = path.stem.split(".")
        dense = path.with_name(f"{name}.dense.{precision}.onnx")
        if shape == "dense" or any(judge(rows.get(p.stem, {})) != "right" for p in (path, dense)):
            continue
        plan = [f"{batch}:{ROUNDS}" for batch in runtime.batches]
        try:
            text = run_child(runtime, args.cache, ["time", dense, path, find_pixels(path), *plan], LIMIT)
        except Broken as error:
            print(f"{runtime.name}: {path.stem}: not timed: {error}", flush=True)
            continue
        rows[path.stem]["speedup"] = {batch: quartiles(np.array(taken)) for batch, taken in json.loads(text).items()}
        print(f"{runtime.name}: {path.stem}: {rows[path.stem]['speedup']}", flush=True)


def quartiles(taken: np.ndarray) -> list[float]:
    """Median and middle half of the rounds' ratios: dense over pruned."""
    ratios = np.quantile(taken[:, 0] / taken[:, 1], (0.5, 0.25, 0.75))
    return [float(f"{ratio:.3g}") for ratio in ratios]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CorpOnnxError as error:
        sys.exit(str(error))
