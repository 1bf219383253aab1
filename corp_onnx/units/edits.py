"""Edits that every kind shares: a weight, a bias, and a whole branch of the residual stream."""

from __future__ import annotations

import numpy as np

from corp_onnx.blocks import Linear, Residual
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.memory import forget_pages


def set_weight(surgeon: Surgeon, linear: Linear, weight: np.ndarray) -> None:
    """Store a weight [d_out, d_in] in the layout and precision of the old one."""
    dtype = linear.read_weight(surgeon.graph).dtype
    stored = narrow(surgeon.graph, linear.weight.name, weight if linear.transposed else weight.T, dtype)
    surgeon.replace_stored(linear.weight, stored)


def narrow(graph: Graph, name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A solution in the precision of what it replaces.

    Raises:
        NonFiniteError: it holds numbers that this precision does not.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    forget_pages(array)
    if not np.isfinite(stored).all():
        raise NonFiniteError(
            f"{graph.model.path}: what would replace '{name}' reaches {float(np.abs(array).max()):.2g}, which {dtype} "
            "can not hold; give the model in float32, from a sound checkpoint."
        )
    return stored


def shape_like(graph: Graph, slot: Slot, vector: np.ndarray) -> np.ndarray:
    """A vector in the rank and precision of what is stored at a slot."""
    old = graph.stored(slot.name)
    return narrow(graph, slot.name, vector, old.dtype).reshape(*[1] * (old.ndim - 1), -1)


def set_bias(surgeon: Surgeon, linear: Linear, bias: np.ndarray) -> None:
    """Store a bias; a product that has none gets an Add behind it, unless the bias is zero."""
    if linear.bias is not None:
        surgeon.replace_stored(linear.bias, shape_like(surgeon.graph, linear.bias, bias))
        return
    if not np.any(bias):
        return
    dtype = linear.read_weight(surgeon.graph).dtype
    output = surgeon.drop_producer(linear.node.output)
    product = surgeon.variable(f"{output.name}_product")
    surgeon.at(linear.node).outputs = [product]
    stored = surgeon.constant(f"{output.name}_bias", narrow(surgeon.graph, f"{output.name}_bias", bias, dtype))
    surgeon.insert("Add", [product, stored], [output], linear.node)


def can_remove(graph: Graph, linear: Linear, residual: Residual | None) -> bool:
    """Whether a constant may stand for a branch: between its last product and the addition no shape is touched."""
    late = linear.bias is not None and not linear.output_has_bias
    if residual is None or residual.skip is None or linear.output is None or late:
        return False
    tensor = linear.output
    while True:
        users = graph.users(tensor)
        if len(users) != 1 or tensor in graph.outputs:
            return False
        node = users[0][0]
        if node.op == "Add" and residual.skip in node.inputs:
            return graph.dims(residual.skip) == graph.dims(node.output)
        if not _keeps_shape(graph, node, tensor):
            return False
        tensor = node.output


def _keeps_shape(graph: Graph, node: Node, tensor: str) -> bool:
    """LayerScale, or what only passes on."""
    others = [name for name in node.inputs if name != tensor]
    return node.op in ("Identity", "Cast") or (node.op == "Mul" and all(graph.is_constant(name) for name in others))


def remove_branch(surgeon: Surgeon, linear: Linear, mean: np.ndarray) -> None:
    """Let the residual stream read the mean output of a branch instead; what computed it goes."""
    dtype = linear.read_weight(surgeon.graph).dtype
    stored = surgeon.constant(f"{linear.output}_mean", narrow(surgeon.graph, f"{linear.output}_mean", mean, dtype))
    for node, idx in surgeon.graph.users(linear.output or ""):
        surgeon.replace_input(Slot(node, idx), stored)
