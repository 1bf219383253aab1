"""What the search costs beside plain inference with ONNX Runtime over the same images, in turns, now and before.

    .venv/bin/python tools/search_table.py deit_tiny.onnx --calib photos/ [--images 192] [--rounds 1]
        [--before CHECKOUT] [--runs "--macs 0.617" "--min-agreement 0.95"]

Every figure is the wall time of a program of its own (as in tools/calibration_table.py). With --before the same runs
are made with the package of another checkout as well; it needs the same libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from corp_onnx.calibrate.data import open_for_model
from corp_onnx.graph import load_model
from corp_onnx.results import describe_environment
from corp_onnx.run.sessions import open_session
from corp_onnx.settings import Preprocessing

BATCH = 8
HERE = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run everything in turns and print a Markdown table; or plain inference, for itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=int, help="at the most (all)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", type=Path, help="another checkout, which is run besides")
    parser.add_argument("--runs", nargs="*", default=["--macs 0.617"], help="options of prune")
    parser.add_argument("--only-infer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model, args.calib = args.model.resolve(), args.calib.resolve()
    args.before = args.before.resolve() if args.before else None
    if args.only_infer:
        infer(args.model, args.calib, args.images)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """The table."""
    checkouts = {"now": HERE} | ({"before": args.before} if args.before else {})
    found: dict[tuple[str, str], list[float]] = {}
    plain: list[float] = []
    some = [] if args.images is None else ["--images", args.images]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        for _ in range(args.rounds):
            plain.append(run_timed(HERE, [__file__, args.model, "--calib", args.calib, "--only-infer", *some]))
            for options in args.runs:
                for name, checkout in checkouts.items():
                    prune = ["-m", "corp_onnx", "prune", args.model, "--calib", args.calib, "--force", *some]
                    where = ["-o", Path(folder) / "pruned.onnx", "--report", report]
                    seconds = run_timed(checkout, [*prune, *where, *options.split()])
                    found.setdefault((options, name), []).append(seconds / plain[-1])
                    print(f"{options}, {name}: {seconds:.1f} s; {describe(report)}", file=sys.stderr, flush=True)
    print("| over plain inference | | median | least | most | rounds |\n|---|---|---|---|---|---|")
    for (options, name), ratios in found.items():
        spread = f"{min(ratios):.1f} | {max(ratios):.1f} | {len(ratios)}"
        print(f"| `{options}` | {name} | {statistics.median(ratios):.1f} | {spread} |")
    about = describe_environment("cpu")
    print(f"\nplain inference {statistics.median(plain):.1f} s; {about.machine}, "
          + ", ".join(f"{name} {version}" for name, version in about.versions.items()))  # fmt: skip


def describe(report: Path) -> str:
    """What a run ended with."""
    result = json.loads(report.read_text())
    stages = ", ".join(f"{stage['stage']} {stage['seconds']:.1f}" for stage in result["stages"])
    metrics = {m["name"]: m["value"] for m in result["held_out"]["outputs"][0]["metrics"]}
    kept = result["pruned"]["macs"] / result["dense"]["macs"]
    of_promise = " ".join(note for note in result["notes"] if "chose the size" in note)
    return (
        f"{kept:.3f} of the MACs, agreement {metrics['agreement']:.3f}, KL {metrics['kl']:.4f}; {stages}; {of_promise}"
    )


def run_timed(checkout: Path, arguments: list[object]) -> float:
    """Seconds of a program with the package of a checkout."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *(str(part) for part in arguments)], capture_output=True, text=True, check=False,
        cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)},  # `-m` looks there first
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def infer(model: Path, calib: Path, n_images: int | None) -> None:
    """The images through the model."""
    images = open_for_model(load_model(model), calib, Preprocessing(), limit=n_images, seed=0, minimum=2)
    session = open_session(model)
    for feeds, _ in session.stream(images, BATCH):
        session.run(None, feeds)


if __name__ == "__main__":
    main()
