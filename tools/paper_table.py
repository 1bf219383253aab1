"""The paper's method on a real model, row by row: units pruned x compensation x ranking -> accuracy.

One calibration serves every row (the moments do not depend on the cut); one pass over the validation images evaluates
all models. Prints a Markdown table.

    .venv/bin/python tools/paper_table.py ../shared/models/deit_tiny_patch16_224.onnx \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from corp_onnx.search.plan import Cut, gather_changes, plan_paper
from study import open_dense, split_images, study_parser

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import choose_units, collect_moments
from corp_onnx.evaluate import evaluate_models
from corp_onnx.graph import load_model
from corp_onnx.graph.write import write_model
from corp_onnx.images import open_images
from corp_onnx.rewrite import apply_changes
from corp_onnx.run.probe import probe_graph

ROWS = {
    "MLP 50 %, no compensation": Cut(0.5, 0.0, compensate=False),
    "MLP 50 %": Cut(0.5, 0.0),
    "QK 50 %, no compensation": Cut(0.0, 0.5, compensate=False),
    "QK 50 %": Cut(0.0, 0.5),
    "MLP + QK 50 %, no compensation": Cut(0.5, 0.5, compensate=False),
    "MLP + QK 50 %, magnitude rank": Cut(0.5, 0.5, rank="magnitude"),
    "MLP + QK 50 %": Cut(0.5, 0.5),
}


def main() -> None:
    """Prune every row's model, evaluate them together, print the table."""
    parser = study_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ridge", type=float, nargs="*", help="also try these ridges on the last row")
    args = parser.parse_args()

    graph, images = open_dense(args)
    blocks = find_blocks(graph)
    units = choose_units(blocks)
    calibration, _ = split_images(images, args.seed)
    moments = collect_moments(graph, units, calibration)
    rows = dict(ROWS) | {f"MLP + QK 50 %, ridge {r:g}": Cut(0.5, 0.5, ridge=r) for r in args.ridge or []}
    with tempfile.TemporaryDirectory() as folder:
        paths, kept = [], []
        for i, cut in enumerate(rows.values()):
            wanted = choose_units(blocks, mlp=cut.mlp > 0, qk=cut.attn > 0)
            plans = plan_paper(graph, wanted, moments, cut)
            path = Path(folder) / f"{i}.onnx"
            write_model(apply_changes(graph, blocks, gather_changes(plans), {}), path, graph.model.folder)
            paths.append(path)
            kept.append(probe_graph(load_model(path)).cost.total / graph.cost.total)
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
