"""How often a promise holds: prune with few and many images, and count on images that it never saw.

For every number of calibration images and every seed one run of `corp-onnx prune` without a budget; then the agreement
with the dense model on the test images, which is as near to the truth as there is. A promise holds where that is not
below it. Prints a Markdown table.

    .venv/bin/python tools/promise_table.py models/demo_vit.onnx --calib models/calib --test models/test
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import open_images
from corp_onnx.prune import prune_model
from corp_onnx.results import PruneResult
from corp_onnx.settings import PruneSettings


def main() -> None:
    """Run, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[20, 40, 80, 160, 300])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()

    print("| images | report | MACs kept | measured | promised | on the test images | promises that held |")
    print("|---|---|---|---|---|---|---|")
    all_held: list[bool] = []
    for n in args.images:
        runs = [_run(args.model, args.calib, args.test, n, seed) for seed in range(args.seeds)]
        held = [truth >= low for _, low, truth in runs]
        all_held += held
        results = [result for result, _, _ in runs]
        cells = [
            str(n), str(results[0].held_out.n_images), _spread([r.pruned.macs / r.dense.macs for r in results]),
            _spread([r.held_out.promise.value for r in results]), _spread([low for _, low, _ in runs]),
            _spread([truth for _, _, truth in runs]), f"{sum(held)} of {len(held)}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\n{sum(all_held)} of {len(all_held)} promises held.")


def _run(model: Path, calib: Path, test: Path, n_images: int, seed: int) -> tuple[PruneResult, float, float]:
    """(the run, what it promises, the agreement on the test images)."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pruned.onnx"
        result = prune_model(model, calib, output, settings=PruneSettings(n_images=n_images, seed=seed))
        truth = evaluate_models([output], open_images(test), reference=model).scores[0].agreement
    assert truth is not None
    return result, result.held_out.promise.low or 0.0, truth


def _spread(values: list[float]) -> str:
    return f"{min(values):.1%} to {max(values):.1%}"


if __name__ == "__main__":
    main()
