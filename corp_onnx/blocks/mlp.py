"""MLP units: two weight products with only per-channel operators between them.

The search starts at the second product and walks back. Everything on the way must act on each hidden channel alone,
so that a channel can be cut out of the whole region; every spelling of GELU, SwiGLU packed or split, a bias in the
product, after it or inside BiasGelu are then one case. A mismatch says at which node the walk stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from corp_onnx.blocks.linear import (
    Mismatch,
    is_channel_vector,
    is_product,
    is_scalar,
    match_linear,
    residual_after,
)
from corp_onnx.blocks.units import Linear, MlpUnit, Slot, UpProjection
from corp_onnx.graph import Graph, Node

UNARY = frozenset(
    {"Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Elu", "LeakyRelu", "HardSigmoid"}
    | {"HardSwish", "Mish", "Softplus", "Swish", "Exp", "Sqrt", "Neg", "Abs", "Reciprocal", "Clip", "Celu", "Selu"}
    | {"Identity", "Dropout", "Cast"}
)
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min"})
NONLINEAR = frozenset(
    {"Erf", "Tanh", "Sigmoid", "Relu", "Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Elu", "LeakyRelu", "HardSigmoid"}
    | {"HardSwish", "Mish", "Softplus", "Swish", "Celu", "Selu"}
)
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


def match_mlp(graph: Graph, node: Node) -> MlpUnit | Mismatch | None:
    """The MLP whose second product is `node`; a Mismatch when it looks like one; None when it does not.

    It looks like one when a nonlinearity feeds the product.
    """
    down = match_linear(graph, node)
    if isinstance(down, Mismatch):
        return None
    region = _Region()
    stop = _walk(graph, down.input, down.d_in, region)
    if not any(n.op in NONLINEAR for n in region.nodes):
        return None
    if stop is not None:
        return stop
    ups = _ups(graph, region, down.d_in)
    if isinstance(ups, Mismatch):
        return ups
    if escape := _escape(graph, region, ups, down):
        return escape
    residual = residual_after(graph, down.output or "", down.d_out)
    if residual is None:
        return Mismatch("expected a residual addition after the second product, found none", node, 3)
    if residual.bias is not None and down.bias is None:
        down = Linear(
            down.input, down.output, down.weight, down.transposed, residual.bias, 0, False, down.d_in, down.d_out
        )  # fmt: skip
    activation = _activation(region, ups)
    spelling = "+".join([ups[0].linear.node.op, activation, node.op])
    return MlpUnit(
        key="",
        position=node.position,
        hidden=down.input,
        ups=ups,
        per_channel=tuple(region.per_channel),
        reshapes=tuple(region.reshapes),
        splits=tuple(region.splits),
        down=down,
        residual=residual,
        d_hidden=down.d_in,
        activation=activation,
        spelling=spelling,
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


def _enter(graph: Graph, node: Node, tensor: str, width: int, region: _Region, todo: list[str]) -> Mismatch | None:
    """Check one operator of the region and go on behind it."""
    shape = graph.dims(tensor)
    if node.op in UNARY or node.op in BINARY:
        for idx, name in enumerate(node.inputs):
            if name and graph.is_constant(name) and not is_scalar(graph, name):
                if not is_channel_vector(graph, name, width):
                    return Mismatch(f"expected a constant of {width} channels, found {graph.shape(name)}", node, 1)
                region.per_channel.append(Slot(node, idx))
            elif name:
                todo.append(name)
        return None
    before = graph.dims(node.inputs[0])
    if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") and before[-1] == shape[-1] == width:
        if node.op == "Reshape":
            region.reshapes.append(node)
        todo.append(node.inputs[0])
        return None
    if node.op in ("Split", "Slice") and before[-1] == 2 * width and shape[-1] == width:
        source = graph.producers.get(node.inputs[0])
        offset = _half(graph, node, tensor, width)
        while source is not None and source.op == "Add":  # the bias of a packed product
            vector = next((i for i, n in enumerate(source.inputs) if is_channel_vector(graph, n, 2 * width)), None)
            if vector is None:
                break
            region.nodes.setdefault(source)
            source = graph.producers.get(source.inputs[1 - vector])
        if source is None or not is_product(graph, source) or offset is None:
            return Mismatch("expected gate and value to be the halves of one product", node, 2)
        region.products.setdefault(source, []).append((tensor, offset))
        if node not in region.splits:
            region.splits.append(node)
        return None
    found = f"{node.op} {before} -> {shape}"
    return Mismatch(f"expected only per-channel operators between two products, found {found}", node, len(region.nodes))


def _half(graph: Graph, node: Node, tensor: str, width: int) -> int | None:
    """0 or `width`: which half of the last axis a Split output or a Slice is."""
    if node.op == "Split":
        axis = node.attrs.get("axis", 0)
        rank = len(graph.dims(node.inputs[0]))
        return node.outputs.index(tensor) * width if axis in (-1, rank - 1) else None
    starts = graph.value(node.inputs[1]) if len(node.inputs) > 1 else None
    if starts is None or starts.size != 1:
        return None
    start = int(starts.reshape(-1)[0])
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
    if len({up.linear.input for up in ups}) != 1:
        return Mismatch("expected the first products to read one tensor", ups[-1].linear.node, 2)
    return tuple(sorted(ups, key=lambda up: up.linear.node.position))


def _escape(graph: Graph, region: _Region, ups: tuple[UpProjection, ...], down: Linear) -> Mismatch | None:
    """A tensor of the region that something outside it reads too, so that its width can not change."""
    inside = {*region.nodes, *(up.linear.node for up in ups), down.node}
    tensors = [n.output for n in inside if n is not down.node] + [o for s in region.splits for o in s.outputs]
    for tensor in tensors:
        if tensor in graph.outputs:
            return Mismatch(f"'{tensor}' is an output of the graph, so its width can not change", down.node, 2)
        for node, idx in graph.users(tensor):
            if node not in inside and not (node.op == "Shape" and _only_leading(graph, node)) and idx >= 0:
                return Mismatch(
                    f"expected the hidden tensor to stay between the products, but {node} reads it", node, 2
                )
    return None


def _only_leading(graph: Graph, shape_node: Node) -> bool:
    """Whether a Shape is asked only for axes before the channels."""
    rank = len(graph.dims(shape_node.inputs[0]))
    if "end" in shape_node.attrs and 0 < shape_node.attrs["end"] < rank:
        return True
    for node, _ in graph.users(shape_node.output):
        idx = graph.value(node.inputs[1]) if node.op in ("Gather", "Slice") else None
        ends = graph.value(node.inputs[2]) if node.op == "Slice" else idx
        if idx is None or ends is None or np.any((ends % rank if node.op == "Gather" else ends - 1) >= rank - 1):
            return False
    return True


def _activation(region: _Region, ups: tuple[UpProjection, ...]) -> str:
    """A tag for the spelling of the nonlinearity."""
    ops = {n.op for n in region.nodes}
    gated = "swiglu" if len(ups) == 2 or len(ups[0].channel_idx) == 2 else ""
    if gated:
        return f"{gated}-{'packed' if len(ups) == 1 else 'split'}"
    for op, tag in (
        ("Erf", "gelu-erf"),
        ("BiasGelu", "bias-gelu"),
        ("FastGelu", "fast-gelu"),
        ("QuickGelu", "quick-gelu"),
    ):
        if op in ops:
            return tag
    for op, tag in (("Gelu", "gelu"), ("Tanh", "gelu-tanh"), ("Sigmoid", "quick-gelu"), ("Relu", "relu")):
        if op in ops:
            return tag
    return next((n.op.lower() for n in region.nodes if n.op in NONLINEAR), "unknown")
