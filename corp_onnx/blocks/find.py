"""Graph -> Blocks: every product is tried as the end of an MLP, every softmax as the heart of an attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from corp_onnx.blocks.attention import match_attention
from corp_onnx.blocks.core import is_core
from corp_onnx.blocks.found import AttentionUnit, Block, Blocks, MlpUnit, Skip
from corp_onnx.blocks.linear import Mismatch, is_product
from corp_onnx.blocks.mlp import match_mlp
from corp_onnx.errors import NothingToPruneError
from corp_onnx.graph import Graph


def find_blocks(graph: Graph) -> Blocks:
    """The transformer blocks of a probed graph in the order data meets them.

    Args:
        graph: from `probe_graph`, which knows shapes.

    Returns:
        Blocks whose units may change width, and a `Skip` with its reason for everything that looked like one.
    """
    units: list[AttentionUnit | MlpUnit] = []
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
    inner = [s for b in blocks if b.attention for s in (b.attention.qk_skip, b.attention.vo_skip) if s is not None]
    return Blocks(tuple(blocks), tuple(sorted([*skipped, *inner], key=lambda s: s.position)))


def _group(units: Sequence[AttentionUnit | MlpUnit]) -> list[Block]:
    """One attention and one MLP make a block; a second of either kind begins the next."""
    pairs: list[list[AttentionUnit | MlpUnit | None]] = []
    for unit in units:
        place = 0 if isinstance(unit, AttentionUnit) else 1
        if not pairs or pairs[-1][place] is not None or (place == 0 and pairs[-1][1] is not None):
            pairs.append([None, None])
        pairs[-1][place] = unit
    blocks: list[Block] = []
    for idx, (attention, mlp) in enumerate(pairs):
        named_attention = replace(attention, key=f"blocks.{idx}.attn") if attention else None
        named_mlp = replace(mlp, key=f"blocks.{idx}.mlp") if mlp else None
        stream = named_mlp.residual.stream if isinstance(named_mlp, MlpUnit) else _attention_stream(named_attention)
        blocks.append(Block(idx, named_attention, named_mlp, stream))  # type: ignore[arg-type]
    return blocks


def _attention_stream(unit: object) -> str | None:
    out = unit.out if isinstance(unit, AttentionUnit) else None
    return out.residual.stream if out is not None and out.residual is not None else None


def require_blocks(graph: Graph, blocks: Blocks, *, vo: bool = False) -> None:
    """Refuse a graph in which nothing can be pruned; `vo` says whether values count.

    Raises:
        NothingToPruneError: with the nearest miss: the node at which the longest match stopped.
    """
    if blocks.mlps or blocks.qk_pairs or (vo and blocks.vo_pairs):
        return
    path = graph.model.path
    if not blocks.skipped:
        raise NothingToPruneError(
            f"{path}: no transformer block found: among {len(graph.nodes)} nodes no softmax follows a product of two "
            "tensors and no nonlinearity stands between two weight products. corp-onnx prunes Vision Transformers and "
            "their like."
        )
    nearest = max(blocks.skipped, key=lambda s: s.depth)
    raise NothingToPruneError(
        f"{path}: no block that can be pruned. Nearest miss ({nearest.kind}) at {nearest.node}: {nearest.reason}. "
        "`corp-onnx inspect` lists the rest."
    )
