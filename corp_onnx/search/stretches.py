"""What a refit walks: the dense model with tokens merged as in the pruned one, and how much each token counts in it.

Enters a problem and the walk of its dense model; leaves `Stretches`, and a weight for every token position by stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph
from corp_onnx.metrics import OutputTask
from corp_onnx.refit.stream import Stop, StreamWalk
from corp_onnx.refit.token_weights import weigh_stops
from corp_onnx.run.rewritten import probe_rewritten
from corp_onnx.search.problem import Problem
from corp_onnx.tokens.merge import merge_tokens
from corp_onnx.tokens.sites import MergeStep, list_carried


@dataclass(frozen=True, slots=True, eq=False)
class Stretches:
    """The dense model with tokens merged, as the refit walks it: its graph, its stops, and what merges in it."""

    graph: Graph
    walk: StreamWalk
    given: tuple[str, ...] = ()


def stretch_dense(problem: Problem, walk: StreamWalk, merges: Sequence[MergeStep]) -> Stretches:
    """The dense model that a refit brings the pruned one back to: with the same tokens merged."""
    if not merges:
        return Stretches(problem.graph, walk)
    graph = probe_rewritten(problem.graph, replace(problem.graph.model, proto=merge_tokens(problem.graph, merges)))
    stops = tuple(_follow(stop, problem.graph, graph) for stop in walk.stops)
    return Stretches(graph, StreamWalk(stops), list_carried(merges))


def _follow(stop: Stop, before: Graph, merged: Graph) -> Stop:
    """A stop in the graph with merges, which has all names of the one before: but what is added to may have merged."""
    was, now = (graph.producers[stop.residual.stream].inputs for graph in (before, merged))
    skip = dict(zip(was, now, strict=True)).get(stop.residual.skip or "", stop.residual.skip)
    return replace(stop, residual=replace(stop.residual, skip=skip))


def find_token_weights(problem: Problem, walk: StreamWalk, tasks: Sequence[OutputTask]) -> dict[SiteKey, np.ndarray]:
    """Of every stop of the dense model as it is, from the findings or by noise on its stream.

    Args:
        tasks: of the outputs that are judged.
    """
    p = problem

    def weigh() -> dict[str, np.ndarray]:
        with p.run.enter("weigh tokens", len(walk.stops), "units") as count:
            weights = weigh_stops(
                p.graph, walk, p.calibration, tasks, batch_size=p.batch_size, provider=p.provider, progress=count
            )
        return {str(key): array for key, array in weights.items()}

    found = p.findings.recall("token_weights", {"tasks": repr(tuple(tasks))}, weigh)
    return {stop.key: found[str(stop.key)] for stop in walk.stops if str(stop.key) in found}
