"""The layers of an engine by transformer block, and why the attention of a block is not fused.

Enters a `Source` and the layers of its engine; leaves an `Explanation`. A layer says which ONNX nodes it computes; the
blocks are found in the file as everywhere else, a node belongs to the first block whose output depends on it, and a
layer to the block that most of its nodes belong to. A layer that names none, a copy, stands behind the one before.

What fuses was measured with TensorRT for RTX 1.7.1, one attention at a time, for SM75 to SM121 alike
(docs/tensorrt.md): q, k and v in 16 bits, all of one width from 9 to 256. A width that is no multiple
of 8 is fused and copied into a padded tensor before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from corp_onnx.blocks import Block, Blocks, find_blocks
from corp_onnx.errors import CorpOnnxError
from corp_onnx.graph import Graph
from corp_onnx.graph.intake import settle_message
from corp_onnx.graph.model import Model, parse_file
from corp_onnx.run.probe import probe_graph
from corp_onnx.tensorrt.blueprint import Source
from corp_onnx.tensorrt.layers import EngineLayer
from corp_onnx.tensorrt.unquantised import drop_quantisation

SMALLEST, LARGEST, ALIGNMENT = 9, 256, 8
"""Widths of a head that fuse, and of which a multiple needs no padding."""

FUSED, APART, NONE = "fused", "apart", "-"
"""What became of the attention of a part: one kernel, several, or it has none."""

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
TYPES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Int8": "int8"}
"""Element types as TensorRT calls them; others are left out: indices, shapes, masks."""

BEFORE, BEHIND = "before", "behind"


@dataclass(frozen=True, slots=True)
class PartLayers:
    """The layers of one block, or of what stands before or behind all of them.

    Attributes:
        part: `blocks.0`, or `before` or `behind`.
        attention: `fused`, `apart` or `-`.
        widths: of the heads of q and k, and of v; None where no attention was found.
        kernels: that run for it.
        products: kernels among them that multiply matrices, attention not counted.
        paddings: copies into a padded tensor.
        precision: floating and integer types that its kernels read and give.
        reason: the rules that keep its attention apart, or the one that costs it copies; empty where there is none.
    """

    part: str
    attention: str
    widths: tuple[int, int] | None
    kernels: int
    products: int
    paddings: int
    precision: tuple[str, ...]
    reason: str

    @property
    def is_block(self) -> bool:
        """Whether it is one of the blocks."""
        return self.part not in (BEFORE, BEHIND)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an engine consists of.

    Attributes:
        kernels: layers that run something.
        kinds: their number by TensorRT's own type.
        fused: kernels that are a whole attention.
        attentions: softmaxes between two products that were found in the file.
        paddings: copies into a padded tensor.
        parts: by block.
        note: why there are no blocks; empty where there are.
    """

    kernels: int
    kinds: dict[str, int]
    fused: int
    attentions: int
    paddings: int
    parts: tuple[PartLayers, ...]
    note: str = ""


def explain_layers(source: Source, layers: Sequence[EngineLayer]) -> Explanation:
    """The layers by block. Costs one run of the model on noise."""
    found, note = _find_blocks(source)
    kernels = [layer for layer in layers if layer.is_kernel]
    parts = () if found is None else tuple(_list_parts(found, kernels))
    return Explanation(
        kernels=len(kernels),
        kinds=dict(Counter(layer.kind for layer in kernels).most_common()),
        fused=sum(layer.is_fused_attention for layer in kernels),
        attentions=0 if found is None else len(found.attentions),
        paddings=sum(layer.is_padding for layer in kernels),
        parts=parts,
        note=note,
    )


def _find_blocks(source: Source) -> tuple[Blocks | None, str]:
    """The blocks of a file, quantised or not; and why there are none."""
    try:
        proto = drop_quantisation(parse_file(source.path), source.path.parent)
        blocks = find_blocks(probe_graph(Model(settle_message(proto, source.path), source.path, source.sha256)))
    except CorpOnnxError as error:
        return None, f"its blocks were not found: {error}"
    return (blocks, "") if blocks.blocks else (None, "its blocks were not found: nothing in it looks like one")


def _list_parts(found: Blocks, kernels: Sequence[EngineLayer]) -> Iterator[PartLayers]:
    owners = _own_nodes(found)
    groups: dict[int, list[EngineLayer]] = {}
    place = -1
    for layer in kernels:
        votes = Counter(owners[name] for name in layer.origins if name in owners)
        place = min(votes, key=lambda p: (-votes[p], p)) if votes else place
        groups.setdefault(place, []).append(layer)
    for place in sorted({*groups, *range(len(found.blocks))}):
        block = found.blocks[place] if 0 <= place < len(found.blocks) else None
        name = f"blocks.{place}" if block is not None else BEFORE if place < 0 else BEHIND
        yield _describe_part(name, block, groups.get(place, []), found.graph)


def _own_nodes(found: Blocks) -> dict[str, int]:
    """The block of every node, by its name as TensorRT has it: -1 stands before all of them, their number behind."""
    graph, owners = found.graph, dict[int, int]()
    for place, tensors in enumerate([_list_beginnings(found.blocks[0]), *map(_list_ends, found.blocks)], start=-1):
        for node in graph.list_sources(tensors):
            owners.setdefault(node.position, place)
    behind = len(found.blocks)
    return {node.name or f"node_of_{node.output}": owners.get(node.position, behind) for node in graph.nodes}


def _list_beginnings(block: Block) -> list[str]:
    """What the first block reads of the residual stream."""
    site = block.sites[0]
    return [site.residual.skip] if site.residual is not None and site.residual.skip is not None else []


def _list_ends(block: Block) -> list[str]:
    """What the next block reads."""
    if block.stream is not None:
        return [block.stream]
    return [site.last.output for site in block.sites if site.last is not None and site.last.output is not None]


def _describe_part(name: str, block: Block | None, layers: Sequence[EngineLayer], graph: Graph) -> PartLayers:
    attention = None if block is None else block.attention
    widths = None if attention is None else (attention.d_qk, attention.d_v)
    is_fused = any(layer.is_fused_attention for layer in layers)
    is_half = attention is not None and graph.types.get(attention.node.output) in HALVES
    types = dict.fromkeys(TYPES[t] for layer in layers for t in layer.types if t in TYPES)
    return PartLayers(
        part=name,
        attention=FUSED if is_fused else NONE if attention is None else APART,
        widths=widths,
        kernels=len(layers),
        products=sum(layer.is_product for layer in layers),
        paddings=sum(layer.is_padding for layer in layers),
        precision=tuple(sorted(types)),
        reason="" if widths is None else find_broken_rules(widths, is_half=is_half, is_fused=is_fused),
    )


def find_broken_rules(widths: tuple[int, int], *, is_half: bool, is_fused: bool) -> str:
    """Why an attention is not fused, or is at a cost; empty where nothing is to be said.

    Args:
        widths: of the heads of q and k, and of v.
        is_half: whether its products are in 16 bits.
        is_fused: whether it is one kernel.
    """
    d_qk, d_v = widths
    if is_fused:
        is_aligned = d_qk % ALIGNMENT == 0
        return "" if is_aligned else f"width {d_qk} is no multiple of {ALIGNMENT}: copied into a wider tensor"
    rules = {
        "it needs float16": not is_half,
        f"q and k are {d_qk} wide and v {d_v}, it needs equal widths": d_qk != d_v,
        f"it needs widths of {SMALLEST} to {LARGEST}": not SMALLEST <= min(widths) <= max(widths) <= LARGEST,
    }
    return "; ".join(rule for rule, is_broken in rules.items() if is_broken) or "it breaks no rule that is known here"
