"""Heads that a target wants wider, or equal: filled up with zeros, so that answers stay.

Enters the blocks of a graph and a `Target`; leaves changes by site. Rows of zeros stand behind every head in the
projections of queries, keys and values, columns of zeros in the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks import Attention, Blocks, SiteKey, Skip, VoPair
from corp_onnx.graph import Graph
from corp_onnx.settings import BEST
from corp_onnx.targets import Target
from corp_onnx.units.attention import AttentionChange
from corp_onnx.units.base import Change


@dataclass(frozen=True, slots=True)
class PaddedHeads:
    """One attention whose heads became wider: widths of queries and keys, and of values, before; and of all after."""

    key: str
    d_qk: int
    d_v: int
    width: int


def pad_heads(blocks: Blocks, target: Target) -> tuple[tuple[PaddedHeads, ...], dict[SiteKey, Change]]:
    """The attentions that have to become wider for a target, and how."""
    padded: list[PaddedHeads] = []
    changes: dict[SiteKey, Change] = {}
    for site in blocks.attentions if target.equal_heads else ():
        width = _fitting_width(site, target)
        if (site.d_qk, site.d_v) == (width, width) or _find_obstacle(site):
            continue
        padded.append(PaddedHeads(str(site.key), site.d_qk, site.d_v, width))
        changes[site.key] = _pad_site(site, blocks.graph, width)
    return tuple(padded), changes


def _fitting_width(site: Attention, target: Target) -> int:
    widest = max(site.d_qk, site.d_v)
    return -(-max(widest, target.min_head) // BEST.align) * BEST.align


def _find_obstacle(site: Attention) -> str:
    """Why the heads of a site can not become wider; empty where they can."""
    if 1 in (site.d_qk, site.d_v):
        return "its heads have one dimension, and nothing tells that from other axes of one"
    return next((pair.reason for pair in (site.qk, site.vo) if isinstance(pair, Skip)), "")


def list_obstacles(blocks: Blocks, target: Target) -> tuple[tuple[str, str], ...]:
    """The attentions that should become wider and can not, with the reason."""
    wrong = [s for s in blocks.attentions if target.equal_heads and {s.d_qk, s.d_v} != {_fitting_width(s, target)}]
    return tuple((str(site.key), reason) for site in wrong if (reason := _find_obstacle(site)))


def _pad_site(site: Attention, graph: Graph, width: int) -> AttentionChange:
    """Zero rows behind every head of queries, keys and values, and zero columns where the values are read."""
    assert isinstance(site.vo, VoPair)
    qk_map, v_map = (
        np.broadcast_to(np.eye(width, d), (site.n_heads, width, d)) for d in (site.d_qk, site.d_v)
    )  # [h, width, d]
    dense = site.vo.out.linear.read_weight(graph)[:, site.vo.out.channel_idx.reshape(-1)]
    heads = dense.reshape(len(dense), site.n_heads, site.d_v)  # [d_out, h, d]
    weight = np.pad(heads, ((0, 0), (0, 0), (0, width - site.d_v))).reshape(len(dense), -1)
    bias = site.vo.out.linear.read_bias(graph)
    return AttentionChange(site, qk_map, qk_map, v_map, out_weight=weight, out_bias=bias)
