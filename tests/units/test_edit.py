"""Pruned graphs against the dense graph with other numbers in it (graphs.py), in every exporter's spelling.

Every unit of every exported graph is cut to a random width of its own, odd ones among them, with random maps; what the
pruned file answers must be what the dense graph answers with those maps multiplied out. No shape of the oracle changes,
so a wrong layout, scale, order of columns or bias in the pruned file shows as a difference.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    ENTRIES,
    ROUNDING,
    Changes,
    difference,
    feeds_of,
    find_in,
    fixture_path,
    probed,
    prunable_names,
    prunable_sites,
    prune_both,
    random_changes,
    run,
    save,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from random_vits import BIASES, GELUS, MASKS, QKV, SCALES, WEIGHTS, Spelling, write_model

from corp_onnx.blocks import Blocks
from corp_onnx.checks.verify import check_signature, check_structure
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, load_model, read_graph
from corp_onnx.graph.proto import skeleton
from corp_onnx.rewrite.cut import CutWidths
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session
from corp_onnx.units import AttentionChange, MlpChange, apply_changes

NAMES = prunable_names()
KINDS = {"qk": {"vo": False}, "qk+vo": {}}


def seed_of(name: str, kind: str) -> int:
    return sum(map(ord, name + kind))


def changed_widths(changes: Changes) -> list[int]:
    maps = [m for c in changes.values() if isinstance(c, AttentionChange) for m in (c.q_map, c.v_map) if m is not None]
    return [len(c.kept_idx) for c in changes.values() if isinstance(c, MlpChange)] + [m.shape[1] for m in maps]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_pruned_answers_as_the_dense_graph_with_the_maps_multiplied_out(name: str, kind: str, tmp_path: Path) -> None:
    """Traps 1 to 9: the scale, fused and shared tensors, hidden head sizes; replay says the same product by product."""
    graph, blocks = probed(name)
    changes = random_changes(graph, blocks, seed_of(name, kind), **KINDS[kind])
    assert changes or not KINDS[kind].get("vo", True)
    path, oracle = prune_both(graph, blocks, changes, tmp_path)
    feeds = feeds_of(graph)
    expected = run(oracle, feeds)
    session = open_session(path, threads=1)
    found = [o.astype(np.float64) for o in session.run(None, feeds)]
    allowed = ROUNDING[graph.float_type]
    assert difference(found, expected) < allowed
    pruned = load_model(path)
    assert check_signature(graph.model, pruned).passed
    assert CutWidths(changes).check(graph, graph.model, pruned, feeds, "cpu").passed
    if not graph.fixed_batch:
        single = session.run(None, {k: v[:1] for k, v in feeds.items()})
        assert (
            difference([o.astype(np.float64) for o in single], [e[:1] for e in expected]) < ROUNDING[graph.float_type]
        )
    if kind == "qk+vo":
        structure = check_structure(path)
        assert structure.passed, structure.detail


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_nothing_removed_is_the_dense_model(name: str, tmp_path: Path) -> None:
    graph, blocks = probed(name)
    changes = random_changes(graph, blocks, 0)
    proto = apply_changes(graph, {key: change.whole(graph) for key, change in changes.items()})
    feeds = feeds_of(graph, 2)
    path = save(proto, tmp_path, "whole", graph)
    assert difference(run(path, feeds), run(graph.model, feeds)) < ROUNDING[graph.float_type]
    if ENTRIES[name]["options"]["alive"]:  # else blocks share tensors, of which a rewritten one gets its own
        assert read_graph(load_model(path)).n_parameters == graph.n_parameters


def test_random_cuts_are_cuts() -> None:
    """The tests above see odd widths, widths that differ between blocks, and answers that really move."""
    graph, blocks = probed("timm_vit_ts17_fused")
    changes = random_changes(graph, blocks, seed_of("timm_vit_ts17_fused", "qk+vo"))
    widths = changed_widths(changes)
    assert any(w % 2 for w in widths)
    assert len(set(widths)) > 3
    assert len(NAMES) >= 100


def test_oracle_moves_the_answers(tmp_path: Path) -> None:
    graph, blocks = probed("timm_vit_ts17_fused")
    _, oracle = prune_both(graph, blocks, random_changes(graph, blocks, 1), tmp_path)
    feeds = feeds_of(graph)
    assert difference(run(oracle, feeds), run(graph.model, feeds)) > 0.1


spellings = st.builds(
    Spelling,
    n_heads=st.integers(1, 16),
    d_head=st.sampled_from([1, 2, 3, 5, 7, 8, 80]),
    d_v=st.integers(1, 6),
    d_hidden=st.integers(2, 16),
    n_tokens=st.integers(2, 6),
    n_blocks=st.integers(1, 2),
    qkv=st.sampled_from(QKV),
    scale=st.sampled_from(SCALES),
    gelu=st.sampled_from(GELUS),
    bias=st.sampled_from(BIASES),
    weights=st.sampled_from(WEIGHTS),
    mask=st.sampled_from(MASKS),
    gemm=st.booleans(),
    heads_in_batch=st.booleans(),
    skip_first=st.booleans(),
    layer_scale=st.booleans(),
    batch=st.sampled_from(["batch", 1, 3]),
    shared=st.booleans(),
    seed=st.integers(0, 2**16),
).map(lambda s: replace(s, d_v=s.d_head) if s.qkv.startswith("fused") else s)


@given(spelling=spellings, seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture_of_spellings(spelling: Spelling, seed: int, tmp_path: Path) -> None:
    """Found whole, pruned at random, equal to the oracle: whatever combination an exporter writes."""
    proto = write_model(spelling)
    onnx.checker.check_model(proto, full_check=True)
    graph, blocks = find_in(proto, tmp_path)
    n_blocks = spelling.n_blocks
    assert blocks.skipped == ()
    assert {len(prunable_sites(blocks, kind)) for kind in ("mlp", "qk", "vo")} == {len(blocks.blocks)} == {n_blocks}
    assert [u.d_hidden for u in blocks.mlps] == [spelling.d_hidden] * n_blocks
    sizes = {(u.n_heads, u.d_qk, u.d_v) for u in blocks.attentions}
    assert sizes == {(spelling.n_heads, spelling.d_head, spelling.d_v)}
    changes = random_changes(graph, blocks, seed)
    path, oracle = prune_both(graph, blocks, changes, tmp_path)
    feeds = feeds_of(graph)
    assert difference(run(path, feeds), run(oracle, feeds)) < 2 * ROUNDING[graph.float_type]
    assert check_structure(path).passed


class TestKept:
    """What a rewrite must leave as it was."""

    def prune(self, name: str, folder: Path, **kinds: bool) -> tuple[Graph, Blocks, Path]:
        graph, blocks = probed(name)
        changes = random_changes(graph, blocks, 5, **kinds)
        return graph, blocks, save(apply_changes(graph, changes, {"note": "kept"}), folder, "pruned", graph)

    def test_the_source_is_not_touched(self, tmp_path: Path) -> None:
        name = "timm_vit_ts17_shared"
        before = load_model(fixture_path(name)).proto.SerializeToString()
        graph, _, _ = self.prune(name, tmp_path)
        assert graph.model.proto.SerializeToString() == before

    def test_node_metadata_and_opsets(self, tmp_path: Path) -> None:
        """Trap 10: onnx-graphsurgeon drops the metadata of nodes."""
        graph, _, path = self.prune("timm_vit_dynamo18_shared", tmp_path)
        dense, pruned = graph.model.proto, onnx.load(path)
        scopes = {n.name: [(p.key, p.value) for p in n.metadata_props] for n in dense.graph.node}
        kept = {n.name: [(p.key, p.value) for p in n.metadata_props] for n in pruned.graph.node}
        shared = scopes.keys() & kept.keys()
        assert sum(bool(scopes[name]) for name in shared) > 20
        assert all(kept[name] == scopes[name] for name in shared)
        assert list(pruned.opset_import) == list(dense.opset_import)
        assert (pruned.ir_version, pruned.producer_name) == (dense.ir_version, dense.producer_name)
        assert {p.key: p.value for p in pruned.metadata_props} == {"note": "kept"}

    def test_shapes_in_the_file_are_those_of_the_pruned_graph(self, tmp_path: Path) -> None:
        """Trap 10: value_info of resized tensors must not stay."""
        graph, blocks, path = self.prune("timm_vit_dynamo18_fused", tmp_path)
        assert graph.model.proto.graph.value_info
        pruned = onnx.load(path)
        again = probe_graph(load_model(path))
        assert pruned.graph.value_info
        for value in pruned.graph.value_info:
            declared = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
            measured = again.shapes.get(value.name, ())
            assert all(size in measured for size in declared), value.name
        assert again.shapes[blocks.mlps[0].hidden] != graph.shapes[blocks.mlps[0].hidden]

    def test_untouched_nodes_are_byte_for_byte_the_same(self, tmp_path: Path) -> None:
        graph, blocks, path = self.prune("timm_vit_ts17_fused", tmp_path, qk=False, vo=False)
        pruned = {n.output[0]: n.SerializeToString() for n in onnx.load(path).graph.node}
        touched = {n.output for u in blocks.mlps for n in [u.down.node, *(up.linear.node for up in u.ups)]}
        touched |= {s.node.output for u in blocks.mlps for s in [*u.per_channel, u.down.bias] if s is not None}
        dense = {n.output[0]: n.SerializeToString() for n in graph.model.proto.graph.node}
        assert {name for name in dense if pruned.get(name) != dense[name]} <= touched

    def test_large_weights_of_other_units_are_kept(self, tmp_path: Path) -> None:
        """Trap 3: a tensor that two blocks share is replaced at one slot only."""
        graph, blocks = probed("timm_vit_ts17_shared")
        first, second = blocks.mlps
        assert first.down.bias is not None
        assert second.down.bias is not None
        roots = [graph.producers[bias.name] for bias in (first.down.bias, second.down.bias)]
        assert [r.op for r in roots] == ["Identity", "Identity"]  # the exporter's way to share it
        (root,) = {r.inputs[0] for r in roots}
        changes = {k: c for k, c in random_changes(graph, blocks, 2, qk=False, vo=False).items() if k == first.key}
        path, oracle = prune_both(graph, blocks, changes, tmp_path)
        feeds = feeds_of(graph)
        assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]
        kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        assert np.array_equal(kept[root], second.down.read_bias(graph))  # type: ignore[arg-type]


class TestPrecision:
    """Trap 8: what is stored in few bits is so again, after one rounding."""

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("timm_vit_ts17_fp16", onnx.TensorProto.FLOAT16),
            ("timm_vit_ts17_fp16stored", onnx.TensorProto.FLOAT16),
            ("timm_vit_ts17_bf16", onnx.TensorProto.BFLOAT16),
        ],
    )
    def test_weights_keep_their_type(self, name: str, kind: int, tmp_path: Path) -> None:
        graph, blocks = probed(name)
        changes = random_changes(graph, blocks, 4)
        path = save(apply_changes(graph, changes), tmp_path, "pruned", graph)
        matrices = [t for t in onnx.load(path).graph.initializer if len(t.dims) == 2]
        dense = [t for t in graph.model.proto.graph.initializer if len(t.dims) == 2]
        assert len(matrices) == len(dense)
        assert {t.data_type for t in matrices} == {t.data_type for t in dense} == {kind}
        assert path.stat().st_size < graph.model.path.stat().st_size

    def test_bfloat16_weight_is_the_nearest(self) -> None:
        graph, blocks = probed("timm_vit_ts17_bf16")
        unit = blocks.mlps[0]
        changes = {k: c for k, c in random_changes(graph, blocks, 4, qk=False, vo=False).items() if k == unit.key}
        change = changes[unit.key]
        assert isinstance(change, MlpChange)
        pruned = apply_changes(graph, changes)
        name = next(n for n in pruned.graph.node if n.output[0] == unit.down.node.output).input[1]
        stored = numpy_helper.to_array(next(t for t in pruned.graph.initializer if t.name == name)).astype(np.float64)
        assert np.abs(stored.T - change.weight).max() <= 2**-8 * np.abs(change.weight).max()

    @pytest.mark.parametrize(
        ("name", "factor", "precision"),
        [("timm_vit_ts17_fp16", 1e7, "float16"), ("timm_vit_ts17_bf16", 1e41, "bfloat16"),
         ("timm_vit_ts17_fused", 1e41, "float32")],
    )  # fmt: skip
    def test_a_solution_that_it_can_not_hold(self, name: str, factor: float, precision: str) -> None:
        """Infinite, it would fail the check `identity`, and we would take the blame."""
        graph, blocks = probed(name)
        unit = blocks.mlps[0]
        change = random_changes(graph, blocks, 4, qk=False, vo=False)[unit.key]
        assert isinstance(change, MlpChange)
        changes: Changes = {unit.key: replace(change, weight=change.weight * factor)}
        sentence = rf"{name}\.onnx: what would replace '[^']+' reaches .*e\+\d+, which {precision} can not hold"
        with pytest.raises(NonFiniteError, match=sentence):
            apply_changes(graph, changes)


class TestExternalData:
    """Trap 8: weights beside the model, under a relative name."""

    @pytest.mark.parametrize("name", ["timm_vit_ts17_external", "timm_vit_dynamo20_external"])
    def test_moves_with_its_folder(self, name: str, tmp_path: Path) -> None:
        graph, blocks = probed(name)
        _, oracle = prune_both(graph, blocks, random_changes(graph, blocks, 6), tmp_path)
        feeds = feeds_of(graph)
        expected = run(oracle, feeds)
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        for file in tmp_path.glob("pruned.onnx*"):
            shutil.move(str(file), moved)
        assert sorted(f.name for f in moved.iterdir()) == ["pruned.onnx", "pruned.onnx.data"]
        assert difference(run(moved / "pruned.onnx", feeds), expected) < ROUNDING["float32"]
        onnx.checker.check_model(str(moved / "pruned.onnx"), full_check=True)

    def test_dense_weights_are_not_read_to_rewrite_others(self) -> None:
        graph, blocks = probed("timm_vit_ts17_external")
        proto = apply_changes(graph, random_changes(graph, blocks, 6, qk=False, vo=False))
        outside = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert outside
        assert all(not t.raw_data for t in outside)


def test_dynamic_tokens_stay_dynamic(tmp_path: Path) -> None:
    """Trap 2 on a text model: the replaced layout holds no token count of the probe run."""
    for name in ("hf_bert_ts17_eager", "hf_bert_dynamo18_sdpa", "hf_bert_ts17_eager_ortbert"):
        graph, blocks = probed(name)
        path, oracle = prune_both(graph, blocks, random_changes(graph, blocks, 8), tmp_path)
        for n_tokens in (3, 7):
            feeds = {k: np.ones((2, n_tokens), v.dtype) for k, v in feeds_of(graph).items()}
            assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]


def test_flattened_fused_projection_with_dynamic_tokens(tmp_path: Path) -> None:
    """Trap 2: one Gemm on flattened tokens for q, k and v; the Reshape behind it parts images and tokens."""
    proto = write_model(Spelling(qkv="fused", gemm=True, n_tokens=4))
    dense, blocks = find_in(proto, tmp_path)
    changes = random_changes(dense, blocks, 1)
    pruned = apply_changes(dense, changes)
    targets = {n.input[1] for n in pruned.graph.node if n.op_type == "Reshape"}
    stored = {t.name: numpy_helper.to_array(t) for t in pruned.graph.initializer}
    assert all((stored[t] == -1).sum() <= 1 for t in targets if t in stored)
    path, oracle = prune_both(dense, blocks, changes, tmp_path)
    feeds = feeds_of(dense)
    assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]


def test_bias_is_added_where_there_was_none(tmp_path: Path) -> None:
    """Trap 4: compensation gives a bias to a product that had none; a zero one costs no operator."""
    graph, blocks = find_in(write_model(Spelling(bias="none")), tmp_path)
    unit = blocks.mlps[0]
    assert unit.down.bias is None
    change = random_changes(graph, blocks, 3, qk=False, vo=False)[unit.key]
    assert isinstance(change, MlpChange)
    path, oracle = prune_both(graph, blocks, {unit.key: change}, tmp_path)
    feeds = feeds_of(graph)
    assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]
    silent = replace(change, bias=np.zeros_like(change.bias))
    assert len(apply_changes(graph, {unit.key: silent}).graph.node) == len(graph.nodes)


def test_smaller_graph_costs_what_its_widths_say(tmp_path: Path) -> None:
    """MACs and parameters of the pruned file, counted by hand from the widths."""
    spelling = Spelling(qkv="separate", n_heads=3, d_head=6, d_v=6, d_hidden=12)
    graph, blocks = find_in(write_model(spelling), tmp_path)
    changes = random_changes(graph, blocks, 11)
    path, _ = prune_both(graph, blocks, changes, tmp_path)
    pruned = probe_graph(load_model(path))
    attention, mlp = changes[blocks.attentions[0].key], changes[blocks.mlps[0].key]
    assert isinstance(attention, AttentionChange)
    assert isinstance(mlp, MlpChange)
    r, s, w = attention.q_map.shape[1], attention.v_map.shape[1], len(mlp.kept_idx)  # type: ignore[union-attr]
    h, n, d = spelling.n_heads, spelling.n_tokens, spelling.d_model
    macs = n * d * h * (2 * r + s) + h * n * n * (r + s) + n * h * s * d + 2 * n * d * w
    assert pruned.cost.total == macs
    dense_macs = n * d * h * 18 + h * n * n * 12 + n * h * 6 * d + 2 * n * d * 12
    assert graph.cost.total == dense_macs
    removed = (d + 1) * h * (6 - r) + d * h * (6 - r) + (d + 1) * h * (6 - s) + d * h * (6 - s) + (2 * d + 1) * (12 - w)
    assert graph.n_parameters - pruned.n_parameters == removed


def test_stale_shape_inference_passes_strictly(tmp_path: Path) -> None:
    """Strict inference over the skeleton, for graphs that carry value_info."""
    graph, blocks = probed("timm_vit_dynamo20_fused")
    path, _ = prune_both(graph, blocks, random_changes(graph, blocks, 9), tmp_path)
    onnx.shape_inference.infer_shapes(skeleton(onnx.load(path)), strict_mode=True, data_prop=True)


def test_manifest_is_covered() -> None:
    assert set(NAMES) <= set(ENTRIES)
    assert json.dumps(sorted(NAMES)).count("dynamo23") >= 6
