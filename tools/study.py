"""What the tables of answers have in common: the model and the images that a command names, and one measured row.

Used by paper_table.py, best_table.py and amp_table.py; no program of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import HELD_OUT_FRACTION, MAX_HELD_OUT
from corp_onnx.graph import Graph, input_dims, load_model
from corp_onnx.images import ImageSet, open_images, split_holdout
from corp_onnx.images.recipe import find_recipe
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.problem import Problem, Solution
from corp_onnx.search.search import Search
from corp_onnx.settings import BEST
from corp_onnx.tokens.trim import TrimPlan, plan_trim
from corp_onnx.units import list_units


@dataclass(frozen=True, slots=True)
class Row:
    """One measured model; shares between 0 and 1, KL in nats."""

    macs: float
    top1: float
    agreement: float
    kl: float


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """The dense model, its calibration images, and its answers on the validation images."""

    graph: Graph
    trim: TrimPlan | None
    images: ImageSet
    judge: Evaluator
    labels: Int[np.ndarray, " n"]

    def draw(self, seed: int, n_images: int | None = None) -> Problem:
        """What a strategy looks at, for one draw of the calibration images, at most n of them."""
        blocks = find_blocks(self.graph)
        units = list_units(blocks, BEST.units)
        calibration, held_out = split_images(self.images, seed)
        if n_images is not None:
            drawn = np.random.default_rng(seed).permutation(calibration.n_images)[:n_images]
            calibration = calibration.select(np.sort(drawn))
        moments = collect_moments(self.graph, units, calibration)
        return Problem(
            self.graph, blocks, units, BEST, moments, calibration, held_out, seed=seed, trim=self.trim
        )  # fmt: skip

    def measure(self, problem: Problem, solution: Solution) -> Row:
        """Cost and answers of the model that `corp-onnx prune` would write."""
        proto = plan_rewrite(solution.changes, problem.trim).make(problem.graph)
        tally = self.judge.evaluate(proto, self.labels)
        assert tally.n_top1 is not None
        assert tally.agreement is not None
        assert tally.kl is not None
        kept = probe_graph(replace(self.graph.model, proto=proto)).cost.total / self.graph.cost.total
        return Row(kept, tally.n_top1 / tally.n_samples, tally.agreement, tally.kl)


def study_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that `open_study` reads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="a file of class names; default: the class folders of --val")
    return parser


def open_dense(args: argparse.Namespace) -> tuple[Graph, ImageSet]:
    """The dense model and the calibration images that a command names."""
    graph = probe_graph(load_model(args.model))
    recipe = find_recipe(graph.model.metadata, next(iter(input_dims(graph.model).values())))
    return graph, open_images(args.calib, recipe)


def open_study(args: argparse.Namespace) -> Study:
    """The model and the images that a command names; the dense answers are taken here."""
    graph, images = open_dense(args)
    val = open_images(args.val, images.recipe, labels=args.labels or "folders")
    judge = prepare_evaluator(graph.model, val, batch_size=16)
    labels = np.concatenate([b.labels for b in val.batches(64) if b.labels is not None])
    trim, _ = plan_trim(graph, find_blocks(graph))
    return Study(graph, trim, images, judge, labels)


def split_images(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """(images for the moments, images held back) as `corp-onnx prune --macs` splits them."""
    return split_holdout(images, min(HELD_OUT_FRACTION, MAX_HELD_OUT / images.n_images), seed)


def keep_tokens(search: Search) -> Search:
    """The same curves and probes for a model whose last block computes every token."""
    return replace(search, problem=replace(search.problem, trim=None))


def print_rows(rows: Mapping[str, Sequence[Row]]) -> None:
    """The Markdown table: mean and half the range over the seeds."""
    print("\n| model | MACs kept | top-1 | agreement | KL | seeds |\n|---|---|---|---|---|---|")
    for name, found in rows.items():
        macs, top1, agreement = ([100 * getattr(r, f) for r in found] for f in ("macs", "top1", "agreement"))
        cells = [f"{_spread(macs)} %", _spread(top1), _spread(agreement), _spread([r.kl for r in found], 3)]
        print(f"| {name} | {' | '.join(cells)} | {len(found)} |")


def _spread(values: list[float], digits: int = 1) -> str:
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")
