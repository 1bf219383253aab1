"""A model file -> what is in it: blocks, units with their widths and cost, and what was not recognised and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.graph import Graph, batch_kind, load_model
from corp_onnx.graph.model import describe_file
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
    model, proto = graph.model, graph.model.proto
    return ModelFacts(
        **asdict(describe_file(model, graph.float_type)),
        n_parameters=graph.n_parameters,
        macs=graph.cost.total,
        opset=model.opset,
        batch=batch_kind(model),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
    )


def describe_dead_tokens(graph: Graph) -> DeadTokens | None:
    """The tokens that no output reads, and what is computed for them."""
    trim = find_dead_tokens(graph)
    if trim is None:
        return None
    return DeadTokens(trim.n_tokens, len(trim.token_idx), trim.saved, trim.saved / graph.cost.total)


def describe_skips(blocks: Blocks, kinds: Collection[str] = ()) -> tuple[SkipFacts, ...]:
    """What looked like a unit and is left alone.

    Args:
        kinds: of units whose own reasons are wanted besides those of the search for blocks.
    """
    own = [unit.skip for unit in list_units(blocks, kinds, skipped=True) if unit.skip is not None]
    skips = [*blocks.skipped, *(skip for skip in own if skip not in blocks.skipped)]
    return tuple(SkipFacts(s.kind, s.node, s.reason) for s in skips)


def describe_units(graph: Graph, blocks: Blocks) -> tuple[UnitFacts, ...]:
    """Every unit with its share of the model, block by block."""
    units = sorted(list_units(blocks, KINDS, skipped=True), key=lambda unit: unit.key)
    return tuple(unit.describe(graph, graph.cost) for unit in units)
