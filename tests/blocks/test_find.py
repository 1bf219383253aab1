"""What is found in every exported graph, against the manifest that its exporter wrote; and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import ENTRIES, find_in, fixture_path, is_quantised, probed, prunable_sites, runs_here
from onnx import TensorProto, helper, numpy_helper
from random_vits import Spelling, write_model

from corp_onnx.blocks import Skip, find_blocks
from corp_onnx.checks.preflight import choose_units
from corp_onnx.errors import ModelError, NothingToPruneError
from corp_onnx.graph import load_model
from corp_onnx.run.probe import probe_graph
from corp_onnx.settings import BEST, PAPER

RUN = [n for n in ENTRIES if runs_here(n)]
REASONS = {
    "rotary": "rotary embedding",
    "a norm sits": "changed by a norm (LayerNormalization)",
    "over the heads' outputs": "LayerNormalization sits between the values and the output projection",
    "over the hidden channels": "found LayerNormalization",
    "a gate per channel": "Mul sits between the values and the output projection",
}
"""What the manifest says is in the way, and how the skip says it."""


def per_block(value: Any, n_blocks: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * n_blocks


@pytest.mark.parametrize("name", RUN)
def test_units_are_those_of_the_manifest(name: str) -> None:
    """Traps 4, 5, 6, 9: weights, GELU, q, k and v, and the scale are one case in all their spellings."""
    expect = ENTRIES[name]["expect"]
    n_blocks = expect["n_blocks"]
    _, blocks = probed(name)
    assert n_blocks <= len(blocks.blocks) <= n_blocks + expect["extra_attention"]
    d_heads, n_heads = per_block(expect["d_head"], n_blocks), per_block(expect["n_heads"], n_blocks)
    for idx, block in enumerate(blocks.blocks[:n_blocks]):
        if expect["mlp_prunable"]:
            assert block.mlp is not None
            assert block.mlp.d_hidden == per_block(expect["d_hidden"], n_blocks)[idx]
        unit = block.attention
        assert unit is not None
        assert unit.n_heads == n_heads[idx]
        assert (unit.d_qk, unit.d_v) == (d_heads[idx], expect["d_head_v"] or d_heads[idx])
        for kind, pair in (("qk", unit.qk), ("vo", unit.vo)):
            assert expect[kind] is None or isinstance(pair, Skip) != expect[kind], pair


@pytest.mark.parametrize("name", RUN)
def test_skips_say_what_is_in_the_way(name: str) -> None:
    """Trap 11: a unit that is not understood is named, with the node."""
    expect = ENTRIES[name]["expect"]
    graph, blocks = probed(name)
    assert all(skip.node == str(graph.nodes[skip.position]) for skip in blocks.skipped)
    for kind in ("qk", "vo", "mlp"):
        skipped = [skip.reason for skip in blocks.skipped if skip.kind == kind]
        if expect["mlp_prunable" if kind == "mlp" else kind] is False and expect["n_blocks"]:
            ours = next(ours for theirs, ours in REASONS.items() if theirs in expect[f"{kind}_reason"])
            assert sum(ours in reason for reason in skipped) == expect["n_blocks"], skipped


@pytest.mark.parametrize("name", RUN)
def test_scale_is_read_wherever_it_stands(name: str) -> None:
    """Trap 1: before, behind or on both sides of the product, stored or computed from Shape(q)."""
    _, blocks = probed(name)
    for unit in blocks.attentions:
        if "q" in unit.operands and ENTRIES[name]["expect"]["d_head_v"] is None:  # not pruned before
            assert unit.scale == pytest.approx(unit.d_qk**-0.5, rel=1e-3)


def test_most_fixtures_are_looked_at() -> None:
    """The tests above must not become empty when the manifest changes."""
    assert len(RUN) >= 100
    for reason in REASONS:
        assert any(reason in str(ENTRIES[n]["expect"]) for n in RUN)
    _, blocks = probed("timm_vit_ts17_fused")
    assert [b.attention.scale_slots != () for b in blocks.blocks if b.attention] == [True, True]


@pytest.mark.parametrize("name", [n for n in ENTRIES if is_quantised(n)])
def test_quantised_is_refused(name: str) -> None:
    """Trap 8: prune first, then quantise."""
    with pytest.raises(ModelError, match=r"already quantised \(it has .*Give the float model that it was made from"):
        load_model(fixture_path(name))


def test_operator_without_a_kernel_here() -> None:
    with pytest.raises(
        ModelError, match=r"failed while running it \(.*not implemented for CPU\)\. It was fed noise: x \("
    ):
        probe_graph(load_model(fixture_path("handmade_ms_mha_packed")))


@pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "torchvision_vit_ts17", "hf_bert_ts17_eager_ortbert"])
def test_names_are_never_parsed(name: str, tmp_path: Path) -> None:
    """Trap 10: under other names the same units are found."""
    proto = load_model(fixture_path(name)).proto
    count = itertools.count()
    names: dict[str, str] = {"": ""}
    kept = {v.name for v in [*proto.graph.input, *proto.graph.output]}
    for node in proto.graph.node:
        node.name = f"n{next(count)}"
        for field in (node.input, node.output):
            field[:] = [n if n in kept else names.setdefault(n, f"x{next(count)}") for n in field]
    for tensor in proto.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    del proto.graph.value_info[:]
    _, expected = probed(name)
    _, blocks = find_in(proto, tmp_path)
    assert [u.d_hidden for u in blocks.mlps] == [u.d_hidden for u in expected.mlps]
    values, expected_values = (prunable_sites(b, "vo") for b in (blocks, expected))
    assert [(u.d_qk, u.d_v) for u in values] == [(u.d_qk, u.d_v) for u in expected_values]
    queries, expected_queries = (prunable_sites(b, "qk") for b in (blocks, expected))
    assert [u.position for u in queries] == [u.position for u in expected_queries]


def test_keys_and_streams_follow_the_data(tmp_path: Path) -> None:
    graph, blocks = find_in(write_model(Spelling(n_blocks=3)), tmp_path)
    assert [str(b.mlp.key) for b in blocks.blocks if b.mlp] == ["blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp"]
    assert [str(a.key) for a in blocks.attentions] == ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]
    assert all(b.stream is not None and graph.producers[b.stream].op == "Add" for b in blocks.blocks)
    last = graph.producers[graph.outputs[0]]
    assert last.inputs == (blocks.blocks[-1].stream,)


def test_no_block_at_all() -> None:
    """Trap 11: an error and not a silent copy."""
    graph, blocks = probed("torch_convnet_ts17")
    assert blocks.blocks == ()
    with pytest.raises(NothingToPruneError, match=r"no transformer block found: among \d+ nodes no softmax follows"):
        choose_units(graph, blocks, BEST)


def test_values_alone_are_something_to_prune() -> None:
    """Queries that are rotated and an MLP that is normed leave the values."""
    graph, blocks = probed("timm_eva02_base_ts17_unfused")
    assert not blocks.mlps
    assert not prunable_sites(blocks, "qk")
    assert [unit.site for unit in choose_units(graph, blocks, BEST)] == list(prunable_sites(blocks, "vo"))
    # the paper's method leaves values alone
    with pytest.raises(NothingToPruneError, match=r"no MLP or query/key pair that can be pruned, but 1 value/output"):
        choose_units(graph, blocks, PAPER)


def test_nearest_miss_is_shown(tmp_path: Path) -> None:
    """Trap 11: of two misses the one that came further is named."""
    proto = write_model(Spelling(gelu="gelu"))
    for node in proto.graph.node:
        if node.op_type == "Gelu":
            node.op_type, node.domain = "LpNormalization", ""
        if node.op_type == "Softmax":
            node.attribute[0].i = 1
    graph, blocks = find_in(proto, tmp_path)
    assert not blocks.mlps
    assert not prunable_sites(blocks, "qk")
    with pytest.raises(
        NothingToPruneError, match=r"Nearest miss \(qk\) at Softmax '.*expected a softmax over the last axis"
    ):
        choose_units(graph, blocks, PAPER)


@pytest.mark.parametrize("op", ["PackedMultiHeadAttention", "GroupQueryAttention"])
def test_unknown_fused_operator_is_named(op: str) -> None:
    """Trap 9: fused attention of another kind is in the report, with its name."""
    from corp_onnx.blocks.core import is_core, match_core
    from corp_onnx.blocks.linear import Mismatch
    from corp_onnx.graph import Model, read_graph

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4])
    node = helper.make_node(op, ["x"], ["y"], domain="com.microsoft")
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    proto = helper.make_model(helper.make_graph([node], "g", [value], [onnx.ValueInfoProto(name="y")], [weight]))
    graph = read_graph(Model(proto, Path("m.onnx"), ""))
    assert is_core(graph.nodes[0])
    found = match_core(graph, graph.nodes[0])
    assert isinstance(found, Mismatch)
    assert found.reason == f"the fused operator {op} is not known here"


def test_classifier_softmax_is_no_attention(tmp_path: Path) -> None:
    proto = write_model(Spelling())
    proto.graph.node[-1].op_type = "Softmax"  # it was an Identity
    _, blocks = find_in(proto, tmp_path)
    assert blocks.skipped == ()
    assert len(blocks.attentions) == 1


def test_blocks_are_found_again_in_a_pruned_graph(tmp_path: Path) -> None:
    """A result can be read, inspected and pruned again."""
    from graphs import prune_both, random_changes

    graph, blocks = probed("timm_vit_ts17_fused")
    changes = random_changes(graph, blocks, 3)
    pruned, _ = prune_both(graph, blocks, changes, tmp_path)
    again = find_blocks(probe_graph(load_model(pruned)))
    assert again.skipped == ()
    assert [u.d_hidden for u in again.mlps] == [len(changes[u.key].kept_idx) for u in blocks.mlps]  # type: ignore[union-attr]
    maps = [changes[u.key].q_map for u in prunable_sites(blocks, "qk")]  # type: ignore[union-attr]
    assert [u.d_qk for u in prunable_sites(again, "qk")] == [m.shape[1] for m in maps]  # type: ignore[union-attr]
