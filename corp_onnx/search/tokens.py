"""How many tokens merge in which block: probes and costs of one model -> the schedules that a budget can choose from.

A probe merges in one block alone and measures the loss against the dense model's answers, a few numbers of tokens for
every block. solve/schedule.py makes schedules of them; widths go on from there (widths.py), on the model whose tokens
are merged. What tokens cost is what products over tokens cost (tokens/costs.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import SiteKey
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.problem import Problem
from corp_onnx.search.tails import Tail, ask_tails
from corp_onnx.solve.schedule import (
    Schedule,
    StageCurve,
    constant_schedules,
    list_schedules,
    most_merged,
    smooth_losses,
    trace_loss,
)
from corp_onnx.tokens.costs import TokenCosts, count_costs
from corp_onnx.tokens.flow import trace_tokens
from corp_onnx.tokens.merge import merge_tokens
from corp_onnx.tokens.sites import MergePlan, MergeSites, MergeStep

PROBE_SHARES = (0.08, 0.2, 0.4)
"""Of the tokens, merged in one block: from hardly felt to nearly the most that one step can do."""

MERGE_MACS = 4e6
"""What a merge is taken to cost besides its products: two dozen small operators, 0.1 ms on the CPU that docs/speed.md
names, in which it does as many multiply-accumulates. It keeps a schedule from merging a token here and there."""


@dataclass(frozen=True, slots=True, eq=False)
class MergeCandidates:
    """Schedules of rising loss and falling cost, the first of which merges nothing, and how to follow one."""

    problem: Problem
    costs: TokenCosts
    schedules: tuple[Schedule, ...]

    def plan(self, schedule: Schedule) -> MergePlan | None:
        """What a schedule merges and leaves; None where it merges nothing."""
        by_site = zip(self.problem.sites.sites, schedule.n_merged, strict=True)
        steps = tuple(MergeStep(site, r, self.problem.metrics[site.block]) for site, r in by_site if r)
        return MergePlan(steps, self.costs.at(schedule.n_merged, steps)) if steps else None


def prepare_merging(problem: Problem, evaluator: Evaluator) -> MergeCandidates | None:
    """Probes of every site, and the schedules that follow from them; None where tokens can not or shall not merge.

    Args:
        evaluator: the images that are asked, from `draw_probes`.
    """
    sites = problem.sites
    if not sites.sites:
        return None
    at = problem.trim or problem
    streams = [site.stream for site in sites.sites]
    trim = problem.trim.trim if problem.trim else None
    costs = count_costs(at.graph, trace_tokens(at.graph, streams), problem.cost, streams, trim)
    wanted = wanted_places(sites, problem.method.merge_blocks, trim.axes if trim else ())
    most = most_merged(costs.n_tokens, costs.n_special)
    if not wanted or most < 1:
        return None
    curves = _trace_sites(problem, wanted, most, evaluator)
    stages = [StageCurve(cost, curves.get(place)) for place, cost in enumerate(costs.curves())]
    if problem.method.merge == "constant":
        return MergeCandidates(problem, costs, constant_schedules(stages, costs.n_tokens, costs.n_special))
    return MergeCandidates(problem, costs, list_schedules(stages, costs.n_tokens, costs.n_special, MERGE_MACS))


def wanted_places(sites: MergeSites, blocks: Collection[int], unread: Collection[str]) -> list[int]:
    """Places among the sites in which merging is wanted.

    Args:
        unread: tensors of which only the tokens that are read stay: there is nothing to merge in them.
    """
    named = [place for place, site in enumerate(sites.sites) if not blocks or site.block in blocks]
    return [place for place in named if sites.sites[place].stream not in unread]


def _trace_sites(
    problem: Problem, wanted: list[int], most: int, evaluator: Evaluator
) -> dict[int, Float[np.ndarray, " m"]]:
    """The loss curve of merging at one site alone, by place, for the sites where that is wanted.

    Args:
        most: tokens that one merge can do away with.
    """
    n_tokens = problem.sites.n_tokens
    numbers = sorted({min(most, max(1, round(n_tokens * share))) for share in PROBE_SHARES})
    key = {**problem.probe_key, "n_images": evaluator.n_images, "sites": wanted, "numbers": numbers}
    losses = problem.findings.recall(
        "probes/tokens", key, lambda: {"losses": _probe_sites(problem, wanted, numbers, evaluator)}
    )["losses"]
    curves = [trace_loss(n_tokens, numbers, of_site) for of_site in smooth_losses(losses).tolist()]
    return dict(zip(wanted, curves, strict=True))


def _probe_sites(
    problem: Problem, wanted: list[int], numbers: list[int], evaluator: Evaluator
) -> Float[np.ndarray, "sites numbers"]:
    """The loss of the model with so many tokens merged at one site alone."""
    sites = problem.sites.sites
    asked = [MergeStep(sites[i], n, problem.metrics[sites[i].block]) for i in wanted for n in numbers]
    losses = np.zeros(len(asked))
    with problem.run.enter("probe tokens", len(asked), "merges") as count:

        def ask(place: int, tail: Tail) -> float:
            return tail.evaluate(merge_tokens(problem.graph, (asked[place],))).loss

        for place, loss in ask_tails(problem, evaluator, [SiteKey(step.site.block, "attn") for step in asked], ask):
            losses[place] = loss
            count()
    return losses.reshape(len(wanted), len(numbers))
