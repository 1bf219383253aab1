"""What `--preset best` reaches on a real model: budgets x ingredients, over several draws of the calibration images.

Every row is one call of the strategy that `corp-onnx prune` follows; moments, curves and probes of a draw are shared by
its rows. Prints a Markdown table with mean and half the range over the seeds, the paper's method at equal MACs beside.

    .venv/bin/python tools/best_table.py ../shared/models/deit_tiny_patch16_224.onnx --seeds 0 1 2 \
        --calib ../shared/images/calib --val ../shared/images/val --labels ../shared/images/wordnet_ids.txt
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from corp_onnx.answers import Quiz, prepare_quiz
from corp_onnx.best import BestSettings
from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate import choose_units, collect_moments
from corp_onnx.graph import Graph, input_dims, load_model
from corp_onnx.images import ImageSet, open_images, split_holdout
from corp_onnx.liveness import find_dead_tokens
from corp_onnx.plan import Cut
from corp_onnx.probe import count_macs, probe_graph
from corp_onnx.recipe import find_recipe
from corp_onnx.rewrite import apply_changes
from corp_onnx.strategy import BestSearch, Outcome, Situation, follow_paper, prepare_search
from corp_onnx.trim import TrimPlan, plan_trim, trim_tokens

PAPER = {0.617: Cut(0.5, 0.5), 0.8: Cut(0.263, 0.25), 0.9: Cut(0.133, 0.125)}
"""The paper's fractions that keep about these shares of DeiT-Tiny's MACs: equal cost, not equal fractions."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured model."""

    macs: float
    top1: float
    agreement: float
    kl: float


def main() -> None:
    """Measure every row for every seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.617, 0.8, 0.9])
    parser.add_argument("--images", type=int, nargs="+", help="calibrate on so many; default: seven eighths")
    parser.add_argument("--ablations", action="store_true", help="at the first budget, one ingredient off at a time")
    args = parser.parse_args()

    graph = probe_graph(load_model(args.model))
    recipe = find_recipe(graph.model.metadata, next(iter(input_dims(graph.model).values())))
    val = open_images(args.val, recipe, labels=args.labels or "folders")
    judge = prepare_quiz(graph.model, val, batch_size=16)
    labels = np.concatenate([b.labels for b in val.batches(64) if b.labels is not None])
    rows: dict[str, list[Row]] = defaultdict(list)
    trim, _ = plan_trim(graph, find_blocks(graph))
    for seed, n_images in itertools.product(args.seeds, args.images or [None]):
        situation = make_situation(graph, open_images(args.calib, recipe), seed, n_images, trim)
        for row, outcome, with_trim in _outcomes(situation, args.budgets, args.ablations and seed == args.seeds[0]):
            name = f"{row}, {n_images} images" if n_images else row
            proto = finish_model(situation if with_trim else replace(situation, trim=None), outcome)
            rows[name].append(measure(graph, proto, judge, labels))
            print(f"seed {seed}: {name}: {rows[name][-1]}", flush=True)
    print_rows(rows)


def print_rows(rows: Mapping[str, Sequence[Row]]) -> None:
    """The Markdown table: mean and half the range over the seeds."""
    print("\n| model | MACs kept | top-1 | agreement | KL | seeds |\n|---|---|---|---|---|---|")
    for name, found in rows.items():
        macs, top1, agreement = ([100 * getattr(r, f) for r in found] for f in ("macs", "top1", "agreement"))
        cells = [f"{_spread(macs)} %", _spread(top1), _spread(agreement), _spread([r.kl for r in found], 3)]
        print(f"| {name} | {' | '.join(cells)} | {len(found)} |")


def make_situation(
    graph: Graph, images: ImageSet, seed: int, n_images: int | None = None, trim: TrimPlan | None = None
) -> Situation:
    """What a strategy looks at, for one draw of the calibration images."""
    blocks = find_blocks(graph)
    units = choose_units(blocks, vo=True)
    calibration, held_out = split_holdout(images, 0.125, seed)
    if n_images is not None:
        drawn = np.random.default_rng(seed).permutation(calibration.n_images)[:n_images]
        calibration = calibration.select(np.sort(drawn))
    moments = collect_moments(graph, units, calibration, n_image_grams=BestSettings(qk="per-image").n_image_grams)
    return Situation(graph, blocks, units, moments, calibration, held_out, 8, "cpu", seed, trim=trim)


def finish_model(situation: Situation, outcome: Outcome) -> onnx.ModelProto:
    """The graph that `corp-onnx prune` would write."""
    s, apart = situation, situation.trim.apart if situation.trim else ()
    proto = apply_changes(s.graph, s.blocks, outcome.changes, {}, apart=apart)
    graph = probe_graph(replace(s.graph.model, proto=proto))
    trim = find_dead_tokens(graph) if s.trim else None
    return proto if trim is None else trim_tokens(graph, trim)


def _outcomes(situation: Situation, budgets: list[float], ablations: bool):
    """(row name, outcome, whether the tokens that nobody reads are left out) one after another."""
    settings = BestSettings()
    search = prepare_search(situation, settings)
    whole = _with_all_tokens(search)
    plain = replace(situation, units=choose_units(situation.blocks))
    for budget in budgets:
        if budget in PAPER:
            yield f"{budget:.1%}, paper", follow_paper(plain, PAPER[budget]), False
        yield f"{budget:.1%}, best, all tokens computed", whole.refitted("macs", budget)[0], False
        yield f"{budget:.1%}, best, no refit", search.one_shot("macs", budget)[0], True
        yield f"{budget:.1%}, best", search.refitted("macs", budget)[0], True
    if ablations:
        yield from _ablations(situation, search, budgets[0])


def _with_all_tokens(search: BestSearch) -> BestSearch:
    """The same curves and probes where the last block computes every token."""
    situation = replace(search.situation, trim=None)
    facts = {u.key: u for u in situation.unit_facts}
    choices = tuple(replace(c, macs_per_width=facts[c.key].macs / c.width) for c in search.choices)
    return replace(search, situation=situation, choices=choices)


def _ablations(situation: Situation, search: BestSearch, budget: float):
    """One ingredient off at a time, the rest as in best."""
    off = {
        "no values": replace(search.settings, vo=False),
        "uniform widths": replace(search.settings, allocate="uniform"),
        "energy order": replace(search.settings, rank="energy"),
        "paper's queries and keys": replace(search.settings, qk="sylvester"),
        "queries and keys per image": replace(search.settings, qk="per-image"),
        "equal heads": replace(search.settings, equal_heads=True),
        "aligned to 16": replace(search.settings, align=16),
        "tokens counted alike": replace(search.settings, weigh_tokens=False),
    }
    for name, settings in off.items():
        units = choose_units(situation.blocks, vo=settings.vo)
        other = prepare_search(replace(situation, units=units), settings)
        outcome: Outcome = other.refitted("macs", budget)[0]
        yield f"{budget:.1%}, {name}", outcome, True


def measure(graph: Graph, proto: onnx.ModelProto, judge: Quiz, labels: np.ndarray) -> Row:
    """Cost and answers of one model."""
    tally = judge.ask(proto, labels)
    assert tally.n_top1 is not None
    assert tally.n_agree is not None
    assert tally.kl_sum is not None
    kept = count_macs(probe_graph(replace(graph.model, proto=proto))).total / count_macs(graph).total
    n = tally.n_samples
    return Row(kept, tally.n_top1 / n, tally.n_agree / n, tally.kl_sum / n)


def _spread(values: list[float], digits: int = 1) -> str:
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
