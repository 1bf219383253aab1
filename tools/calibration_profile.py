"""Where the time of calibration and of a whole prune goes, beside plain ONNX Runtime inference over the same images.

    .venv/bin/python tools/calibration_profile.py deit_tiny.onnx --calib photos/ [--images 128] [--runs paper]

Each row of the first table does what the row before does and one thing more, over the same images with decoding in all
of them, so differences say what that thing costs. The second table times what is folded into the sums by itself, in one
thread. The third has the stages of whole runs, `--preset paper` and `--preset best` with a budget, over all images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs
from threadpoolctl import threadpool_limits

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments, tap_units
from corp_onnx.calibrate.data import open_for_model
from corp_onnx.graph import Graph, Model, load_model
from corp_onnx.images import Images
from corp_onnx.prune import prune_model
from corp_onnx.results import PruneResult, describe_environment
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session
from corp_onnx.settings import BEST, PAPER, Preprocessing
from corp_onnx.threads import few_blas_threads
from corp_onnx.units import Unit, list_units

BATCH = 8
RUNS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper", "mlp": 0.5, "attn": 0.5},
    "best, 61.7 % of the MACs": {"macs": 0.617},
}


def main() -> None:
    """Measure, print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=int, help="images at the most (all)")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS), help="whole runs (all)")
    args = parser.parse_args()
    model = load_model(args.model)
    graph = probe_graph(model)
    print(f"{args.model.name}, batch {graph.n_images if graph.fixed_batch else BATCH}\n")
    images = open_anew(model, args.calib, args.images)()
    for name, method in (("paper", PAPER), ("best", BEST)):
        units = [unit for unit in list_units(find_blocks(graph), set(method.units)) if unit.skip is None]
        print_pieces(name, graph, units, open_anew(model, args.calib, args.images), images.n_images)
        print_folds(graph, units, images)
    for name in args.runs:
        print_stages(name, run_prune(args.model, args.calib, args.images, RUNS[name]))
    about = describe_environment("cpu")
    print(f"{about.machine}, {', '.join(f'{n} {v}' for n, v in about.versions.items())}")


def open_anew(model: Model, calib: Path, limit: int | None) -> Callable[[], Images]:
    """Opens the images, none of them decoded yet."""
    return lambda: open_for_model(model, calib, Preprocessing(), limit=limit, seed=0, minimum=2)


def print_pieces(name: str, graph: Graph, units: list[Unit], reopen: Callable[[], Images], n_images: int) -> None:
    """Milliseconds an image of what calibration does, one thing more in every row."""
    plain, tapped = open_session(graph.model), tap_units(graph, units)

    def decode() -> None:
        for _ in reopen().batches(BATCH):
            pass

    def infer() -> None:
        for feeds, _ in plain.stream(reopen(), BATCH):
            plain.run(None, feeds)

    def expose() -> None:
        for _ in tapped.stream(reopen(), BATCH):
            pass

    @few_blas_threads()
    def collect() -> None:
        collect_moments(graph, units, reopen(), batch_size=BATCH)

    print(f"| {name}: ms an image | all | more |\n|---|---|---|")
    before = 0.0
    steps = {"decoding": decode, "plain inference": infer, "tensors exposed": expose, "sums": collect}
    for what, step in steps.items():
        seconds = timed(step)
        print(f"| {what} | {seconds / n_images * 1e3:.2f} | {(seconds - before) / n_images * 1e3:.2f} |")
        before = seconds
    print()


def print_folds(graph: Graph, units: list[Unit], images: Images) -> None:
    """Milliseconds an image of one thread that folds what one batch exposes."""
    arrays, n_real = next(tap_units(graph, units).stream(images, BATCH))
    values = [unit.read(arrays, graph, n_real) for unit in units]
    rows = [v[0] for v in values if len(v) == 1]
    (syrk,) = get_blas_funcs(("syrk",), dtype=np.float32)
    pivots = [x.mean(axis=0) for x in rows]
    centred = [x - p for x, p in zip(rows, pivots, strict=True)]
    grams = [syrk(1.0, x.T) for x in centred]
    totals = [np.zeros(g.shape, order="F") for g in grams]
    logits = [(unit, v) for unit, v in zip(units, values, strict=True) if len(v) > 1]
    sums = [(unit.start_sum(), v) for unit, v in logits]
    steps: dict[str, Callable[[], Any]] = {
        "reading": lambda: [unit.read(arrays, graph, n_real) for unit in units],
        "channels: about the pivot": lambda: [x - p for x, p in zip(rows, pivots, strict=True)],
        "channels: float32 Gram": lambda: [syrk(1.0, x.T) for x in centred],
        "channels: into float64": lambda: [t.__iadd__(g) for t, g in zip(totals, grams, strict=True)],
        "queries and keys": lambda: [running.update(*v) for running, v in sums],
    }
    print("| folding, one thread: ms an image | |\n|---|---|")
    with threadpool_limits(1, user_api="blas"):
        for what, step in steps.items():
            step()
            print(f"| {what} | {min(timed(step) for _ in range(5)) / n_real * 1e3:.2f} |")
    print()


def print_stages(name: str, result: PruneResult) -> None:
    """Seconds of every stage of a whole run."""
    total = sum(stage.seconds for stage in result.stages)
    print(f"| {name}: seconds | {total:.1f} | share |\n|---|---|---|")
    for stage in result.stages:
        print(f"| {stage.stage} | {stage.seconds:.2f} | {stage.seconds / total:.0%} |")
    print()


def run_prune(model: Path, calib: Path, n_images: int | None, options: dict[str, Any]) -> PruneResult:
    """A whole run; what it writes goes again."""
    with tempfile.TemporaryDirectory() as folder:
        return prune_model(model, calib, Path(folder) / "pruned.onnx", n_images=n_images, **options)


def timed(step: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
