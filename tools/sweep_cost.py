"""What a sweep costs beside one prune: `prune --macs` at one budget, then a sweep of eight, at equal settings.

    .venv/bin/python tools/sweep_cost.py deit_tiny_patch16_224.onnx --calib calib --images 96 [--behind]

Each runs in a process of its own; with `--behind` the prune runs once more behind the sweep, and the ratio is that to
the mean of the two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUDGETS = (0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5)


def run(*arguments: object) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "corp_onnx", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--macs", type=float, default=0.6, help="of the single run")
    parser.add_argument("--behind", action="store_true", help="the single run once more")
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        single = [found.model, "--calib", found.calib, "--images", found.images, "--macs", found.macs, "-o"]
        alone = [run("prune", *single, at / "before.onnx")]
        budgets = ["--calib-images", found.images, "--budgets", ",".join(map(str, BUDGETS))]
        swept = run("sweep", found.model, "--calib", found.calib, *budgets, "-o", at / "sweep")
        alone += [run("prune", *single, at / "behind.onnx")] if found.behind else []
        points = json.loads((at / "sweep" / "sweep.json").read_text(encoding="utf-8"))["points"]
        size = sum(file.stat().st_size for file in (at / "sweep").glob("*.safetensors"))
    each = [round(point["seconds"], 1) for point in points if point["kind"] != "dense"]
    spelled = " and ".join(f"{seconds:.1f} s" for seconds in alone)
    print(f"prune: {spelled}; sweep of {len(BUDGETS)}: {swept:.1f} s, points {each}")
    print(f"ratio: {swept * len(alone) / sum(alone):.2f}; calibration file {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
