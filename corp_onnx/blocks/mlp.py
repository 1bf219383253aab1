"""MLP units: two weight products with only per-channel operators between them.

The search starts at the second product and walks back. Everything on the way must act on each hidden channel alone,
so that a channel can be cut out of the whole region; every spelling of GELU, SwiGLU packed or split, a bias in the
product, after it or inside BiasGelu are then one case. A mismatch says at which node the walk stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from corp_onnx.blocks.found import UNPLACED, Mlp
from corp_onnx.blocks.linear import (
    Mismatch,
    is_channel_vector,
    is_product,
    is_scalar,
    match_linear,
    residual_after,
)
from corp_onnx.blocks.products import Linear, UpProjection
from corp_onnx.blocks.readers import find_reader
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import CONVOLUTIONS, ELEMENTWISE, FIRST_IS_DATA, NONLINEAR, PRODUCTS, RESHAPES
from corp_onnx.graph.slots import Slot

ACTIVATIONS = {
    "Erf": "gelu-erf",
    "BiasGelu": "bias-gelu",
    "FastGelu": "fast-gelu",
    "QuickGelu": "quick-gelu",
    "Gelu": "gelu",
    "Tanh": "gelu-tanh",
    "Sigmoid": "quick-gelu",
}
"""The tag of a spelling by its most telling operator, first come first served."""

MAX_REGION = 40
"""Operators between the products; the longest known spelling (tanh GELU with casts) has fewer than twenty."""


@dataclass(slots=True)
class _Region:
    """The walk's running state: one region between two products."""

    nodes: dict[Node, None] = field(default_factory=dict)
    products: dict[Node, list[tuple[str, int]]] = field(default_factory=dict)
    per_channel: list[Slot] = field(default_factory=list)
    reshapes: list[Node] = field(default_factory=list)
    splits: list[Node] = field(default_factory=list)


def match_mlp(graph: Graph, node: Node) -> Mlp | Mismatch | None:
    """The MLP whose second product is `node`; a Mismatch when it looks like one; None when it does not.

    It looks like one when a nonlinearity feeds the product.
    """
    down = match_linear(graph, node)
    if isinstance(down, Mismatch):
        return None
    region = _Region()
    stop = _walk(graph, down.input, down.d_in, region)
    if not any(n.op in NONLINEAR for n in region.nodes):
        return stop if stop is not None and _looks_like_mlp(graph, down.input) else None
    ups = stop or _ups(graph, region, down.d_in)
    if isinstance(ups, Mismatch):
        return ups
    if reader := _reader(graph, region, ups, down):
        return reader
    residual = residual_after(graph, down.output or "", down.d_out)
    if residual is None:
        return Mismatch("expected a residual addition after the second product, found none", node, 3)
    if residual.bias is not None and down.bias is None:
        down = replace(down, bias=residual.bias)
    activation = _activation(region, ups)
    return Mlp(
        key=UNPLACED,
        position=node.position,
        hidden=down.input,
        ups=ups,
        per_channel=tuple(region.per_channel),
        reshapes=tuple(dict.fromkeys([*region.reshapes, *(r for up in ups for r in up.linear.reshapes)])),
        splits=tuple(region.splits),
        down=down,
        residual=residual,
        d_hidden=down.d_in,
        activation=activation,
        spelling="+".join([ups[0].linear.node.op, activation, node.op]),
    )


def _walk(graph: Graph, start: str, width: int, region: _Region) -> Mismatch | None:
    """Collect the region behind a tensor of `width` channels; the mismatch that stopped the walk, if any."""
    todo: list[str] = [start]
    seen: set[str] = set()
    while todo:
        tensor = todo.pop()
        if tensor in seen or graph.is_constant(tensor) or is_scalar(graph, tensor):
            continue
        seen.add(tensor)
        node = graph.producers.get(tensor)
        if node is None:
            return Mismatch("expected a first product, reached an input of the graph", graph.consumers[tensor][0][0])
        if is_product(graph, node):
            region.products.setdefault(node, []).append((tensor, 0))
            continue
        if len(region.nodes) > MAX_REGION:
            return Mismatch(f"no first product within {MAX_REGION} operators", node)
        region.nodes.setdefault(node)
        if stop := _enter(graph, node, tensor, width, region, todo):
            return stop
    return None


def _looks_like_mlp(graph: Graph, tensor: str) -> bool:
    """Whether an activation and a first product stand behind a tensor, whatever else stands between."""
    todo, ops, n_products = [tensor], set[str](), 0
    for _ in range(MAX_REGION):
        source = graph.producers.get(todo.pop()) if todo else None
        if source is None:
            continue
        n_products += is_product(graph, source)
        computed = [name for name in source.inputs if name and not graph.is_constant(name)]
        is_sum = source.op == "Add" and len(computed) > 1
        if source.op not in PRODUCTS | CONVOLUTIONS and not is_sum:
            ops.add(source.op)
            todo += computed
    return bool(ops & NONLINEAR) and n_products > 0


