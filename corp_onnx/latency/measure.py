"""A model -> `Times`: whole models, and the parts of the dense one at many widths (parts.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from corp_onnx.blocks import Blocks, SiteKey, find_blocks
from corp_onnx.graph import Graph
from corp_onnx.latency.parts import time_parts
from corp_onnx.latency.stopwatch import Stopwatch
from corp_onnx.latency.table import Times, WidthTimes
from corp_onnx.latency.turns import Schedule
from corp_onnx.progress import Run
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.settings import Method
from corp_onnx.solve.schedule import most_merged
from corp_onnx.tokens.sites import MergeSites, MergeStep, TokenMetric
from corp_onnx.tokens.trim import TrimPlan
from corp_onnx.units import OWN_KINDS, Unit, list_units

MAX_POINTS = 24
"""Widths of a class that are timed; between them the times are interpolated."""

WHOLE = Schedule(seconds=6.0)
"""How long whole models are timed."""

GAINS = (0.05, 1.5)
"""Between which that part lies, whatever a noisy machine says."""


def measure_times(
    watch: Stopwatch,
    blocks: Blocks,
    units: Sequence[Unit],
    method: Method,
    trim: TrimPlan | None,
    sites: MergeSites,
    run: Run,
) -> Times:
    """How long a model takes, and its sites at every width of their units.

    Where no walk along the residual stream is found, a site's time is its share of the MACs.

    Args:
        units: those that may become narrower; the sites of others are timed as they are.
        sites: where tokens can merge.
    """
    wholes = _time_wholes(watch, trim, sites, run)
    every = (*units, *(unit for unit in choose_stand_ins(blocks, units) if unit not in units))
    classes = group_alike(watch.graph, every)
    wanted = {unit: choose_points(unit.widths(method)) for unit in units}
    measured = time_parts(watch, blocks, classes, wanted, wholes.dense, run)
    found: dict[str, WidthTimes] = {}
    for alike, times in zip(classes, measured, strict=True):
        found |= {str(unit.key): times or _guess_times(watch.graph, blocks, alike[0], wholes.dense) for unit in alike}
    gain = _find_gain(watch, blocks, units, wholes, found)
    return Times(watch.place, wholes.dense, wholes.whole, wholes.merge, gain, found)


def _guess_times(graph: Graph, blocks: Blocks, unit: Unit, dense: float) -> WidthTimes:
    """By the shares of the MACs."""
    site = count_site_macs(graph, blocks)[unit.key.site] / max(graph.cost.total, 1)
    own = unit.describe(graph, graph.cost).mac_share
    return WidthTimes((1, unit.width), (dense * (site - own * (1 - 1 / unit.width)), dense * site))


def choose_stand_ins(blocks: Blocks, units: Sequence[Unit]) -> list[Unit]:
    """One unit for every site, whose full width says how long the site takes: of those given where it has one."""
    first = {unit.key.site: unit for unit in reversed([*units, *list_units(blocks, OWN_KINDS, skipped=True)])}
    return list(first.values())


def group_alike(graph: Graph, units: Sequence[Unit]) -> list[list[Unit]]:
    """Units of one kind and shape."""
    classes: dict[tuple[object, ...], list[Unit]] = {}
    for unit in units:
        facts = unit.describe(graph, graph.cost)
        shape = (facts.kind, facts.width, facts.n_heads, facts.n_tokens, facts.n_parameters, facts.macs)
        classes.setdefault(shape, []).append(unit)
    return list(classes.values())


def choose_points(widths: Iterable[int]) -> list[int]:
    """At most MAX_POINTS of the allowed widths, evenly, the narrowest and the full one among them."""
    allowed = [int(width) for width in widths if width > 0]
    places = np.unique(np.linspace(0, len(allowed) - 1, min(len(allowed), MAX_POINTS)).round().astype(int))
    return [allowed[i] for i in places]


@dataclass(frozen=True, slots=True, eq=False)
class _Wholes:
    """Seconds of whole models.

    Attributes:
        whole: without the tokens that nobody reads.
        merge: of one merge, whatever it saves.
        halved: with tokens merged once, in the first place where they can, as many as can; None where they can not.
        fewer: that model, every unit whole.
    """

    dense: float
    whole: float
    merge: float
    halved: float | None
    fewer: onnx.ModelProto | None


def _time_wholes(watch: Stopwatch, trim: TrimPlan | None, sites: MergeSites, run: Run) -> _Wholes:
    graph, fewer = watch.graph, None
    unread = trim.trim.axes if trim is not None else ()
    open_sites = [site for site in sites.sites if site.stream not in unread]
    protos = [] if trim is None else [plan_rewrite({}, trim).make(graph)]
    if open_sites:
        metric = TokenMetric(np.zeros((graph.dims(open_sites[0].stream)[-1], 1), np.float32))
        steps = [MergeStep(site, 1, metric) for site in open_sites]
        half = MergeStep(open_sites[0], most_merged(sites.n_tokens, sites.n_special), metric)
        fewer = plan_rewrite({}, merges=[half]).make(graph)
        protos += [plan_rewrite({}, merges=steps).make(graph), fewer]
    sessions = [watch.open(graph.model), *map(watch.start, protos)]
    with run.enter("time the model", things="rounds") as step:
        dense, *others = (float(s) for s in np.median(watch.time(sessions, WHOLE, step.at), axis=0))
    whole = others.pop(0) if trim is not None else dense
    if not others:
        return _Wholes(dense, whole, 0.0, None, None)
    merged, halved = others
    return _Wholes(dense, whole, max(merged - dense, 0.0) / len(open_sites), halved, fewer)


def _find_gain(
    watch: Stopwatch, blocks: Blocks, units: Sequence[Unit], wholes: _Wholes, found: Mapping[str, WidthTimes]
) -> float:
    """Of the time that tokens which merge would save, if a site were faster as its MACs are fewer, the part that they
    do: what an operator takes whatever it works on stays."""
    if wholes.fewer is None or wholes.halved is None:
        return 1.0
    graph = probe_graph(replace(watch.graph.model, proto=wholes.fewer))
    macs, left = count_site_macs(watch.graph, blocks), count_site_macs(graph, find_blocks(graph))
    stands = {unit.key.site: found[str(unit.key)].seconds[-1] for unit in choose_stand_ins(blocks, units)}
    by_macs = sum(seconds * (1 - left.get(key, macs[key]) / max(macs[key], 1)) for key, seconds in stands.items())
    if by_macs <= 0:
        return 1.0
    return float(np.clip((wholes.dense + wholes.merge - wholes.halved) / by_macs, *GAINS))


def count_site_macs(graph: Graph, blocks: Blocks) -> dict[SiteKey, int]:
    """Of every site."""
    counted: dict[SiteKey, int] = {}
    for unit in list_units(blocks, OWN_KINDS, skipped=True):
        macs = unit.describe(graph, graph.cost).macs
        counted[unit.key.site] = counted.get(unit.key.site, 0) + macs
    return counted
