"""What the tables of answers have in common: the model and the images that a command names, and one measured row.

Used by paper_table.py, best_table.py and amp_table.py; no program of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Int

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import choose_units, collect_moments
from corp_onnx.calibrate.data import HELD_OUT_FRACTION, MAX_HELD_OUT
from corp_onnx.graph import Graph, input_dims, load_model
from corp_onnx.images import ImageSet, open_images, split_holdout
from corp_onnx.images.recipe import find_recipe
from corp_onnx.rewrite import apply_changes
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.problem import Outcome, Situation
from corp_onnx.search.strategy import BestSearch
from corp_onnx.tokens.trim import TrimPlan, plan_trim, trim_model


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

    def draw(self, seed: int, n_images: int | None = None) -> Situation:
        """What a strategy looks at, for one draw of the calibration images, at most n of them."""
        blocks = find_blocks(self.graph)
        units = choose_units(blocks, vo=True)
        calibration, held_out = split_images(self.images, seed)
        if n_images is not None:
            drawn = np.random.default_rng(seed).permutation(calibration.n_images)[:n_images]
            calibration = calibration.select(np.sort(drawn))
        moments = collect_moments(self.graph, units, calibration)
        return Situation(self.graph, blocks, units, moments, calibration, held_out, 8, "cpu", seed, trim=self.trim)

    def measure(self, situation: Situation, outcome: Outcome) -> Row:
        """Cost and answers of the model that `corp-onnx prune` would write."""
        proto = _finish(situation, outcome)
        tally = self.judge.evaluate(proto, self.labels)
        assert tally.n_top1 is not None
        assert tally.n_agree is not None
        assert tally.kl_sum is not None
        kept = probe_graph(replace(self.graph.model, proto=proto)).cost.total / self.graph.cost.total
        n = tally.n_samples
        return Row(kept, tally.n_top1 / n, tally.n_agree / n, tally.kl_sum / n)


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


def keep_tokens(search: BestSearch) -> BestSearch:
    """The same curves and probes for a model whose last block computes every token."""
    situation = replace(search.situation, trim=None)
    facts = {u.key: u for u in situation.unit_facts}
    choices = tuple(replace(c, macs_per_width=facts[c.key].macs / c.width) for c in search.choices)
    return replace(search, situation=situation, choices=choices)


def print_rows(rows: Mapping[str, Sequence[Row]]) -> None:
    """The Markdown table: mean and half the range over the seeds."""
    print("\n| model | MACs kept | top-1 | agreement | KL | seeds |\n|---|---|---|---|---|---|")
    for name, found in rows.items():
        macs, top1, agreement = ([100 * getattr(r, f) for r in found] for f in ("macs", "top1", "agreement"))
        cells = [f"{_spread(macs)} %", _spread(top1), _spread(agreement), _spread([r.kl for r in found], 3)]
        print(f"| {name} | {' | '.join(cells)} | {len(found)} |")


def _finish(situation: Situation, outcome: Outcome) -> onnx.ModelProto:
    s = situation
    proto = apply_changes(s.graph, s.blocks, outcome.changes, {}, apart=s.trim.apart if s.trim else ())
    if s.trim is None:
        return proto
    trimmed = trim_model(replace(s.graph.model, proto=proto))
    return proto if trimmed is None else trimmed[0]


def _spread(values: list[float], digits: int = 1) -> str:
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")
