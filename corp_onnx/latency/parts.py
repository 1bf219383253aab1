"""The sites of a model as micro-graphs at many widths, timed in turns.

A micro-graph is the stretch of the cut model from one residual addition to the next, run on what really flows there.
Units of one shape are one class: each of their sites is cut to another width, so that a few rewritten models give all
points. Every point of a class has its turn in every round, the full width among them, so that a difference holds on a
machine that others use as well; and between two turns of one micro-graph run all the others, as in the model. On a
device with a memory of its own, which might not hold them all, a round is of one class, or of a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from corp_onnx.blocks import Blocks, SiteKey
from corp_onnx.errors import ModelError
from corp_onnx.graph import Graph
from corp_onnx.latency.stopwatch import Stopwatch, bind_run
from corp_onnx.latency.table import WidthTimes
from corp_onnx.latency.turns import SESSION_CONFIG, Schedule, time_turns
from corp_onnx.progress import Run
from corp_onnx.refit.stream import find_walk
from corp_onnx.run.segments import open_segment
from corp_onnx.run.tapped import open_tapped
from corp_onnx.units import Unit, apply_changes

PARTS = Schedule(seconds=15.0)
"""How long all of them are timed."""

Point = tuple[int, int]
"""A class, by its index, at a width."""


def time_parts(
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
        dense: seconds of the dense model.
    """
    graph, walk = watch.graph, find_walk(blocks)
    ends = {stop.key: (start, stop.residual.stream) for stop, start in zip(walk.stops, walk.starts, strict=True)}
    timed = [[unit for unit in alike if unit.site.key in ends] for alike in classes]
    points = [wanted.get(alike[0], [alike[0].width]) if alike else [] for alike in timed]
    if not any(points):
        return [None] * len(classes)
    streams = open_tapped(graph.model, walk.starts,
                          provider=watch.provider, threads=watch.place.threads).run(watch.feeds)  # fmt: skip
    parts = Parts(watch, timed, ends, streams, dense)
    by_point = parts.time_all([[(i, width) for width in widths] for i, widths in enumerate(points) if widths], run)
    return [
        WidthTimes(tuple(widths), tuple(by_point[i, width] for width in widths)) if widths else None
        for i, widths in enumerate(points)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Micro-graphs, and what flows into them.

    Attributes:
        ends: names of the residual stream in front of a site and behind it.
        dense: seconds of the dense model, which has its turn here as well: if the machine is slower or faster by now,
            so are the parts.
    """

    watch: Stopwatch
    classes: Sequence[Sequence[Unit]]
    ends: Mapping[SiteKey, tuple[str, str]]
    streams: Mapping[str, np.ndarray]
    dense: float

    def time_all(self, lots: Sequence[Sequence[Point]], run: Run) -> dict[Point, float]:
        """Seconds of every point, class by class on a device, whose memory is not the host's.

        Raises:
            ModelError: ONNX Runtime failed, on a device with one micro-graph alone as well.
        """
        on_device = self.watch.device is not None
        n_points = sum(map(len, lots))
        waiting: list[Sequence[Point]] = list(lots) if on_device else [[point for lot in lots for point in lot]]
        found: dict[Point, float] = {}
        while waiting:
            lot = waiting.pop(0)
            try:
                found |= self._time(lot, replace(PARTS, seconds=PARTS.seconds * len(lot) / n_points), run)
            except ModelError:
                if not on_device or len(lot) == 1:
                    raise
                waiting[:0] = lot[::2], lot[1::2]  # the device has no room for all of them
        return found

    def _time(self, lot: Sequence[Point], schedule: Schedule, run: Run) -> dict[Point, float]:
        watch, graph = self.watch, self.watch.graph
        runs: dict[Point, Callable[[], object]] = {}
        with run.enter("cut blocks", len(lot)) as count:
            for cut, held in _cut_models(graph, self.classes, lot):
                for point, unit in held:
                    name, after = self.ends[unit.site.key]
                    stretch = open_segment(
                        replace(graph.model, proto=cut), graph.types, [name], [after], provider=watch.provider,
                        threads=watch.place.threads, config=SESSION_CONFIG, exact=False,
                    )  # fmt: skip
                    given = stretch.gather({name: self.streams[name]}, watch.feeds)
                    runs[point] = bind_run(stretch.session, given, watch.device)
                    count(1)
        whole = bind_run(watch.open(graph.model), watch.feeds, watch.device)
        with run.enter("time blocks", things="rounds") as step:
            seconds = np.median(time_turns([whole, *runs.values()], schedule, progress=step.at), axis=0)
        return {point: self.dense / seconds[0] * float(of) for point, of in zip(runs, seconds[1:], strict=True)}


def _cut_models(
    graph: Graph, classes: Sequence[Sequence[Unit]], points: Sequence[Point]
) -> Iterator[tuple[onnx.ModelProto, list[tuple[Point, Unit]]]]:
    """Models whose sites are cut to all points between them, each with what it holds."""
    left = list(points)
    while left:
        taken: dict[SiteKey, tuple[Point, Unit]] = {}
        waiting: list[Point] = []
        for i, width in left:
            free = next((unit for unit in classes[i] if unit.site.key not in taken), None)
            if free is None:
                waiting.append((i, width))
            else:
                taken[free.site.key] = ((i, width), free)
        left = waiting
        held = list(taken.values())
        changes = {unit.site.key: unit.cut(graph, width) for (_, width), unit in held if width < unit.width}
        yield apply_changes(graph, changes), held
