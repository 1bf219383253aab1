"""Pruned Vision Transformers without a search: a dense graph + widths of every block -> the file that `prune` would
write, with whatever weights were at hand.

Speed depends on widths and not on weights, so what the search gave DeiT-Tiny on photographs (`RECIPES`) stands for any
shape: the same share of every unit at the same depth, rounded to 8. Nothing is solved, so answers mean nothing.

A file can be kept as its skeleton, in which large weights have a shape and no numbers: a model of 1 GB then travels in
100 KB, and `fill_skeleton` gives it noise again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper
from shape_model import save_model

from corp_onnx.blocks import Attention, Blocks, Mlp, SiteKey, VoPair, find_blocks
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.write import write_model
from corp_onnx.precision.fp16 import convert_to_fp16
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.settings import BEST
from corp_onnx.tokens.metric import N_DIRECTIONS
from corp_onnx.tokens.sites import MergeStep, TokenMetric, find_merge_sites
from corp_onnx.tokens.trim import plan_trim
from corp_onnx.units import Change, fold_scales
from corp_onnx.units.attention import AttentionChange
from corp_onnx.units.mlp import MlpChange

DEIT_TINY = (768, 64, 197)
"""Hidden channels, dimensions of a head and tokens of the model that the recipes were found on."""

LARGE = 2**16
"""Bytes from which on a stored tensor has no numbers in a skeleton: weights have more, shapes and tables less."""

POOL = 2**22
"""Numbers of noise that fill all weights, again and again from another place."""


@dataclass(frozen=True)
class Recipe:
    """How DeiT-Tiny was pruned: of every block the hidden channels, the widths of its heads, and tokens merged.

    Attributes:
        fold: whether the scale of the logits went into the weights, as `--target tensorrt` has it.
    """

    mlp: tuple[int, ...] = (768,) * 12
    qk: tuple[int, ...] = (64,) * 12
    vo: tuple[int, ...] = (64,) * 12
    merged: tuple[int, ...] = (0,) * 12
    fold: bool = False


RECIPES: dict[str, Recipe] = {
    "generic 61.7%": Recipe(
        mlp=(600, 496, 512, 384, 384, 472, 688, 632, 624, 552, 624, 768),
        qk=(32, 32, 24, 24, 24, 24, 24, 24, 32, 24, 32, 64),
        vo=(56, 32, 32, 40, 48, 32, 40, 48, 56, 64, 64, 64),
    ),
    "tensorrt 61.7%": Recipe(
        mlp=(584, 464, 480, 352, 344, 424, 664, 624, 624, 552, 608, 768),
        qk=(56, 32, 24, 32, 40, 24, 32, 40, 48, 48, 56, 64),
        vo=(56, 32, 24, 32, 40, 24, 32, 40, 48, 48, 56, 64),
        fold=True,
    ),
    "generic 50%": Recipe(
        mlp=(472, 352, 376, 288, 232, 352, 488, 496, 432, 464, 624, 768),
        qk=(24, 32, 24, 16, 24, 16, 16, 16, 32, 32, 32, 64),
        vo=(56, 24, 24, 32, 32, 24, 32, 40, 48, 56, 56, 64),
    ),
    "tensorrt 50%": Recipe(
        mlp=(464, 328, 360, 280, 224, 336, 464, 480, 424, 456, 616, 768),
        qk=(48, 24, 24, 24, 32, 16, 24, 32, 40, 48, 48, 64),
        vo=(48, 24, 24, 24, 32, 16, 24, 32, 40, 48, 48, 64),
        fold=True,
    ),
    "merged 50%": Recipe(
        mlp=(720, 736, 736, 720, 728, 744, 760, 664, 648, 576, 720, 768),
        qk=(56, 48, 48, 40, 56, 56, 56, 56, 64, 64, 64, 64),
        vo=(64, 48, 48, 56, 64, 64, 64, 64, 64, 64, 64, 64),
        merged=(0, 9, 0, 33, 66, 0, 0, 0, 37, 0, 0, 0),
    ),
}
"""By name; found with `corp-onnx prune deit_tiny_patch16_224.onnx` on photographs (benchmarks/README.md)."""


def scale_widths(widths: Sequence[int], full: int, whole: int, n_blocks: int) -> list[int]:
    """Widths of another model: the same share at the same depth, in multiples of 8; what is whole stays whole.

    Args:
        full: width that the shares are of.
        whole: width in the other model.
        n_blocks: of the other model.
    """
    depths, known = np.linspace(0, 1, n_blocks), np.linspace(0, 1, len(widths))
    shares = np.interp(depths, known, np.asarray(widths) / full)
    align = BEST.align
    return [whole if s >= 1 else min(whole, max(align, round(s * whole / align) * align)) for s in shares]


def scale_merges(merged: Sequence[int], n_tokens: int, n_blocks: int) -> list[int]:
    """Tokens that merge in the blocks of another model: the same share of all tokens at about the same depth."""
    found = [0] * n_blocks
    for block, n in enumerate(merged):
        found[round(block * (n_blocks - 1) / (len(merged) - 1))] += round(n * n_tokens / DEIT_TINY[2])
    return found


def write_pruned(graph: Graph, recipe: Recipe, path: Path) -> None:
    """The file of a recipe.

    Args:
        graph: of the dense model, from `probe_graph`.
    """
    blocks = find_blocks(graph)
    changes = cut_blocks(blocks, recipe)
    if recipe.fold:
        changes = fold_scales(blocks, changes)
    trim, _ = plan_trim(graph, blocks)
    path.parent.mkdir(parents=True, exist_ok=True)
    proto = plan_rewrite(changes, trim, merges=list_merges(graph, blocks, recipe)).make(graph)
    write_model(proto, path, graph.model.folder)


def cut_blocks(blocks: Blocks, recipe: Recipe) -> dict[SiteKey, Change]:
    """The first channels of every unit stay."""
    n, changes = len(blocks.blocks), dict[SiteKey, Change]()
    for site, width in zip(blocks.mlps, scale_widths(recipe.mlp, 768, blocks.mlps[0].d_hidden, n), strict=True):
        if width < site.d_hidden:
            changes[site.key] = cut_mlp(site, blocks.graph, width)
    d_head = blocks.attentions[0].d_qk
    widths = (scale_widths(w, 64, d_head, n) for w in (recipe.qk, recipe.vo))
    for site, d_qk, d_v in zip(blocks.attentions, *widths, strict=True):
        if (d_qk, d_v) != (d_head, d_head):
            changes[site.key] = cut_heads(site, blocks.graph, d_qk, d_v)
    return changes


def cut_mlp(site: Mlp, graph: Graph, width: int) -> MlpChange:
    """The first hidden channels of an MLP."""
    weight, bias = site.down.read_dense(graph)
    return MlpChange(site, np.arange(width), weight[:, :width], bias)


def cut_heads(site: Attention, graph: Graph, d_qk: int, d_v: int) -> AttentionChange:
    """The first dimensions of every head."""
    assert isinstance(site.vo, VoPair)
    qk_map = np.broadcast_to(np.eye(d_qk, site.d_qk), (site.n_heads, d_qk, site.d_qk))
    v_map = np.broadcast_to(np.eye(d_v, site.d_v), (site.n_heads, d_v, site.d_v))
    dense = site.vo.out.linear.read_weight(graph)[:, site.vo.out.channel_idx.reshape(-1)]
    heads = dense.reshape(len(dense), site.n_heads, site.d_v)[:, :, :d_v]  # [d_out, h, s]
    bias = site.vo.out.linear.read_bias(graph)
    return AttentionChange(site, qk_map, qk_map, v_map, out_weight=heads.reshape(len(dense), -1), out_bias=bias)


def list_merges(graph: Graph, blocks: Blocks, recipe: Recipe) -> list[MergeStep]:
    """The merges of a recipe, along directions of noise."""
    if not any(recipe.merged):
        return []
    sites, rng = find_merge_sites(graph, blocks), np.random.default_rng(0)
    merged = scale_merges(recipe.merged, sites.n_tokens, len(blocks.blocks))
    steps: list[MergeStep] = []
    for site in sites.sites:
        if merged[site.block]:
            d_model = graph.dims(site.source)[2]
            directions = rng.standard_normal((d_model, N_DIRECTIONS)) * d_model**-0.5
            metric = TokenMetric(directions, np.zeros(N_DIRECTIONS), np.zeros(d_model))
            steps.append(MergeStep(site, merged[site.block], metric))
    return steps


def write_half(path: Path, output: Path) -> None:
    """A file in float16, as `convert --fp16` writes it."""
    half = convert_to_fp16(probe_graph(load_model(path)))
    write_model(half.proto, output, path.parent)


def strip_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The skeleton of a model; the model is changed."""
    for tensor in proto.graph.initializer:
        is_float = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        if is_float and int(np.prod(tensor.dims)) * 4 >= LARGE:
            for field in ("raw_data", "float_data", "int32_data", "external_data"):
                tensor.ClearField(field)
            tensor.data_location = TensorProto.EXTERNAL
    return proto


def fill_skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Noise for every weight without numbers, of a size that keeps the stream's; the model is changed."""
    pool = np.random.default_rng(0).standard_normal(POOL, dtype=np.float32)
    for i, tensor in enumerate(proto.graph.initializer):
        if not external_data_helper.uses_external_data(tensor):
            continue
        dims = tuple(tensor.dims)
        std = 0.5 * dims[0] ** -0.5 if len(dims) == 2 else 0.02
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        noise = np.resize(np.roll(pool, 7919 * i), dims) * np.float32(std)
        tensor.raw_data = noise.astype(kind).tobytes()
        tensor.ClearField("data_location")
    return proto


def keep_skeleton(path: Path, output: Path) -> None:
    """The skeleton of a file as a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    proto = onnx.load(str(path), load_external_data=False)
    output.write_bytes(strip_weights(proto).SerializeToString())


def restore(skeleton: Path, output: Path) -> None:
    """The file of a skeleton."""
    save_model(fill_skeleton(onnx.load(str(skeleton), load_external_data=False)), output)
