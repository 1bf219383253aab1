"""A model -> `Times`: its own blocks as micro-graphs at many widths, and the whole model, each timed in turns.

A micro-graph is the stretch of the cut model from one residual addition to the next, run on what really flows there.
Units of one shape are one class: each of their sites is cut to another width, so that a few rewritten models give all
points. Every point of a class has its turn in every round, the full width among them, so that a difference holds on a
machine that others use as well; and between two turns of one micro-graph run all the others, as in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from jaxtyping import Float64

from corp_onnx.blocks import Blocks, SiteKey, find_blocks
from corp_onnx.graph import Graph, Model
from corp_onnx.latency.table import Place, Times, WidthTimes
from corp_onnx.latency.turns import SESSION_CONFIG, Ratio, Schedule, paired_ratio, time_turns
from corp_onnx.progress import Run
from corp_onnx.refit.stream import find_walk
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.device import DEVICES, bind_device
from corp_onnx.run.noise import fitting_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.segments import open_segment
from corp_onnx.run.sessions import Session, open_session, start_session
from corp_onnx.run.tapped import open_tapped
from corp_onnx.settings import Method
from corp_onnx.solve.schedule import most_merged
from corp_onnx.tokens.sites import MergeSites, MergeStep, TokenMetric
from corp_onnx.tokens.trim import TrimPlan
from corp_onnx.units import OWN_KINDS, Unit, apply_changes, list_units

MAX_POINTS = 24
"""Widths of a class that are timed; between them the times are interpolated."""

WHOLE = Schedule(seconds=6.0)
PARTS = Schedule(seconds=15.0)
TRIAL = Schedule(seconds=6.0)
"""How long whole models, all micro-graphs, and a candidate beside the dense model are timed: medians of a shared
machine move by a percent."""

GAINS = (0.05, 1.5)
"""Between which that part lies, whatever a noisy machine says."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Compared:
    """A model beside the dense one: median seconds of a batch each, and how many times as fast, round by round."""

    dense: float
    other: float
    speedup: Ratio
    rounds: int


@dataclass(frozen=True, slots=True, eq=False)
class Stopwatch:
    """Times models of one shape against each other at one place.

    Attributes:
        graph: of the dense model.
        provider: as a person types it.
    """

    graph: Graph
    provider: str
    place: Place

    @property
    def feeds(self) -> Feeds:
        """A batch of noise."""
        axes = [self.graph.dims(name)[1:] for name in self.graph.inputs]
        return fitting_feeds(self.graph.model, self.place.batch, axes)

    def open(self, model: Model) -> Session:
        """A model file."""
        return open_session(
            model, provider=self.provider, threads=self.place.threads, config=SESSION_CONFIG, exact=False
        )

    def start(self, proto: onnx.ModelProto) -> Session:
        """A model rewritten from the dense one, in memory."""
        return start_session(proto, self.graph.model, self.provider, self.place.threads, SESSION_CONFIG, exact=False)

    def time(
        self, sessions: Sequence[Session], schedule: Schedule, progress: Callable[[int, int], None] | None = None
    ) -> Float64[np.ndarray, "rounds sessions"]:
        """Seconds of a batch through each."""
        feeds = self.feeds
        return time_turns([bind_run(session, feeds) for session in sessions], schedule, progress=progress)

    def compare(self, other: Session) -> Compared:
        """A candidate beside the dense model."""
        seconds = self.time([self.open(self.graph.model), other], TRIAL)
        before, after = (float(s) for s in np.median(seconds, axis=0))
        return Compared(before, after, paired_ratio(seconds[:, 0], seconds[:, 1]), len(seconds))


def bind_run(session: Session, feeds: Feeds) -> Callable[[], object]:
    """A run on a batch; where the provider has a memory of its own, without the transfers, as `bench` compares."""
    device = DEVICES.get(session.provider)
    return partial(session.run, None, feeds) if device is None else bind_device(session, feeds, device).resident


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
    measured = _time_parts(watch, blocks, classes, wanted, wholes.dense, run)
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


def _time_parts(
    watch: Stopwatch,
    blocks: Blocks,
    classes: Sequence[Sequence[Unit]],
    wanted: Mapping[Unit, Sequence[int]],
    dense: float,
    run: Run,
) -> list[WidthTimes | None]:
    """Of every class; None where there is no walk to cut micro-graphs by.

    Args:
        wanted: the widths to time of units that may become narrower.
        dense: seconds of the dense model, which has its turn here as well: if the machine is slower or faster by now,
            so are the parts.
    """
    graph, walk = watch.graph, find_walk(blocks)
    ends = {stop.key: (start, stop.residual.stream) for stop, start in zip(walk.stops, walk.starts, strict=True)}
    timed = [[unit for unit in alike if unit.site.key in ends] for alike in classes]
    points = [wanted.get(alike[0], [alike[0].width]) if alike else [] for alike in timed]
    if not any(points):
        return [None] * len(classes)
    streams = open_tapped(graph.model, walk.starts,
                          provider=watch.provider, threads=watch.place.threads).run(watch.feeds)  # fmt: skip
    runs: dict[tuple[int, int], Callable[[], object]] = {}
    with run.enter("cut blocks", sum(map(len, points))) as count:
        for cut, held in _cut_models(graph, timed, points):
            for idx, unit, width in held:
                name, after = ends[unit.site.key]
                stretch = open_segment(
                    replace(graph.model, proto=cut), graph.types, [name], [after], provider=watch.provider,
                    threads=watch.place.threads, config=SESSION_CONFIG, exact=False,
                )  # fmt: skip
                runs[idx, width] = bind_run(stretch.session, stretch.gather({name: streams[name]}, watch.feeds))
                count(1)
    whole = bind_run(watch.open(graph.model), watch.feeds)
    with run.enter("time blocks", things="rounds") as step:
        whole_seconds, *seconds = np.median(time_turns([whole, *runs.values()], PARTS, progress=step.at), axis=0)
    by_point = {point: dense / whole_seconds * float(of) for point, of in zip(runs, seconds, strict=True)}
    return [
        WidthTimes(tuple(widths), tuple(by_point[i, width] for width in widths)) if widths else None
        for i, widths in enumerate(points)
    ]


def _cut_models(
    graph: Graph, classes: Sequence[Sequence[Unit]], points: Sequence[Sequence[int]]
) -> Iterator[tuple[onnx.ModelProto, list[tuple[int, Unit, int]]]]:
    """Models whose sites are cut to all points between them, each with what it holds: (class, unit, width)."""
    left = [(i, width) for i, widths in enumerate(points) for width in widths]
    while left:
        taken: dict[SiteKey, tuple[int, Unit, int]] = {}
        waiting: list[tuple[int, int]] = []
        for i, width in left:
            free = next((unit for unit in classes[i] if unit.site.key not in taken), None)
            if free is None:
                waiting.append((i, width))
            else:
                taken[free.site.key] = (i, free, width)
        left = waiting
        changes = {key: unit.cut(graph, width) for key, (_, unit, width) in taken.items() if width < unit.width}
        yield apply_changes(graph, changes), list(taken.values())
