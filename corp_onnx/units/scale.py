"""The scale of the logits in the weights of the queries: softmax(s q k') = softmax((s q) k'), with fewer operators.

Enters an attention; leaves the multiplications and divisions by one number that make up its scale, or nothing where
one of them has other readers, stands behind a mask, or is inside a fused operator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from corp_onnx.blocks import Attention, QkPair
from corp_onnx.blocks.layout import scalar_operand
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot
from corp_onnx.graph.surgeon import Surgeon

SAME_SCALE = 1e-6
"""Relative: what was found is all of the scale."""

Scalars = dict[Node, int]
"""Multiplications by one number, and which of their inputs carries the data."""


def find_scalars(graph: Graph, site: Attention) -> Scalars:
    """The operators that can go; empty where they can not, or where there are none."""
    if site.core != "softmax" or not isinstance(site.qk, QkPair):
        return {}
    found: Scalars = {}
    factor = float(site.node.attrs.get("alpha", 1.0))
    for node in (*site.qk.q.path, *site.qk.k.path, *_list_behind(graph, site.node)):
        if (scaled := scalar_operand(graph, node)) is not None:
            found[node] = scaled[0]
            factor *= scaled[1]
    alone = all(len(graph.users(node.output)) == 1 for node in found)
    return found if alone and math.isclose(factor, site.scale, rel_tol=SAME_SCALE) else {}


def _list_behind(graph: Graph, product: Node) -> Iterator[Node]:
    """The multiplications that stand directly behind q k', before any mask is added."""
    tensor = product.output
    while len(users := graph.users(tensor)) == 1 and scalar_operand(graph, users[0][0]) is not None:
        yield users[0][0]
        tensor = users[0][0].output


def bypass_scalars(surgeon: Surgeon, scalars: Scalars) -> None:
    """Let whoever reads one of them read what came in."""
    outputs = {node.output: node.inputs[data] for node, data in scalars.items()}
    for node in scalars:
        source = node.output
        while source in outputs:
            source = outputs[source]
        for user, idx in surgeon.graph.users(node.output):
            if user not in scalars:
                surgeon.replace_input(Slot(user, idx), surgeon.tensor(source))
