"""What every node of a graph costs at other numbers of tokens.

Enters a graph, its flow of tokens and the merge sites in it; leaves `TokenCosts`. A product over tokens costs in
proportion to their number, the products of an attention to its square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.tokens.flow import TokenFlow
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.tokens.sites import MergeStep, count_merge


@dataclass(frozen=True, slots=True, eq=False)
class TokenCosts:
    """What every node costs at other numbers of tokens.

    Attributes:
        cost: with all tokens.
        degrees: how often the number of tokens is a factor of a node's cost.
        stages: of every node, which merge site it stands behind, counted from 0; -1 in front of the first.
        n_stages: merge sites.
    """

    cost: Cost
    n_tokens: int
    n_special: int
    degrees: Mapping[str, int]
    stages: Mapping[str, int]
    n_stages: int

    def at(self, n_merged: Sequence[int], steps: Sequence[MergeStep]) -> Cost:
        """Of every node with tokens merged at every site, and of the merges themselves.

        Args:
            steps: one for every number that is not 0.
        """
        left = self.n_tokens - np.cumsum(n_merged)
        found = {
            name: round(macs * (left[stage] / self.n_tokens) ** self.degrees[name])
            if (stage := self.stages[name]) >= 0 and self.degrees.get(name)
            else macs
            for name, macs in self.cost.by_node.items()
        }
        before = np.append(self.n_tokens, left)
        merging = [i for i, r in enumerate(n_merged) if r]
        for i, step in zip(merging, steps, strict=True):
            found[step.tensor("tokens")] = count_merge(step, int(before[i]), self.n_special)
        return Cost(found)

    def curves(self) -> Float[np.ndarray, "stages m"]:
        """What scales with tokens behind every site, at 0..n_tokens tokens."""
        shares = np.arange(self.n_tokens + 1) / self.n_tokens
        found = np.zeros((self.n_stages, self.n_tokens + 1))
        for name, macs in self.cost.by_node.items():
            if self.stages[name] >= 0 and self.degrees.get(name):
                found[self.stages[name]] += macs * shares ** self.degrees[name]
        return found


def count_costs(
    graph: Graph, flow: TokenFlow, cost: Cost, streams: Sequence[str], trim: TokenTrim | None
) -> TokenCosts:
    """What tokens cost in a graph.

    Args:
        graph: the one whose nodes `cost` counts.
        flow: of that graph.
        streams: of the merge sites in it, in order.
        trim: tokens that are left out: what is computed only for those that are read does not scale with the others.
    """
    rows = {} if trim is None else trim.axes
    degrees = {name: degree - (name in rows) for name, degree in flow.degrees.items()}
    positions = [graph.producers[stream].position for stream in streams]
    stages = {name: int(np.searchsorted(positions, graph.producers[name].position)) - 1 for name in cost.by_node}
    return TokenCosts(cost, flow.n_tokens, flow.n_special, degrees, stages, len(streams))
