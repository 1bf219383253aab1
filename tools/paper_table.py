"""The paper's method on a real model, row by row: units pruned x compensation x ranking -> accuracy.

One calibration serves every row (the moments do not depend on the cut); one pass over the validation images evaluates
all models. Prints a Markdown table.

    .venv/bin/python tools/paper_table.py ../shared/models/deit_tiny_patch16_224.onnx \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from study import open_dense, split_images, study_parser

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.checks.preflight import choose_units
from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import open_images
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.problem import Problem
from corp_onnx.search.strategy import follow_method
from corp_onnx.settings import PAPER, Fractions

MLP, QK, BOTH = (replace(PAPER, widths=Fractions(*removed)) for removed in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5)))
ROWS = {
    "MLP 50 %, no compensation": replace(MLP, compensate=False),
    "MLP 50 %, weighted rank": replace(MLP, rank="weighted"),
    "MLP 50 %": MLP,
    "QK 50 %, no compensation": replace(QK, compensate=False),
    "QK 50 %": QK,
    "MLP + QK 50 %, no compensation": replace(BOTH, compensate=False),
    "MLP + QK 50 %, magnitude rank": replace(BOTH, rank="magnitude"),
    "MLP + QK 50 %, weighted rank": replace(BOTH, rank="weighted"),
    "MLP + QK 50 %": BOTH,
}
"""`weighted` is the rank of the authors' own code, not that of the paper."""


def main() -> None:
    """Prune every row's model, evaluate them together, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ridge", type=float, nargs="*", help="also try these ridges on the last row")
    args = parser.parse_args()

    graph, images = open_dense(args)
    blocks = find_blocks(graph)
    units = choose_units(graph, blocks, PAPER)
    calibration, held_out = split_images(images, args.seed)
    moments = collect_moments(graph, units, calibration)
    rows = dict(ROWS) | {f"MLP + QK 50 %, ridge {r:g}": replace(BOTH, ridge=r) for r in args.ridge or []}
    with tempfile.TemporaryDirectory() as folder:
        paths, kept = [], []
        for i, method in enumerate(rows.values()):
            wanted = choose_units(graph, blocks, method)
            solution = follow_method(Problem(graph, blocks, wanted, method, moments, calibration, held_out))
            (pruned,) = plan_rewrite(solution.changes).write(graph, Path(folder) / f"{i}.onnx")
            paths.append(pruned.path)
            kept.append(probe_graph(pruned).cost.total / graph.cost.total)
        data = open_images(args.val, labels=args.labels or "folders")
        result = evaluate_models([args.model, *paths], data, reference=args.model)
    print(f"{calibration.n_images} calibration images, {result.n_images} validation images, {result.provider}\n")
    print("| removed | MACs kept | top-1 | top-5 | agreement | KL |\n|---|---|---|---|---|---|")
    for name, share, score in zip(["nothing (dense)", *rows], [1.0, *kept], result.scores, strict=True):
        print(
            f"| {name} | {share:.1%} | {_percent(score.top1)} | {_percent(score.top5)} | {_percent(score.agreement)} "
            f"| {score.kl or 0:.3f} |"
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
