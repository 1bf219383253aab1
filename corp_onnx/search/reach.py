"""The smallest share of a model that a budget can ask for, from the graph's costs alone: before any image is read.

Enters what is known of a model and a method; leaves nothing, or a refusal. Every unit is at its narrowest, and where
tokens may merge, they do as the cheapest schedule says, whatever it loses.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.latency.table import Times
from corp_onnx.search.spending import Spending
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
    graph: Graph, blocks: Blocks, units: tuple[Unit, ...], method: Method, trim: TrimPlan | None, sites: MergeSites,
    times: Times | None = None,
) -> None:  # fmt: skip
    """Refuse a budget of MACs, parameters or time, or an alignment, that no search can meet.

    Raises:
        OptionError: says what can be reached.
    """
    if isinstance(method.widths, Fractions):
        return
    widths = [_Width(unit, method) for unit in units]
    require_narrower(widths)
    if not isinstance(method.widths, Budget) or method.promises:
        return
    kind = method.widths.cost_kind
    if kind == "time" and times is None:  # asked again when it is known
        return
    whole = graph.cost if trim is None else trim.cost
    cost = _merge_most(graph, whole, method, trim, sites) if sites.sites and kind != "params" else whole
    spending = Spending(graph, blocks, units, trim, cost, times)  # merges themselves may be for nothing
    allowance = allow_cost(spending, widths, kind, method.widths.kept_share(times.dense if times else 0.0))
    smallest = allowance.smallest if method.searches_widths else allowance.cost(narrowest_widths(widths))
    if allowance.kept < smallest / allowance.dense:
        raise allowance.refuse(smallest / allowance.dense)


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
