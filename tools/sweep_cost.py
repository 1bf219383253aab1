"""What a sweep costs beside one prune: `prune --macs` at one budget, then a sweep of eight, at equal settings.

    .venv/bin/python tools/sweep_cost.py deit_tiny_patch16_224.onnx --calib calib --images 96

The prune is run before and behind the sweep, each in a process of its own, and so is the sweep; the ratio is that to
their mean.
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
    found = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        single = [found.model, "--calib", found.calib, "--images", found.images, "--macs", found.macs, "-o"]
        before = run("prune", *single, at / "before.onnx")
        budgets = ["--calib-images", found.images, "--budgets", ",".join(map(str, BUDGETS))]
        swept = run("sweep", found.model, "--calib", found.calib, *budgets, "-o", at / "sweep")
        behind = run("prune", *single, at / "behind.onnx")
        points = json.loads((at / "sweep" / "sweep.json").read_text(encoding="utf-8"))["points"]
        size = sum(file.stat().st_size for file in (at / "sweep").glob("*.safetensors"))
    each = [round(point["seconds"], 1) for point in points if point["kind"] != "dense"]
    print(f"prune: {before:.1f} s and {behind:.1f} s; sweep of {len(BUDGETS)}: {swept:.1f} s, points {each}")
    print(f"ratio: {swept / ((before + behind) / 2):.2f}; calibration file {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
