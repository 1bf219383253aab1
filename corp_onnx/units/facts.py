"""What units cost: their parameters and multiply-accumulates, with their share of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corp_onnx.blocks import Operand
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.results import UnitFacts

if TYPE_CHECKING:
    from corp_onnx.units.base import Unit


def describe_unit(unit: Unit, graph: Graph, cost: Cost, n_tokens: int, n_parameters: int, macs: int) -> UnitFacts:
    """A unit with its share of the model.

    Args:
        cost: of the nodes, which need not be that of the graph as it stands (see `TokenTrim.reduce_cost`).
    """
    reason = unit.skip.reason if unit.skip else ""
    return UnitFacts(
        str(unit.key), unit.kind, unit.site.key.block, unit.width, unit.n_heads, n_tokens, unit.site.spelling,
        n_parameters, macs, n_parameters / max(graph.n_parameters, 1), macs / max(cost.total, 1),
        not reason, reason, unit.shares_site,
    )  # fmt: skip


def projection_cost(graph: Graph, cost: Cost, operand: Operand) -> tuple[int, int]:
    """(parameters, MACs) of the columns of a projection that make one operand."""
    linear, n_columns = operand.linear, operand.channel_idx.size
    if linear.output is not None:
        macs = round(cost.by_node.get(linear.node.output, 0) * n_columns / linear.d_out)
    else:  # inside a fused operator
        macs = int(np.prod(graph.dims(linear.input)[:-1])) // graph.n_images * linear.d_in * n_columns
    return n_columns * linear.d_in + (n_columns if linear.bias else 0), macs
