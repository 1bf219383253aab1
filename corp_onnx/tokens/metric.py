"""How the tokens of a block are compared: a graph and a few images -> a `TokenMetric` for every merge site.

Directions. The leading principal directions of the block's normalised input x over all tokens that may merge:

    P = the first d eigenvectors of Cov(x)

They serve better than those of the keys, which ToMe compares (docs/method.md).

Importance. A ridge estimate, linear in x, of what later blocks pay to a token:

    u = (Cov(x) + lambda I)^-1 Cov(x, t),    t = mean over later blocks of log attention that reads the token

The attention of the special tokens where there are any, of all tokens otherwise. It costs one more column of the
product, and reads no softmax, so attention units stay free to be pruned. Where no later block's attention can be
computed from its projections (norms or rotations on the way), all tokens count alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Block, Blocks, QkPair
from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.progress import Count
from corp_onnx.run.pace import choose_pace
from corp_onnx.run.tapped import open_tapped, stream_together
from corp_onnx.settings import TokenMetricKind
from corp_onnx.solve.ridge import solve_ridge
from corp_onnx.threads import Crew
from corp_onnx.tokens.sites import MergeSite, MergeSites, TokenMetric
from corp_onnx.units.taps import Taps, read_operand

METRIC_IMAGES = 64
"""Calibration images that metrics are learnt from: tens of thousands of tokens for a few hundred channels."""

N_DIRECTIONS = 32
"""On DeiT-Tiny 64 are no better, 16 cost a third more KL, and each is a column of a product over all tokens."""

RIDGE = 1e-3
"""Of the importance, relative to the mean variance of x."""

TINY = 1e-9
"""Added to attention before its logarithm: a token that nobody reads."""


def learn_metrics(
    graph: Graph,
    blocks: Blocks,
    found: MergeSites,
    images: Images,
    kind: TokenMetricKind,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
) -> dict[int, TokenMetric]:
    """The metric of every merge site, by block.

    Args:
        found: from `find_merge_sites`.
        images: calibration images, of which up to METRIC_IMAGES are taken.
        kind: `learnt` as above, or ToMe's `keys`.
    """
    if kind == "keys":
        return {site.block: _compare_keys(graph, blocks.blocks[site.block]) for site in found.sites}
    readers = {block.idx: pair for block in blocks.blocks if (pair := _plain_pair(block)) is not None}
    taps = Taps(tensors=[site.source for site in found.sites])
    for pair, _ in readers.values():
        taps.add_operand(pair.q)
        taps.add_operand(pair.k)
    few = images.select(np.arange(min(METRIC_IMAGES, images.n_images)))
    pace = choose_pace(batch_size, graph.n_images if graph.fixed_batch else None, provider)
    tapped = open_tapped(
        graph.model, taps.tensors, products=list(taps.products.values()), provider=provider, threads=pace.threads,
        types=graph.types, whole=False,
    )  # fmt: skip
    sums = {site.block: _Sums() for site in found.sites}
    with Crew() as crew:
        for batches in stream_together([tapped], few, pace, crew):
            for (arrays,), n_real in batches:
                read = dict(crew.map(partial(_read_block, graph, arrays, n_real, found.n_special), readers.items()))
                crew.map(partial(_add_site, sums, read, arrays, n_real, found.n_special), found.sites)
                if progress:
                    progress(n_real)
        solved = crew.map(lambda running: running.solve(with_importance=bool(readers)), sums.values())
    return dict(zip(sums, solved, strict=True))


def _read_block(
    graph: Graph,
    arrays: Mapping[str, np.ndarray],
    n_real: int,
    n_special: int,
    reader: tuple[int, tuple[QkPair, float]],
) -> tuple[int, Float[np.ndarray, "images tokens"]]:
    idx, (pair, scale) = reader
    return idx, _read_attention(graph, pair, scale, arrays, n_real, n_special)


def _add_site(
    sums: Mapping[int, _Sums], read: Mapping[int, np.ndarray], arrays: Mapping[str, np.ndarray], n_real: int,
    n_special: int, site: MergeSite,
) -> None:  # fmt: skip
    """A batch, to the sums of one site: its tokens, and how much later blocks read them."""
    later = [log for idx, log in read.items() if idx > site.block] or list(read.values())[-1:]
    x = arrays[site.source][:n_real, n_special:]
    sums[site.block].add(x, np.mean(later, axis=0) if later else np.zeros(x.shape[:2]))


def _plain_pair(block: Block) -> tuple[QkPair, float] | None:
    """Queries and keys of a block whose logits are scale q k' of its projections, nothing in between; and the scale."""
    attention = block.attention
    if attention is None or not isinstance(attention.qk, QkPair):
        return None
    q, k = attention.qk.q, attention.qk.k
    plain = q.n_tokens == k.n_tokens and not q.token_major and not k.token_major
    return (attention.qk, attention.scale) if plain else None


def _read_attention(
    graph: Graph, pair: QkPair, scale: float, arrays: Mapping[str, np.ndarray], n_real: int, n_special: int
) -> Float[np.ndarray, "images tokens"]:
    """log of the mean attention that reads every token, special ones apart."""
    q, k = (read_operand(arrays, graph, operand, n_real) for operand in (pair.q, pair.k))
    q = q[:, :n_special] if n_special else q
    logits = np.einsum("inhd,imhd->ihnm", q, k, optimize=True) * scale
    logits -= logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits)
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.log(weights.mean(axis=(1, 2))[:, n_special:] + TINY)


@dataclass(slots=True, eq=False)
class _Sums:
    """Running sums of x [.., d_model] and t [..].

    In float64 from the first product on, unlike `moments.sums.CrossSum`: its float32 Grams move the importance from a
    few images by up to 2e-5, some of it by two percent.
    """

    n: float = 0.0
    x: np.ndarray | float = 0.0
    t: float = 0.0
    xx: np.ndarray | float = 0.0
    xt: np.ndarray | float = 0.0

    def add(self, x: np.ndarray, t: np.ndarray) -> None:
        rows, of_rows = x.reshape(-1, x.shape[-1]).astype(np.float64), t.reshape(-1).astype(np.float64)
        self.n, self.x, self.t = self.n + len(rows), self.x + rows.sum(axis=0), self.t + float(of_rows.sum())
        self.xx, self.xt = self.xx + rows.T @ rows, self.xt + of_rows @ rows

    def solve(self, *, with_importance: bool) -> TokenMetric:
        mean = np.asarray(self.x) / self.n
        covariance = np.asarray(self.xx) / self.n - np.outer(mean, mean)
        vectors = np.linalg.eigh(covariance)[1]
        directions = vectors[:, ::-1][:, :N_DIRECTIONS].astype(np.float32)
        if not with_importance:
            return TokenMetric(directions)
        cross = np.asarray(self.xt) / self.n - mean * self.t / self.n
        importance = solve_ridge(covariance, cross[:, None], RIDGE).solution[:, 0]
        return TokenMetric(directions, importance=importance.astype(np.float32))


def _compare_keys(graph: Graph, block: Block) -> TokenMetric:
    """ToMe's: the mean of the keys over heads, all tokens alike."""
    assert block.attention is not None
    k = block.attention.operands["k"]
    weight = k.linear.read_weight(graph).astype(np.float64)[k.channel_idx]  # [n_heads, d_head, d_model]
    bias = k.linear.read_bias(graph)
    offset = None if bias is None else bias.astype(np.float64)[k.channel_idx].mean(axis=0).astype(np.float32)
    return TokenMetric(weight.mean(axis=0).T.astype(np.float32), offset)
