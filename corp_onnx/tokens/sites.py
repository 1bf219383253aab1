"""Where tokens can merge, how they are compared, and what merges: the values behind a merge.

Enters a graph and its blocks; leaves `MergeSites`, with a reason for every block that is none. A `MergeStep` is one
site with a metric and a number of tokens; merge.py makes it in a graph, replay.py in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Block, Blocks
from corp_onnx.errors import OptionError
from corp_onnx.graph import FLOAT_TYPES, Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.operators import RESHAPES
from corp_onnx.tokens.flow import trace_tokens

MIN_OPSET = 13
"""Split takes its sizes as an input from here on."""

PREFIX = "corp_onnx.merge"
"""Of the names of new tensors; the check and the refit ask for some of them (`MergeStep.tensor`)."""


@dataclass(frozen=True, slots=True, eq=False)
class MergeSite:
    """A block behind whose attention tokens can merge.

    Attributes:
        block: its number.
        stream: the residual stream behind its attention, [images, tokens, d_model].
        source: the block's normalised input, [images, tokens, d_model].
    """

    block: int
    stream: str
    source: str


@dataclass(frozen=True, slots=True, eq=False)
class MergeSites:
    """Where tokens can merge, and why not where they can not (block, reason). By itself: nowhere.

    Attributes:
        n_tokens: of an image, in the probe run.
        n_special: leading ones that never merge.
    """

    sites: tuple[MergeSite, ...] = ()
    n_tokens: int = 0
    n_special: int = 0
    skipped: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TokenMetric:
    """How the tokens of a block are compared: directions, a constant, and log importance along the source's channels.

    `offset` is None where there is no constant, `importance` where all tokens count alike.
    """

    directions: Float[np.ndarray, "d_model d"]
    offset: Float[np.ndarray, " d"] | None = None
    importance: Float[np.ndarray, " d_model"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MergeStep:
    """`n_merged` tokens fewer from a site on; 0 goes through the same surgery and merges none."""

    site: MergeSite
    n_merged: int
    metric: TokenMetric

    def tensor(self, what: str) -> str:
        """The name of a new tensor: `order` and `partner` (which merge), `tokens` and `sizes` (what comes of it)."""
        return f"{PREFIX}/{self.site.block}/{what}"


def list_assignments(steps: Sequence[MergeStep]) -> tuple[str, ...]:
    """The integer tensors that say which tokens merge with which; all else follows from them."""
    return tuple(step.tensor(what) for step in steps for what in ("order", "partner"))


def list_carried(steps: Sequence[MergeStep]) -> tuple[str, ...]:
    """What stretches of a merged graph are given: the assignments, and the sizes, which follow from them.

    A stretch that has to find the sizes by itself computes every merge before it, and with them the whole model.
    """
    return (*list_assignments(steps), *(step.tensor("sizes") for step in steps))


@dataclass(frozen=True, slots=True, eq=False)
class MergePlan:
    """Tokens that will merge, and what the model then costs at full widths."""

    steps: tuple[MergeStep, ...]
    cost: Cost


def count_merge(step: MergeStep, n_tokens: int, n_special: int) -> int:
    """Multiply-accumulates of a step itself, with so many tokens in front of it."""
    sources, targets = part_tokens(n_tokens, n_special)
    d_model, n_directions = step.metric.directions.shape
    n_columns = n_directions + (step.metric.importance is not None)
    compared = n_tokens * d_model * n_columns + len(sources) * (len(targets) - n_special) * n_directions
    return compared + len(targets) * step.n_merged * (d_model + 1)


def find_merge_sites(graph: Graph, blocks: Blocks) -> MergeSites:
    """The blocks of a probed graph in which tokens can merge."""
    found: list[MergeSite] = []
    skipped: list[tuple[int, str]] = []
    for block in blocks.blocks:
        site = _find_site(graph, block)
        if isinstance(site, MergeSite):
            found.append(site)
        else:
            skipped.append((block.idx, site))
    if not found:
        return MergeSites(skipped=tuple(skipped))
    flow = trace_tokens(graph, [site.stream for site in found])
    open_sites: list[MergeSite] = []
    for site in found:
        obstacle = flow.obstacle_behind(graph.producers[site.stream].position)
        if obstacle is None and graph.dims(site.stream)[1] == flow.n_tokens:
            open_sites.append(site)
        else:
            reason = "it has another number of tokens than the first" if obstacle is None else obstacle.describe()
            skipped.append((site.block, reason))
    return MergeSites(tuple(open_sites), flow.n_tokens, flow.n_special, tuple(sorted(skipped)))


def require_sites(found: MergeSites, blocks: Sequence[int]) -> None:
    """Refuse blocks in which tokens can not merge.

    Raises:
        OptionError: says why they can not, and where they can.
    """
    known = [site.block for site in found.sites]
    for block in blocks:
        if block not in known:
            why = dict(found.skipped).get(block, "there is no such block")
            where = f"They can in {', '.join(map(str, known))}." if known else "They can in none; leave it out."
            raise OptionError(
                f"--merge-blocks {','.join(map(str, blocks))}: tokens can not merge in block {block}: {why}. {where}"
            )


def _find_site(graph: Graph, block: Block) -> MergeSite | str:
    """The site of a block, or why it has none."""
    attention = block.attention
    residual = None if attention is None else attention.residual
    if graph.model.opset < MIN_OPSET:
        return f"merging takes operators of opset {MIN_OPSET}, and this file is of {graph.model.opset}"
    if attention is None or "k" not in attention.operands:
        return "its attention or its keys were not recognised"
    if residual is None or residual.skip is None:
        return "the residual addition behind its attention is not an addition of the graph"
    dims = graph.dims(residual.stream)
    if len(dims) != 3 or dims[0] != graph.n_images:
        return f"its residual stream is not [images, tokens, d_model] but {list(dims)} for {graph.n_images} images"
    source = attention.operands["k"].linear.input
    while len(graph.dims(source)) != 3 and source in graph.producers and graph.producers[source].op in RESHAPES:
        source = graph.producers[source].inputs[0]
    if graph.dims(source)[:2] != dims[:2]:
        return "its keys are not made token by token from its input, as with windows"
    if any(graph.types.get(name) not in FLOAT_TYPES for name in (source, residual.stream)):
        return "its tensors are not floating-point numbers"
    return MergeSite(block.idx, residual.stream, source)


def part_tokens(n_tokens: int, n_special: int) -> tuple[np.ndarray, np.ndarray]:
    """(sources, targets): every other token behind the special ones, and all the rest, special ones in front."""
    sources, others = np.arange(n_special, n_tokens, 2), np.arange(n_special + 1, n_tokens, 2)
    return sources, np.concatenate([np.arange(n_special), others])
