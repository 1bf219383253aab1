"""Pruning and 8 bits together: every given model in float32, dynamic int8 and static int8 -> accuracy and latency.

Converts, evaluates all files in one pass and times them in turns, so that the ratios hold on a machine that others use
too. The first model is the dense one, which everything is compared with. Prints a Markdown table.

    .venv/bin/python tools/precision_table.py deit_tiny_patch16_224.onnx deit_tiny.pruned.onnx \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from corp_onnx.bench.bench import BenchRow, bench_models
from corp_onnx.evaluate import Score, evaluate_models
from corp_onnx.images import open_images
from corp_onnx.latency.turns import Schedule
from corp_onnx.precision.conversion import ConvertSettings, Target
from corp_onnx.precision.convert import convert_model

TARGETS: dict[Target, str] = {"int8-dynamic": "int8 dynamic", "int8-static": "int8 static"}


def main() -> None:
    """Convert every model, evaluate and time them together, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="the dense one first")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        files: dict[Path, str] = {}
        for model in args.models:
            files[model] = f"{model.stem}, float32"
            for target, name in TARGETS.items():
                output = Path(folder) / f"{model.stem}.{target}.onnx"
                calib = args.calib if target == "int8-static" else None
                convert_model(model, output, settings=ConvertSettings(target), calib=calib)
                files[output] = f"{model.stem}, {name}"
        data = open_images(args.val, labels=args.labels or "folders")
        scores = evaluate_models(list(files), data, reference=args.models[0]).scores
        schedule = Schedule(repeats=args.repeats)
        timed = bench_models(
            list(files), batches=[args.batch], providers=["cpu"], threads=args.threads, schedule=schedule
        )
    print(f"{timed.environment.machine}, {args.threads} threads, batch {args.batch}, {args.repeats} rounds in turns\n")
    print("| model | MB | top-1 | agreement | KL | p50 ms | latency over dense (quartiles) |")
    print("|---|---|---|---|---|---|---|")
    sizes = {model.path: model.n_bytes for model in timed.models}
    for (path, name), score, row in zip(files.items(), scores, timed.rows, strict=True):
        print(_row(name, sizes[str(path)], score, row))


def _row(name: str, n_bytes: int, score: Score, row: BenchRow) -> str:
    ratio = row.speed.speedup
    latency = "1" if ratio is None else f"{1 / ratio.median:.3f} ({1 / ratio.q3:.3f} to {1 / ratio.q1:.3f})"
    return (
        f"| {name} | {n_bytes / 1e6:.1f} | {_percent(score.top1)} | {_percent(score.agreement)} | {score.kl or 0:.4f} "
        f"| {1e3 * row.speed.latency.p50:.0f} | {latency} |"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
