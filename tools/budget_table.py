"""What budgets cost beside each other and beside plain inference over the same images, in one run, in turns.

    .venv/bin/python tools/budget_table.py deit_tiny.onnx --calib photos/ [--rounds 1] [--no-promise]

Every figure is the wall time of a program of its own, as in tools/calibration_table.py. In a round:

    plain       all images through the model
    first       prune --macs 0.617 --cache DIR, nothing in the cache
    second      prune --macs 0.5 --cache DIR, which finds what the first found
    calibrate   what the first does before it knows a budget, kept in a file
    promise     prune without options: the smallest model that keeps 90 % of the answers
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from calibration_table import run_timed

from corp_onnx.results import describe_environment

FIRST, SECOND = ("--macs", "0.617"), ("--macs", "0.5")


def main() -> None:
    """Run everything in turns and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--no-promise", action="store_true", help="without the search that no option asks for")
    args = parser.parse_args()
    rounds = [run_round(args.model, args.calib, promise=not args.no_promise) for _ in range(args.rounds)]
    ratios = {
        "first budget / plain": [r["first"] / r["plain"] for r in rounds],
        "second budget / plain": [r["second"] / r["plain"] for r in rounds],
        "second / first": [r["second"] / r["first"] for r in rounds],
        "calibrate / plain": [r["calibrate"] / r["plain"] for r in rounds],
    }
    if not args.no_promise:
        ratios["without options / plain"] = [r["promise"] / r["plain"] for r in rounds]
        ratios["without options / first budget"] = [r["promise"] / r["first"] for r in rounds]
    print("| ratio | median | least | most | rounds |\n|---|---|---|---|---|")
    for name, found in ratios.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} | {len(found)} |")
    plain = [r["plain"] for r in rounds]
    about = describe_environment("cpu")
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    print(f"\nplain inference {min(plain):.1f} to {max(plain):.1f} s; {about.machine}, {versions}")


def run_round(model: Path, calib: Path, *, promise: bool) -> dict[str, float]:
    """Seconds of every program."""
    with tempfile.TemporaryDirectory() as folder:
        verb = [sys.executable, "-m", "corp_onnx"]
        prune = [*verb, "prune", model, "--calib", calib, "--force", "-o", Path(folder) / "pruned.onnx"]
        cache = ["--cache", Path(folder) / "cache"]
        infer = [sys.executable, Path(__file__).parent / "calibration_table.py", model, "--calib", calib]
        programs: dict[str, list[object]] = {
            "plain": [*infer, "--only", "infer"],
            "first": [*prune, *FIRST, *cache],
            "second": [*prune, *SECOND, *cache],
            "calibrate": [*verb, "calibrate", model, "--calib", calib, "-o", Path(folder) / "c.safetensors"],
            **({"promise": prune} if promise else {}),
        }
        seconds: dict[str, float] = {}
        for name, command in programs.items():
            seconds[name] = run_timed(command)[0]
            print(f"{name} {seconds[name]:.1f} s", file=sys.stderr, flush=True)
        return seconds


if __name__ == "__main__":
    main()
