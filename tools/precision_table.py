"""Pruning and 8 bits together, in ONNX Runtime and in OpenVINO: every given model in float32, int8 dynamic and static,
and by NNCF -> accuracy and latency.

Converts, lets every file answer the same images in every runtime, and times all of them in the same turns, so that the
ratios hold on a machine that others use too. The first model in ONNX Runtime is what everything is compared with.
Prints a Markdown table, with versions and processor.

    .venv/bin/python tools/precision_table.py deit_tiny_patch16_224.onnx deit_tiny.pruned.onnx \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt

Where `openvino` is installed (make .venv-openvino/.installed), --provider cpu,openvino gives its rows as well; NNCF's
rows come with --nncf and the Python of an environment that has it (tools/nncf_int8.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from corp_onnx.bench.bench import bench_models
from corp_onnx.bench.values import BenchResult, BenchRow
from corp_onnx.evaluate.contest import open_contest
from corp_onnx.evaluate.scores import Score
from corp_onnx.graph import input_dims, load_model
from corp_onnx.images import open_images
from corp_onnx.images.recipe import find_recipe
from corp_onnx.latency.turns import Schedule
from corp_onnx.precision.conversion import ConvertSettings, Target
from corp_onnx.precision.convert import convert_model
from corp_onnx.run.openvino import list_places
from corp_onnx.run.runner import open_runner
from corp_onnx.run.views import prepare_views, stream_views
from corp_onnx.settings import CONFIDENCE, Preprocessing

TARGETS: dict[Target, str] = {"int8-dynamic": "int8 dynamic", "int8-static": "int8 static"}

NNCF_PROGRAM, NNCF_IMAGES = Path(__file__).with_name("nncf_int8.py"), 300
"""As many as NNCF takes by default."""

BATCH = 16
"""Images at a time while answers are compared."""

Entry = tuple[Path, str]
"""A file in a runtime."""


def main() -> None:
    """Convert every model, compare and time them together, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="the dense one first")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--provider", default="cpu", help="as of `corp-onnx bench`; the first is that of the baseline")
    parser.add_argument("--nncf", type=Path, metavar="PYTHON", help="of an environment with NNCF")
    parser.add_argument("--files", type=Path, help="keep the converted files here, and take those that are there")
    parser.add_argument("--limit", type=int, help="of the validation images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()

    providers = [name for word in args.provider.split(",") for name in list_places(word)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.files or Path(scratch)
        folder.mkdir(exist_ok=True)
        files = {path: name for model in args.models for path, name in convert(model, args, folder).items()}
        schedule = Schedule(repeats=args.repeats)
        timed = bench_models(
            list(files), batches=[args.batch], providers=providers, threads=args.threads, schedule=schedule
        )
        scores = compare_answers([(path, name) for name in providers for path in files], args)
    print_table(timed, files, scores, args)


def convert(model: Path, args: argparse.Namespace, folder: Path) -> dict[Path, str]:
    """A model in every precision: path -> what the table calls it."""
    files = {model: f"{model.stem}, float32"}
    for target, name in TARGETS.items():
        output = folder / f"{model.stem}.{target}.onnx"
        calib = args.calib if target == "int8-static" else None
        if not output.exists():
            convert_model(model, output, settings=ConvertSettings(target), calib=calib)
        files[output] = f"{model.stem}, {name}"
    if args.nncf is not None:
        output = folder / f"{model.stem}.nncf.onnx"
        if not output.exists():
            quantise_with_nncf(model, args, output)
        files[output] = f"{model.stem}, int8 by NNCF"
    return files


def quantise_with_nncf(model: Path, args: argparse.Namespace, output: Path) -> None:
    """A model by NNCF, on calibration images without labels."""
    loaded = load_model(model)
    recipe = find_recipe(loaded.metadata, next(iter(input_dims(loaded).values())))
    images = open_images(args.calib, recipe, limit=NNCF_IMAGES, seed=0)
    pixels = output.with_suffix(".npy")
    np.save(pixels, np.concatenate([next(iter(batch.arrays.values())) for batch in images.batches(BATCH)]))
    command = [str(args.nncf), str(NNCF_PROGRAM), str(model), str(pixels), str(output)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    pixels.unlink()
    print(f"{output.name}: NNCF {done.stdout.split()[-1]}, {images.n_images} images", file=sys.stderr)


def compare_answers(entries: list[Entry], args: argparse.Namespace) -> dict[Entry, Score]:
    """Every file in every runtime on the validation images, against the first."""
    runners = [open_runner(path, provider=provider, threads=args.threads) for path, provider in entries]
    images = open_images(args.val, labels=args.labels or "folders", limit=args.limit, seed=0)
    views = prepare_views(images, runners, None, Preprocessing(), has_reference=True)
    contest = open_contest(views, has_reference=True)
    for batches in stream_views(images, views, BATCH):
        contest.add(batches, images)
    return {entry: contest.score(i, views[i].recipe, CONFIDENCE) for i, entry in enumerate(entries)}


def print_table(
    timed: BenchResult, files: dict[Path, str], scores: dict[Entry, Score], args: argparse.Namespace
) -> None:
    """One row a file and runtime."""
    versions = ", ".join(f"{name} {found}" for name, found in timed.environment.versions.items() if name in SAID)
    print(f"{timed.environment.machine}; {versions}; {args.threads} threads, batch {args.batch}, "
          f"{args.repeats} rounds in turns\n")  # fmt: skip
    print(
        "| model | runtime | computed in | MB | top-1 | agreement | KL | p50 ms | latency over the first (quartiles) |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    sizes = {model.path: model.n_bytes for model in timed.models}
    for row in timed.rows:
        path = Path(row.model)
        print(_row(files[path], row, sizes[row.model], scores[path, row.provider]))


SAID = ("onnxruntime", "openvino")


def _row(name: str, row: BenchRow, n_bytes: int, score: Score) -> str:
    ratio = row.speed.speedup if row.across is None else row.across.speedup
    latency = "1" if ratio is None else f"{1 / ratio.median:.3f} ({1 / ratio.q3:.3f} to {1 / ratio.q1:.3f})"
    return (
        f"| {name} | {row.provider} | {row.precision or '-'} | {n_bytes / 1e6:.1f} | {_percent(score.top1)} "
        f"| {_percent(score.agreement)} | {score.kl or 0:.4f} | {1e3 * row.speed.latency.p50:.0f} | {latency} |"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
