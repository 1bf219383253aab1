"""The smallest share of a model that a budget can ask for, from the graph's costs alone: before any image is read.

Enters what is known of a model and a method; leaves nothing, or a refusal. Every unit is at its narrowest, and where
tokens may merge, as many merge as can, for nothing: a bound that no search passes. What lies just above it may still be
refused by the search, which pays for its merges (tokens.py).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Blocks
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.search.problem import Spending
from corp_onnx.search.tokens import wanted_places
from corp_onnx.search.widths import allow_cost, narrowest_widths, require_narrower
from corp_onnx.settings import Budget, Method
from corp_onnx.solve.schedule import most_merged
from corp_onnx.tokens.costs import count_costs
from corp_onnx.tokens.flow import trace_tokens
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
    if not isinstance(method.widths, Budget):
        return
    widths = [_Width(unit, method) for unit in units]
    require_narrower(widths)
    kind, kept = method.widths.kind, method.widths.value
    if kind == "agreement":
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
    """Of every node, with the fewest tokens that steps can leave; the steps themselves are not counted."""
    at = graph if trim is None else trim.graph
    unread = None if trim is None else trim.trim
    streams = [site.stream for site in sites.sites]
    costs = count_costs(at, trace_tokens(at, streams), whole, streams, unread)
    wanted = wanted_places(sites, method.merge_blocks, unread.axes if unread else ())
    left, merged = costs.n_tokens, list[int]()
    for place in range(len(streams)):
        merged.append(most_merged(left, costs.n_special) if place in wanted else 0)
        left -= merged[-1]
    nothing = TokenMetric(np.zeros((1, 1), np.float32))
    steps = [MergeStep(site, r, nothing) for site, r in zip(sites.sites, merged, strict=True) if r]
    return Cost({name: macs for name, macs in costs.at(merged, steps).by_node.items() if name in whole.by_node})
