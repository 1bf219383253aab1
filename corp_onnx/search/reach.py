"""The smallest share of a model that a budget can ask for, from the graph's costs alone: before any image is read.

Enters what is known of a model and a method; leaves nothing, or a refusal. Every unit is at its narrowest, and where
tokens may merge, they do as the cheapest schedule says, whatever it loses.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Blocks
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.search.problem import Spending
from corp_onnx.search.tokens import MERGE_MACS, wanted_places
from corp_onnx.search.widths import allow_cost, narrowest_widths, require_narrower
from corp_onnx.settings import Budget, Fractions, Method
from corp_onnx.solve.schedule import StageCurve, constant_schedules, list_schedules, most_merged
from corp_onnx.tokens.costs import count_costs
from corp_onnx.tokens.flow import trace_tokens
from corp_onnx.tokens.metric import N_DIRECTIONS
from corp_onnx.tokens.sites import MergeSites, MergeStep, TokenMetric
from corp_onnx.tokens.trim import TrimPlan
from corp_onnx.units import Change, Choice, Unit, UnitPlan


class _Width(Choice):
    """The widths of a unit, whose errors nobody knows yet."""

    def trace_errors(self) -> Float[np.ndarray, " full+1"]:
        raise NotImplementedError

    def solve(self, width: int, before: Change | None = None) -> UnitPlan:
        raise NotImplementedError


def require_reachable(
    graph: Graph, blocks: Blocks, units: tuple[Unit, ...], method: Method, trim: TrimPlan | None, sites: MergeSites
) -> None:
    """Refuse a budget of MACs or parameters, or an alignment, that no search can meet.

    Raises:
        OptionError: says what can be reached.
    """
    if isinstance(method.widths, Fractions):
        return
    widths = [_Width(unit, method) for unit in units]
    require_narrower(widths)
    if not isinstance(method.widths, Budget):
        return
    kind, kept = method.widths.kind, method.widths.value
    if kind not in ("macs", "params"):
        return
    whole = graph.cost if trim is None else trim.cost
    cost = _merge_most(graph, whole, method, trim, sites) if sites.sites and kind == "macs" else whole
    allowance = allow_cost(Spending(graph, blocks, units, trim, cost), widths, kind, kept)
    smallest = allowance.smallest if method.searches_widths else allowance.cost(narrowest_widths(widths))
    if kept < smallest / allowance.dense:
        name = "MACs" if kind == "macs" else "parameters"
        raise OptionError(
            f"--{kind} {kept:g} asks for less than pruning can reach on this model: {smallest / allowance.dense:.3f} "
            f"of its {name} is the smallest. Ask for more, lower --align, or name more --units."
        )


def _merge_most(graph: Graph, whole: Cost, method: Method, trim: TrimPlan | None, sites: MergeSites) -> Cost:
    """Of every node, and of the merges themselves, by the cheapest schedule that the search can choose from."""
    at = graph if trim is None else trim.graph
    unread = None if trim is None else trim.trim
    streams = [site.stream for site in sites.sites]
    costs = count_costs(at, trace_tokens(at, streams), whole, streams, unread)
    wanted = wanted_places(sites, method.merge_blocks, unread.axes if unread else ())
    for_nothing = np.zeros(costs.n_tokens + 1)
    stages = [StageCurve(curve, for_nothing if i in wanted else None) for i, curve in enumerate(costs.curves())]
    if not wanted or most_merged(costs.n_tokens, costs.n_special) < 1:
        return whole
    if method.merge == "constant":
        schedules = constant_schedules(stages, costs.n_tokens, costs.n_special)
    else:
        schedules = list_schedules(stages, costs.n_tokens, costs.n_special, MERGE_MACS)
    cheapest = min(schedules, key=lambda schedule: schedule.cost)
    d_model = graph.dims(streams[0])[-1]
    metric = TokenMetric(np.zeros((d_model, min(N_DIRECTIONS, d_model)), np.float32))
    merging = zip(sites.sites, cheapest.n_merged, strict=True)
    return costs.at(cheapest.n_merged, [MergeStep(site, r, metric) for site, r in merging if r])