def _enter(graph: Graph, node: Node, tensor: str, width: int, region: _Region, todo: list[str]) -> Mismatch | None:
    """Check one operator of the region and go on behind it."""
    before, shape = graph.dims(node.inputs[0]), graph.dims(tensor)
    if node.op in ELEMENTWISE:
        return _enter_pointwise(graph, node, width, region, todo)
    if node.op in RESHAPES and before[-1] == shape[-1] == width:
        if node.op == "Reshape":
            region.reshapes.append(node)
        todo.append(node.inputs[0])
        return None
    if node.op in ("Split", "Slice") and before[-1] == 2 * width and shape[-1] == width:
        return _enter_half(graph, node, tensor, width, region)
    found = f"{node.op} {before} -> {shape}"
    return Mismatch(f"expected only per-channel operators between two products, found {found}", node, len(region.nodes))


def _enter_pointwise(graph: Graph, node: Node, width: int, region: _Region, todo: list[str]) -> Mismatch | None:
    """An operator that acts on each number alone; stored vectors that it reads are cut along."""
    for idx, name in enumerate(node.inputs[:1] if node.op in FIRST_IS_DATA else node.inputs):
        if name and graph.is_constant(name) and not is_scalar(graph, name):
            if not is_channel_vector(graph, name, width):
                return Mismatch(f"expected a constant of {width} channels, found {graph.shape(name)}", node, 1)
            region.per_channel.append(Slot(node, idx))
        elif name:
            todo.append(name)
    return None


def _enter_half(graph: Graph, node: Node, tensor: str, width: int, region: _Region) -> Mismatch | None:
    """A Split or Slice that parts a packed gate and value; behind it stand only their product and its bias."""
    source, offset = graph.producers.get(node.inputs[0]), _half(graph, node, tensor, width)
    while source is not None and source.op in ("Add", "Reshape"):
        vectors = [i for i, name in enumerate(source.inputs) if is_channel_vector(graph, name, 2 * width)]
        if source.op == "Add" and not vectors:
            break
        region.nodes.setdefault(source)
        region.reshapes += [source] if source.op == "Reshape" else []
        source = graph.producers.get(source.inputs[1 - vectors[0] if source.op == "Add" else 0])
    if source is None or not is_product(graph, source) or offset is None:
        return Mismatch("expected gate and value to be the halves of one product", node, 2)
    region.products.setdefault(source, []).append((tensor, offset))
    if node not in region.splits:
        region.splits.append(node)
    return None


def _half(graph: Graph, node: Node, tensor: str, width: int) -> int | None:
    """0 or `width`: which half of the last axis a Split output or a Slice is."""
    rank = len(graph.dims(node.inputs[0]))
    if node.op == "Split":
        return node.outputs.index(tensor) * width if node.attrs.get("axis", 0) in (-1, rank - 1) else None
    starts = graph.value(node.inputs[1]) if len(node.inputs) > 1 else None
    steps = graph.value(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] else np.ones(1)
    if starts is None or starts.size != 1 or steps is None or np.any(steps != 1):
        return None
    start = int(starts.reshape(-1)[0]) % (2 * width)
    return start if start in (0, width) else None


def _ups(graph: Graph, region: _Region, width: int) -> tuple[UpProjection, ...] | Mismatch:
    """The first products with the columns that feed each hidden channel."""
    if not region.products:
        return Mismatch("expected a first product, found none", next(iter(region.nodes)))
    ups: list[UpProjection] = []
    for node, reads in region.products.items():
        linear = match_linear(graph, node)
        if isinstance(linear, Mismatch):
            return linear
        offsets = sorted({offset for _, offset in reads})
        packed = any(tensor not in node.outputs for tensor, _ in reads)
        expected = 2 * width if packed else width
        if linear.d_out != expected or (packed and offsets != [0, width]):
            return Mismatch(f"expected a first product of {expected} channels, found {linear.d_out}", node, 2)
        ups.append(UpProjection(linear, np.arange(width)[None] + np.array(offsets)[:, None]))
    return tuple(sorted(ups, key=lambda up: up.linear.node.position))


def _reader(graph: Graph, region: _Region, ups: tuple[UpProjection, ...], down: Linear) -> Mismatch | None:
    """A reader outside the region of one of its tensors, so that their width can not change."""
    biases = {up.linear.bias.node for up in ups if up.linear.bias is not None}
    reshapes = {node for up in ups for node in up.linear.reshapes}
    inside = {*region.nodes, *(up.linear.node for up in ups), *biases, *reshapes}
    pinned = {Slot(node, idx) for node in region.splits for idx in (1, 2)}
    pinned |= {Slot(node, 1) for node in (*region.reshapes, *reshapes)}
    for tensor in (out for node in inside for out in node.outputs if out):
        last = len(graph.dims(tensor)) - 1
        if problem := find_reader(graph, tensor, [last], {*inside, down.node}, pinned):
            return problem
    return None


def _activation(region: _Region, ups: tuple[UpProjection, ...]) -> str:
    """A tag for the spelling of the nonlinearity."""
    if len(ups) == 2 or len(ups[0].channel_idx) == 2:
        return f"gated-{'packed' if len(ups) == 1 else 'split'}"
    ops = {n.op for n in region.nodes}
    return next((tag for op, tag in ACTIVATIONS.items() if op in ops), min(ops & NONLINEAR).lower())
