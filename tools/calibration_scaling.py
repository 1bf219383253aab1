"""Cost of calibration against images and against depth, and beside plain inference: is it linear, and how steep?

    .venv/bin/python tools/calibration_scaling.py deit_tiny.onnx --calib photos/ [--rounds 3] [--parts images depth]

Everything in one process, in turns, on photographs that are decoded already; a session is opened anew each time, for
plain inference too. Models of random weights are those of tools/shape_model.py. Medians over the rounds; a line is
fitted to them by least squares, its residual is the largest distance of a median from the line over that median.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from shape_model import SHAPES, write_vit

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import open_for_model
from corp_onnx.graph import Graph, load_model
from corp_onnx.images import Images
from corp_onnx.memory import resident_bytes
from corp_onnx.results import describe_environment
from corp_onnx.run.pace import choose_pace
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.tapped import open_tapped, stream_together
from corp_onnx.settings import BEST, PAPER, Preprocessing
from corp_onnx.threads import Crew, few_blas_threads
from corp_onnx.units import list_units

BATCH = 8
N_IMAGES = (64, 128, 256, 512)
DEPTHS = (3, 6, 12, 24)
DEPTH_IMAGES, BASE_IMAGES = 64, 16


@few_blas_threads()
def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["images", "depth", "base"])
    args = parser.parse_args()
    graph = probe_graph(load_model(args.model))
    if "images" in args.parts:
        print(f"by images, {args.model.name}, seconds")
        images = {n: decode(graph, args.calib, n) for n in N_IMAGES}
        print_line("images", take_turns({n: lambda n=n: collect(graph, images[n]) for n in N_IMAGES}, args.rounds))
    with tempfile.TemporaryDirectory() as folder:
        if "depth" in args.parts:
            made = {n: write(Path(folder) / f"{n}.onnx", n) for n in DEPTHS}
            few = decode(graph, args.calib, DEPTH_IMAGES)
            print(f"by depth, tiny of random weights, {DEPTH_IMAGES} images, seconds")
            print_line("blocks", take_turns({n: lambda n=n: collect(made[n], few) for n in DEPTHS}, args.rounds))
        if "base" in args.parts:
            base = write(Path(folder) / "base.onnx", SHAPES["base"].n_blocks, "base")
            compare(base, decode(base, args.calib, BASE_IMAGES), args.rounds)
    about = describe_environment("cpu")
    print(f"\n{about.machine}, " + ", ".join(f"{name} {version}" for name, version in about.versions.items()))


def compare(graph: Graph, images: Images, rounds: int) -> None:
    """Calibration of a large model beside plain inference."""
    before = resident_bytes() or 0
    found = take_turns(
        {"plain": lambda: infer(graph, images), "paper": lambda: collect(graph, images, PAPER.units),
         "best": lambda: collect(graph, images)}, rounds,
    )  # fmt: skip
    plain = found["plain"]
    for name, seconds in found.items():
        ratios = sorted(s / p for s, p in zip(seconds, plain, strict=True))
        median, spread = statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        each = statistics.median(seconds) / BASE_IMAGES
        print(f"base, {BASE_IMAGES} images, {name}: {each:.3f} s an image, over plain {median:.2f} ({spread})")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB, {before >> 20} "
          "MiB before this model ran")  # fmt: skip


def take_turns(calls: Mapping[object, Callable[[], None]], rounds: int) -> dict[object, list[float]]:
    """Seconds of every call in every round; a first round is not counted."""
    seconds: dict[object, list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 1):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def print_line(what: str, seconds: Mapping[object, Sequence[float]]) -> None:
    """The medians with their spread, and the line through them."""
    x = np.array([int(str(key)) for key in seconds], float)
    y = np.array([statistics.median(found) for found in seconds.values()])
    slope, start = np.polyfit(x, y, 1)
    off = np.abs(slope * x + start - y) / y
    for key, found in seconds.items():
        print(f"| {key} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} |")
    print(f"slope {1000 * slope:.2f} ms for each of the {what}, {start:.2f} s whatever there are, residual at the most "
          f"{100 * off.max():.1f} %")  # fmt: skip


def collect(graph: Graph, images: Images, kinds: Sequence[str] = BEST.units) -> None:
    """One calibration."""
    collect_moments(graph, list_units(find_blocks(graph), set(kinds)), images, batch_size=BATCH)


def infer(graph: Graph, images: Images) -> None:
    """The images through the model, at the pace of calibration."""
    pace = choose_pace(BATCH)
    session = open_tapped(graph.model, [], threads=pace.threads)
    with Crew() as crew:
        for _ in stream_together([session], images, pace, crew):
            pass


def write(path: Path, n_blocks: int, shape: str = "tiny") -> Graph:
    """A model of random weights."""
    onnx.save(write_vit(replace(SHAPES[shape], n_blocks=n_blocks)), path)
    return probe_graph(load_model(path))


def decode(graph: Graph, calib: Path, n_images: int) -> Images:
    """Photographs that are decoded already."""
    images = open_for_model(graph.model, calib, Preprocessing(), limit=n_images, seed=0, minimum=2)
    for _ in images.batches(BATCH):
        pass
    return images


if __name__ == "__main__":
    main()
