"""Weight products: MatMul with a stored matrix, or Gemm, with the bias added by the same or the next operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks.products import Linear, Residual
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.operators import NORMS, PASS_THROUGH, PRODUCTS, RESHAPES, SKIP_NORMS
from corp_onnx.graph.slots import Slot

MAX_TO_RESIDUAL = 8
"""Operators between a unit's last product and the residual addition: bias, LayerScale, layout, dropout."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Why a match failed: (reason, node), with how far it came, so that the nearest miss can be shown."""

    reason: str
    node: Node
    depth: int = 0


def is_product(graph: Graph, node: Node | None) -> bool:
    """Whether a node is data times a stored matrix."""
    if node is None or node.op not in PRODUCTS:
        return False
    shape = graph.shape(node.inputs[1]) if graph.is_constant(node.inputs[1]) else None
    return shape is not None and len(shape) == 2 and not graph.is_constant(node.inputs[0])


def match_linear(graph: Graph, node: Node) -> Linear | Mismatch:
    """The product at a node together with the bias that follows it.

    The guards of STYLE 8: the weight is stored, two-dimensional, not a graph input; alpha, beta and transA are plain.
    """
    if not is_product(graph, node):
        return Mismatch("expected a product with a stored matrix", node)
    attrs = node.attrs
    if (
        attrs.get("transA")
        or attrs.get("transBatchA")
        or attrs.get("alpha", 1.0) != 1.0
        or attrs.get("beta", 1.0) != 1.0
    ):
        return Mismatch("expected alpha = beta = 1 and transA = 0", node)
    if "activation" in attrs:
        return Mismatch("expected a plain product, found one with a fused activation", node)
    transposed = bool(attrs.get("transB"))
    rows, cols = graph.dims(node.inputs[1])
    d_out, d_in = (rows, cols) if transposed else (cols, rows)
    x, output, bias, reshapes = node.inputs[0], node.output, None, ()
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = Slot(node, 2)
        if not is_channel_vector(graph, node.inputs[2], d_out):
            return Mismatch(f"expected a stored bias of {d_out}, found {graph.shape(node.inputs[2])}", node)
    elif added := following_bias(graph, output, d_out):
        bias, reshapes = added
        output = bias.node.output
    return Linear(x, output, Slot(node, 1), transposed, bias, 0, bias is not None, d_in, d_out, reshapes)


def following_bias(graph: Graph, tensor: str, width: int) -> tuple[Slot, tuple[Node, ...]] | None:
    """The stored vector that the only reader of a tensor adds to it, and the Reshapes in front of the addition."""
    reshapes: tuple[Node, ...] = ()
    while len(users := graph.users(tensor)) == 1 and tensor not in graph.outputs:
        node, idx = users[0]
        if node.op == "Reshape" and idx == 0 and graph.dims(node.output)[-1] == width:
            tensor, reshapes = node.output, (*reshapes, node)
            continue
        if node.op == "Add" and is_channel_vector(graph, node.inputs[1 - idx], width):
            return (Slot(node, 1 - idx), reshapes) if graph.shape(node.output) == graph.shape(tensor) else None
        break
    return None


def is_channel_vector(graph: Graph, name: str, width: int) -> bool:
    """Whether a tensor is stored and holds one number for every channel of the last axis (and nothing else)."""
    if not name or not graph.is_constant(name):
        return False
    shape = graph.shape(name)
    return shape is not None and len(shape) >= 1 and shape[-1] == width and int(np.prod(shape)) == width


def is_scalar(graph: Graph, name: str) -> bool:
    """Whether a tensor has one element, stored or computed."""
    shape = graph.shape(name)
    return shape is not None and int(np.prod(shape)) == 1


def residual_after(graph: Graph, tensor: str, d_model: int) -> Residual | None:
    """Follow a product's output to the residual addition; None when the output goes elsewhere."""
    scale: Slot | None = None
    is_plain = True
    for _ in range(MAX_TO_RESIDUAL):
        users = [u for u in graph.users(tensor) if u[0].op != "Shape"]
        if len(users) != 1 or tensor in graph.outputs:
            return None
        node, idx = users[0]
        if node.op == "Mul" and scale is None and is_channel_vector(graph, node.inputs[1 - idx], d_model):
            scale = Slot(node, 1 - idx)
        elif node.op == "Add" and not graph.is_constant(node.inputs[1 - idx]):
            return Residual(node.output, node.inputs[1 - idx] if is_plain else None, scale, None)
        elif node.op in SKIP_NORMS and idx in (0, 1):
            bias = Slot(node, 4) if len(node.inputs) > 4 and node.inputs[4] else None
            return Residual(node.output, None, scale, bias)
        elif node.op in {"Add", "Mul", *NORMS}:
            is_plain = False
        elif node.op not in PASS_THROUGH | RESHAPES | {"Transpose"}:  # no other move: those drop numbers
            return None
        tensor = node.output
    return None
