"""The paper's Table 3 for an ONNX file: cost and speed at removed fractions of every MLP and query/key head.

Prunes the model by `--preset paper` at each fraction, then runs all of them in turns (`corp-onnx bench`). Speed depends
on widths and not on weights, so a few calibration images and random weights will do.

    .venv/bin/python tools/speed_table.py deit_tiny.onnx --calib photos/ [--images 32] [--batch 1 8] [--seconds 120]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from corp_onnx.bench.bench import bench_models
from corp_onnx.bench.values import BenchResult
from corp_onnx.latency.turns import Schedule
from corp_onnx.prune import prune_model
from corp_onnx.results import PruneResult
from corp_onnx.settings import PAPER, Fractions, PruneSettings

FRACTIONS = (0.25, 0.5, 0.63, 0.69, 0.75)
"""Those of the paper."""


def main() -> None:
    """Prune, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pruned: list[PruneResult] = []
        for fraction in FRACTIONS:
            settings = PruneSettings(replace(PAPER, widths=Fractions(fraction, fraction)), n_images=args.images)
            pruned.append(prune_model(args.model, args.calib, Path(folder) / f"{fraction}.onnx", settings=settings))
            print(f"pruned {fraction:.0%}", flush=True)
        paths = [args.model, *(Path(result.pruned.path) for result in pruned)]
        schedule = Schedule(seconds=args.seconds)
        measured = bench_models(paths, batches=args.batch, providers=["cpu"], threads=args.threads, schedule=schedule)
    for batch in args.batch:
        print(f"\nbatch {batch}\n")
        print_table(measured, pruned, batch)
    print(f"\n{measured.environment.machine}, onnxruntime {measured.environment.versions.get('onnxruntime')}, "
          f"threads {args.threads or 'all'}, models in turns")  # fmt: skip


def print_table(measured: BenchResult, pruned: list[PruneResult], batch: int) -> None:
    """One batch size as Markdown; of speed-ups the median of paired ratios with its middle half."""
    print("| removed | parameters | MACs | p50 | images/s | speed-up | of what MACs promise |\n|" + "---|" * 7)
    dense = pruned[0].dense
    facts = [dense, *(result.pruned for result in pruned)]
    rows = [row for row in measured.rows if row.batch == batch]
    for fraction, model, row in zip((0.0, *FRACTIONS), facts, rows, strict=True):
        latency, ratio = row.speed.latency, row.speed.speedup
        speedup = "1" if ratio is None else f"{ratio.median:.2f} ({ratio.q1:.2f} to {ratio.q3:.2f})"
        achieved = "" if row.achieved is None else f"{row.achieved:.0%}"
        cells = (
            f"{fraction:.0%}" if fraction else "dense",
            f"{model.n_parameters / 1e6:.2f} M ({model.n_parameters / dense.n_parameters:.1%})",
            f"{model.macs / 1e9:.3f} G ({model.macs / dense.macs:.1%})",
            f"{latency.p50 * 1e3:.1f} ms",
            f"{row.speed.throughput:.1f}",
            speedup,
            achieved,
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
