"""Tokens merged in the exported graphs at random, and an oracle that knows no merging.

The oracle: tokens that are the same number for number may be merged in any way, and no answer may change. It is fed
behind an attention, tail against tail, with any choice of what merges, so that sizes, logits, means, reshapes and the
places of special tokens are held by the dense graph itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.graph.model import Model
from corp_onnx.run.segments import open_segment
from corp_onnx.solve.schedule import most_merged
from corp_onnx.tokens.sites import MergeSites, MergeStep, TokenMetric, find_merge_sites, part_tokens


def random_metric(
    graph: Graph, source: str, seed: int, *, offset: bool = False, importance: bool = True
) -> TokenMetric:
    rng = np.random.default_rng(seed)
    d_model = graph.dims(source)[2]
    d = min(8, d_model)
    return TokenMetric(
        rng.standard_normal((d_model, d)).astype(np.float32),
        rng.standard_normal(d).astype(np.float32) if offset else None,
        (0.1 * rng.standard_normal(d_model)).astype(np.float32) if importance else None,
    )


def random_steps(
    graph: Graph, blocks: Blocks, n_merged: int = 2, *, without: Sequence[str] = ()
) -> tuple[MergeSites, tuple[MergeStep, ...]]:
    """A step at every site, `n_merged` tokens each as far as they reach; streams in `without` are left alone."""
    sites = find_merge_sites(graph, blocks)
    steps: list[MergeStep] = []
    left = sites.n_tokens
    for i, site in enumerate(sites.sites):
        r = min(n_merged, most_merged(left, sites.n_special))
        if r > 0 and site.stream not in without:
            steps.append(MergeStep(site, r, random_metric(graph, site.source, i)))
            left -= r
    return sites, tuple(steps)


def same_tokens(graph: Graph, stream: str, n_special: int, n_images: int, seed: int) -> np.ndarray:
    """A stream [images, tokens, d_model] whose tokens are the same within an image, special ones apart."""
    rng = np.random.default_rng(seed)
    _, n_tokens, d_model = graph.dims(stream)
    h = np.repeat(rng.standard_normal((n_images, 1, d_model)), n_tokens, axis=1)
    h[:, :n_special] = rng.standard_normal((n_images, n_special, d_model))
    return h.astype(np.float32)


def random_choices(
    steps: Sequence[MergeStep], n_tokens: int, n_special: int, n_images: int, seed: int
) -> dict[str, np.ndarray]:
    """Any order of the sources and any partner, for every step."""
    rng = np.random.default_rng(seed)
    given: dict[str, np.ndarray] = {}
    for step in steps:
        sources, targets = part_tokens(n_tokens, n_special)
        orders = [rng.permutation(len(sources)) for _ in range(n_images)]
        given[step.tensor("order")] = np.stack(orders)[..., None].astype(np.int64)
        partner = rng.integers(0, len(targets) - n_special, (n_images, len(sources)))
        given[step.tensor("partner")] = partner.astype(np.int64)
        n_tokens -= step.n_merged
    return given


def run_tail(
    model: Model, graph: Graph, stream: str, h: np.ndarray, feeds: dict[str, np.ndarray], given: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """The outputs of a model whose stream is `h` at `stream`."""
    types = {**graph.types, **dict.fromkeys(given, 7)}
    tail = open_segment(model, types, [stream], list(graph.outputs), given=list(given))
    return [o.astype(np.float64) for o in tail.run({stream: h}, {**feeds, **given}).values()]
