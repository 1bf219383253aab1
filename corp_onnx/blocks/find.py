"""Graph -> Blocks: every product is tried as the end of an MLP, every softmax as the heart of an attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from corp_onnx.blocks.attention import match_attention
from corp_onnx.blocks.core import is_core
from corp_onnx.blocks.found import Attention, Block, Blocks, Mlp, SiteKey, Skip
from corp_onnx.blocks.linear import Mismatch, is_product
from corp_onnx.blocks.mlp import match_mlp
from corp_onnx.graph import Graph


def find_blocks(graph: Graph) -> Blocks:
    """The transformer blocks of a probed graph in the order data meets them.

    Args:
        graph: from `probe_graph`, which knows shapes.

    Returns:
        Blocks whose units may change width, and a `Skip` with its reason for everything that looked like one.
    """
    units: list[Attention | Mlp] = []
    skipped: list[Skip] = []
    for node in graph.nodes:
        attention = match_attention(graph, node) if is_core(node) else None
        mlp = match_mlp(graph, node) if is_product(graph, node) else None
        for found, kind in ((attention, "qk"), (mlp, "mlp")):
            if isinstance(found, Mismatch):
                skipped.append(Skip(kind, found.node.position, str(found.node), found.reason, found.depth))  # type: ignore[arg-type]
            elif found is not None:
                units.append(found)
    blocks = _group(sorted(units, key=lambda u: u.position))
    inner = [skip for block in blocks if block.attention for skip in block.attention.skips]
    return Blocks(graph, tuple(blocks), tuple(sorted([*skipped, *inner], key=lambda s: s.position)))


def _group(units: Sequence[Attention | Mlp]) -> list[Block]:
    """One attention and one MLP make a block; a second of either kind begins the next."""
    pairs: list[list[Attention | Mlp | None]] = []
    for unit in units:
        place = 0 if isinstance(unit, Attention) else 1
        if not pairs or pairs[-1][place] is not None or (place == 0 and pairs[-1][1] is not None):
            pairs.append([None, None])
        pairs[-1][place] = unit
    blocks: list[Block] = []
    for idx, (attention, mlp) in enumerate(pairs):
        attn = replace(attention, key=SiteKey(idx, "attn")) if isinstance(attention, Attention) else None
        hidden = replace(mlp, key=SiteKey(idx, "mlp")) if isinstance(mlp, Mlp) else None
        last = [site.residual for site in (attn, hidden) if site is not None][-1]
        blocks.append(Block(idx, attn, hidden, None if last is None else last.stream))
    return blocks


def explain_nothing(graph: Graph, blocks: Blocks) -> str:
    """Why nothing of a graph can be pruned, in sentences: the nearest miss, where the longest match stopped."""
    path = graph.model.path
    if not blocks.skipped:
        return (
            f"{path}: no transformer block found: among {len(graph.nodes)} nodes no softmax follows a product of two "
            "tensors and no nonlinearity stands between two weight products. corp-onnx prunes Vision Transformers and "
            "their like."
        )
    nearest = max(blocks.skipped, key=lambda s: s.depth)
    return (
        f"{path}: no block that can be pruned. Nearest miss ({nearest.kind}) at {nearest.node}: {nearest.reason}. "
        "`corp-onnx inspect` lists the rest."
    )
