"""A model file -> what is in it: blocks, units with their widths and cost, and what was not recognised and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corp_onnx.blocks import AttentionUnit, Blocks, MlpUnit, Operand, find_blocks
from corp_onnx.graph import Graph, Model, batch_kind, count_parameters, file_size, load_model
from corp_onnx.graph.cost import Cost, count_macs
from corp_onnx.results import DeadTokens, Inspection, ModelFacts, SkipFacts, UnitFacts
from corp_onnx.run.probe import probe_graph
from corp_onnx.tokens.liveness import find_dead_tokens


def inspect_model(path: Path | str) -> Inspection:
    """Blocks, units and skipped parts of an ONNX file.

    Raises:
        ModelError: the file can not be read, is quantised, or ONNX Runtime can not run it.
        MissingExtraError: no onnxruntime is installed.
    """
    graph = probe_graph(load_model(path))
    blocks = find_blocks(graph)
    units, skips = describe_units(graph, blocks), describe_skips(blocks)
    return Inspection(describe_model(graph), len(blocks.blocks), units, skips, describe_dead_tokens(graph))


def describe_model(graph: Graph) -> ModelFacts:
    """The facts of a probed model."""
    model: Model = graph.model
    proto = model.proto
    return ModelFacts(
        path=str(model.path),
        sha256=model.sha256,
        n_bytes=file_size(model),
        n_parameters=count_parameters(graph),
        macs=count_macs(graph).total,
        opset=model.opset,
        precision=graph.float_type,
        batch=batch_kind(model),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
    )


def describe_dead_tokens(graph: Graph) -> DeadTokens | None:
    """The tokens that no output reads, and what is computed for them."""
    trim = find_dead_tokens(graph)
    if trim is None:
        return None
    return DeadTokens(trim.n_tokens, len(trim.token_idx), trim.saved, trim.saved / count_macs(graph).total)


def describe_skips(blocks: Blocks) -> tuple[SkipFacts, ...]:
    """What looked like a unit and is left alone."""
    return tuple(SkipFacts(s.kind, s.node, s.reason) for s in blocks.skipped)


def describe_units(graph: Graph, blocks: Blocks, cost: Cost | None = None) -> tuple[UnitFacts, ...]:
    """Every unit with its share of the model.

    Args:
        cost: of the nodes, where it is not that of the graph as it stands (see `TokenTrim.reduce_cost`).
    """
    cost = cost or count_macs(graph)
    units: list[UnitFacts] = []
    for block in blocks.blocks:
        if block.attention is not None:
            units += _attention_facts(graph, cost, block.idx, block.attention)
        if block.mlp is not None:
            units.append(_mlp_facts(graph, cost, block.idx, block.mlp))
    return tuple(units)


def _mlp_facts(graph: Graph, cost: Cost, block: int, unit: MlpUnit) -> UnitFacts:
    linears = [*(up.linear for up in unit.ups), unit.down]
    parameters = sum(li.d_in * li.d_out + (li.d_out if li.bias else 0) for li in linears)
    macs = sum(cost.by_node.get(li.node.output, 0) for li in linears)
    n_tokens = int(np.prod(graph.shapes[unit.hidden][:-1])) // graph.n_images
    return _facts(
        graph, cost, unit.key, "mlp", block, unit.d_hidden, None, n_tokens, unit.spelling, parameters, macs, ""
    )


def _attention_facts(graph: Graph, cost: Cost, block: int, unit: AttentionUnit) -> list[UnitFacts]:
    core_macs = _core_macs(graph, cost, unit)
    n_tokens = unit.q.n_tokens if unit.q else unit.v.n_tokens if unit.v else 0
    qk = [_projection_cost(graph, cost, o) for o in (unit.q, unit.k) if o is not None]
    qk_cost = sum(p for p, _ in qk), sum(m for _, m in qk) + core_macs[0]
    n_parameters, macs = _projection_cost(graph, cost, unit.v) if unit.v is not None else (0, 0)
    if unit.out is not None:
        out = unit.out.linear
        n_parameters += out.d_in * out.d_out + (out.d_out if out.bias else 0)
        macs += cost.by_node.get(out.node.output, 0)
    pairs = (
        (unit.qk_key, "qk", unit.d_qk, qk_cost, unit.qk_skip),
        (unit.vo_key, "vo", unit.d_v, (n_parameters, macs + core_macs[1]), unit.vo_skip),
    )
    return [
        _facts(
            graph, cost, key, kind, block, width, unit.n_heads, n_tokens, unit.spelling, *spent,
            skip.reason if skip else "",
        )
        for key, kind, width, spent, skip in pairs
    ]  # fmt: skip


def _projection_cost(graph: Graph, cost: Cost, operand: Operand) -> tuple[int, int]:
    """(parameters, MACs) of the columns of a projection that make one operand."""
    linear, n_columns = operand.linear, operand.channel_idx.size
    if linear.output is not None:
        macs = round(cost.by_node.get(linear.node.output, 0) * n_columns / linear.d_out)
    else:  # inside a fused operator
        macs = int(np.prod(graph.dims(linear.input)[:-1])) // graph.n_images * linear.d_in * n_columns
    return n_columns * linear.d_in + (n_columns if linear.bias else 0), macs


def _core_macs(graph: Graph, cost: Cost, unit: AttentionUnit) -> tuple[int, int]:
    """MACs of q k' and of P v."""
    if unit.core == "softmax":
        values = [n for n, i in graph.users(unit.v.tensor) if n.op == "MatMul" and i == 1] if unit.v else []
        return cost.by_node.get(unit.node.output, 0), sum(cost.by_node.get(n.output, 0) for n in values)
    inside = [o for o in (unit.q, unit.k, unit.v) if o is not None and o.linear.output is None]
    total = cost.by_node.get(unit.node.output, 0) - sum(_projection_cost(graph, cost, o)[1] for o in inside)
    share = unit.d_qk / (unit.d_qk + unit.d_v)
    return round(total * share), total - round(total * share)


def _facts(
    graph: Graph, cost: Cost, key: str, kind: str, block: int, width: int, n_heads: int | None, n_tokens: int,
    spelling: str, n_parameters: int, macs: int, reason: str,
) -> UnitFacts:  # fmt: skip
    return UnitFacts(
        key, kind, block, width, n_heads, n_tokens, spelling, n_parameters, macs,
        n_parameters / max(count_parameters(graph), 1), macs / max(cost.total, 1), not reason, reason,
    )  # fmt: skip
