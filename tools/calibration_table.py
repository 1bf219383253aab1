"""What pruning costs beside plain inference with ONNX Runtime over the same images, in one run, in turns.

    .venv/bin/python tools/calibration_table.py deit_tiny.onnx --calib photos/ [--rounds 3] [--best-rounds 1]

Every figure is the wall time of a program of its own: it starts, loads its libraries, opens the model, decodes all
images once, and for `prune` writes, checks and measures the file. Ratios are of programs of one round. The last rows
are the time of calibration alone in two files of random weights that differ in their batch (tools/shape_model.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx
from shape_model import SHAPES, write_vit

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import open_for_model
from corp_onnx.graph import load_model
from corp_onnx.results import describe_environment
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session
from corp_onnx.settings import BEST, Preprocessing
from corp_onnx.threads import few_blas_threads
from corp_onnx.units import list_units

BATCH = 8
PAPER = ("--preset", "paper", "--mlp", "0.5", "--attn", "0.5")
WITH_BUDGET = ("--macs", "0.617")


def main() -> None:
    """Run everything in turns and print a Markdown table; or one thing of it, for itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--best-rounds", type=int, default=1, help="of these, with the search")
    parser.add_argument("--images", type=int, default=128, help="of the comparison of batches")
    parser.add_argument("--only", choices=["infer", "calibrate"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "infer":
        infer(args.model, args.calib)
    elif args.only == "calibrate":
        print(calibrate(args.model, args.calib, args.images))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """The table."""
    ratios: dict[str, list[float]] = {"paper": [], "--macs 0.617": [], "batch 1 over dynamic, calibration": []}
    plain: list[float] = []
    itself = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as folder:
        dynamic, fixed = (Path(folder) / f"{name}.onnx" for name in ("dynamic", "fixed"))
        onnx.save(write_vit(SHAPES["tiny"], "batch", 0), dynamic)
        onnx.save(write_vit(SHAPES["tiny"], 1, 0), fixed)
        prune = [sys.executable, "-m", "corp_onnx", "prune", args.model, "--calib", args.calib, "--force",
                 "-o", Path(folder) / "pruned.onnx"]  # fmt: skip
        for turn in range(args.rounds):
            plain.append(run_timed([*itself, args.model, "--calib", args.calib, "--only", "infer"])[0])
            ratios["paper"].append(run_timed([*prune, *PAPER])[0] / plain[-1])
            if turn < args.best_rounds:
                ratios["--macs 0.617"].append(run_timed([*prune, *WITH_BUDGET])[0] / plain[-1])
            alone = [float(run_timed([*itself, model, "--calib", args.calib, "--images", args.images, "--only",
                                      "calibrate"])[1]) for model in (fixed, dynamic)]  # fmt: skip
            ratios["batch 1 over dynamic, calibration"].append(alone[0] / alone[1])
            print({name: [round(r, 2) for r in found] for name, found in ratios.items()}, file=sys.stderr, flush=True)
    print("| over plain inference | median | least | most | rounds |\n|---|---|---|---|---|")
    for name, found in ratios.items():
        if found:
            spread = f"{min(found):.2f} | {max(found):.2f} | {len(found)}"
            print(f"| {name} | {statistics.median(found):.2f} | {spread} |")
    about = describe_environment("cpu")
    spread = f"{min(plain):.1f} to {max(plain):.1f}"
    print(f"\nplain inference {statistics.median(plain):.1f} s ({spread}); {about.machine}, "
          + ", ".join(f"{name} {version}" for name, version in about.versions.items()))  # fmt: skip


def run_timed(command: list[object]) -> tuple[float, str]:
    """Seconds of a program, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start, done.stdout


def infer(model: Path, calib: Path) -> None:
    """All images through the model."""
    session, images = open_session(model), open_for_model(load_model(model), calib, Preprocessing(),
                                                          limit=None, seed=0, minimum=2)  # fmt: skip
    for feeds, _ in session.stream(images, BATCH):
        session.run(None, feeds)


@few_blas_threads()
def calibrate(model: Path, calib: Path, n_images: int) -> float:
    """Seconds of calibration for `--preset best`, of images that are decoded already."""
    graph = probe_graph(load_model(model))
    units = list_units(find_blocks(graph), set(BEST.units))
    images = open_for_model(graph.model, calib, Preprocessing(), limit=n_images, seed=0, minimum=2)
    for _ in images.batches(BATCH):
        pass
    start = time.perf_counter()
    collect_moments(graph, units, images, batch_size=BATCH)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
