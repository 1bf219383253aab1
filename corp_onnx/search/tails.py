"""Probes from the block that they change: before it a probed model is the dense one.

Enters the images that probes are asked of; leaves, for every site that is to be probed, a `Tail`: the dense stream in
front of the site, from which a rewritten model is run to its end. Half of the work on average, and nothing is taken
for anything else: what a stretch needs from before its start is computed from the images (run/segments.py). The dense
stream is walked once, forwards, so that one of them is kept and not one for every block. Where a graph has no walk, or
something before a start depends on the site, the whole model is run.

Several probes are asked side by side, each on a core of its own, where models are small enough for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import onnx

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph, Model
from corp_onnx.metrics import Judgement
from corp_onnx.refit.stream import Arrays, Stop, StreamData, advance_model, find_walk, run_prefix
from corp_onnx.run.pace import Pace
from corp_onnx.run.segments import open_segment
from corp_onnx.search.evaluator import Evaluator, count_beside
from corp_onnx.search.problem import Problem
from corp_onnx.threads import Crew

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """What lies behind a place in the stream.

    Attributes:
        graph: of the dense model.
        data: the evaluator's images.
        start: the tensor that is fed; empty where whole models are run.
        stream: the dense model's there, a batch at a time.
    """

    graph: Graph
    evaluator: Evaluator
    data: StreamData
    start: str = ""
    stream: Arrays = ()

    def evaluate(self, proto: onnx.ModelProto) -> Judgement:
        """As `Evaluator.evaluate`, of a model that is the dense one up to the start.

        Raises:
            ModelError: ONNX Runtime can not load or run it.
        """
        if not self.start:
            return self.evaluator.evaluate(proto)
        model = Model(proto, self.graph.model.path, self.graph.model.sha256)
        names = [task.output for task in self.evaluator.tasks]
        segment = open_segment(
            model, self.graph.types, [self.start], names, provider=self.evaluator.provider,
            threads=self.data.pace.threads,
        )  # fmt: skip
        batches = zip(self.data.stream(segment, self.start, self.stream), self.data.feeds, strict=True)
        return self.evaluator.judge(
            {name: array[:n_real].astype(np.float64) for name, array in found.items()} for found, (_, n_real) in batches
        )


def ask_tails(
    problem: Problem, evaluator: Evaluator, sites: Sequence[SiteKey], ask: Callable[[int, Tail], T]
) -> Iterator[tuple[int, T]]:
    """(place among the sites, what was asked of the tail that begins in front of it), in the order of the stream.

    Costs one run of the dense model up to the last of them. Several are asked side by side (`count_beside`).
    """
    n_beside = count_beside(problem.graph, evaluator.pace.n_calls)
    own = evaluator.alone() if n_beside > 1 else evaluator
    with Crew(n_beside) as crew:
        yield from crew.stream(lambda pair: (pair[0], ask(*pair)), _visit_tails(problem, own, evaluator.pace, sites))


def _visit_tails(
    problem: Problem, evaluator: Evaluator, pace: Pace, sites: Sequence[SiteKey]
) -> Iterator[tuple[int, Tail]]:
    """(place among the sites, the tail that begins in front of it), in the order of the stream.

    Args:
        evaluator: what asks the tails, at its own pace.
        pace: of the dense stream.
    """
    graph, walk = problem.graph, find_walk(problem.blocks)
    data = StreamData(evaluator.feeds, None, problem.shelf, pace)
    asked = replace(data, pace=evaluator.pace)
    places = {
        stop.key: i for i, (stop, start) in enumerate(zip(walk.stops, walk.starts, strict=True))
        if stop.key in set(sites) and _is_before(graph, start, stop)
    }  # fmt: skip
    whole = Tail(graph, evaluator, asked)
    yield from ((i, whole) for i, site in enumerate(sites) if site not in places)
    if not places:
        return
    stream = run_prefix(graph, data, walk.starts[0], evaluator.provider)
    for place, (stop, start) in enumerate(zip(walk.stops, walk.starts, strict=True)):
        if stop.key in places:
            tail = Tail(graph, evaluator, asked, start, stream)
            yield from ((i, tail) for i, site in enumerate(sites) if site == stop.key)
        if place == max(places.values()):
            return
        stream = advance_model(graph.model, graph, data, stream, start, stop.residual.stream, evaluator.provider)


def _is_before(graph: Graph, start: str, stop: Stop) -> bool:
    """Whether nothing that a start depends on is of the site."""
    sources = graph.list_sources([start])
    return start in graph.producers and not any(linear.node in sources for linear in stop.site.linears)
