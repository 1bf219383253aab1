"""The products of a graph as a quantiser sees them: which can be 8-bit integers, and why the others stay in float.

Enters a probed `Graph`; leaves one `Product` for every node that multiplies matrices. A product with a stored weight
becomes integers. Those of attention, Q K' and P V, do not: both of their sides are activations, and to quantise
them at every run costs more than 8 bits save at the sizes of a head (DeiT-Tiny: 197 x 64).
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from corp_onnx.graph import Graph, Node
from corp_onnx.graph.cost import count_macs
from corp_onnx.graph.operators import OPERATORS, PRODUCTS

PRODUCT_OPS = tuple(sorted(name for name in PRODUCTS if "" in OPERATORS[name].domains))
"""What both quantisers of ONNX Runtime turn into integer products that its CPU runs faster than float ones: those of
ONNX itself. They leave its own, FusedMatMul and FusedGemm, alone."""

REASONS = {
    "Conv": "an integer convolution is slower on a CPU, and it sees the pixels first",
    "Attention": "its products have no weights of their own, or hold them inside one operator",
    "MultiHeadAttention": "its products have no weights",
    "FusedMatMul": "ONNX Runtime's quantiser leaves fused products alone",
    "Einsum": "ONNX Runtime's quantiser leaves it alone",
}
"""Operators with multiplications that stay in float."""

TWO_ACTIVATIONS = "no weight: both sides are activations"
FLATTENED_GEMM = "a Gemm with alpha, beta or transA"
SHARED_TYPE = "its weight is not a matrix in float32"


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A node that multiplies matrices; `reason` says why it stays in float and is empty where it need not."""

    node: Node
    macs: int
    reason: str


def list_products(graph: Graph) -> tuple[Product, ...]:
    """Every node that multiplies matrices, in the order of the graph."""
    macs = count_macs(graph).by_node
    nodes = [node for node in graph.nodes if node.op in PRODUCT_OPS or node.op in REASONS]
    return tuple(Product(node, macs.get(node.output, 0), _reason(graph, node)) for node in nodes)


def _reason(graph: Graph, node: Node) -> str:
    if node.op in REASONS:
        return REASONS[node.op]
    if not graph.is_constant(node.inputs[1]):
        return TWO_ACTIVATIONS
    if graph.is_constant(node.inputs[0]) or len(graph.dims(node.inputs[1])) != 2:
        return SHARED_TYPE
    if graph.types.get(node.output) not in (TensorProto.FLOAT, TensorProto.BFLOAT16):
        return SHARED_TYPE
    plain = all(node.attrs.get(name, 1.0) == 1.0 for name in ("alpha", "beta")) and not node.attrs.get("transA")
    return "" if plain else FLATTENED_GEMM
