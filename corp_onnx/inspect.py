"""A model file -> what is in it: blocks, units with their widths and cost, and what was not recognised and why."""

from __future__ import annotations

from pathlib import Path

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.graph import Graph, Model, batch_kind, count_parameters, file_size, load_model
from corp_onnx.graph.cost import count_macs
from corp_onnx.results import DeadTokens, Inspection, ModelFacts, SkipFacts, UnitFacts
from corp_onnx.run.probe import probe_graph
from corp_onnx.tokens.liveness import find_dead_tokens
from corp_onnx.units import KINDS, list_units


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


def describe_units(graph: Graph, blocks: Blocks) -> tuple[UnitFacts, ...]:
    """Every unit with its share of the model, block by block."""
    own = [name for name, kind in KINDS.items() if not kind.shares_site]  # what shares a site has no cost of its own
    units = sorted(list_units(blocks, own, skipped=True), key=lambda unit: unit.key)
    return tuple(unit.describe(graph, count_macs(graph)) for unit in units)
