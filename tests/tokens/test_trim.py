"""Tokens that nobody reads: found on every exporter's graph, left out without a trace in the answers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    ENTRIES,
    ROUNDING,
    difference,
    feeds_of,
    find_in,
    fixture_path,
    probed,
    random_changes,
    run,
    runs_here,
    save,
)
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.blocks import find_blocks
from corp_onnx.errors import CheckFailedError
from corp_onnx.graph.model import load_model
from corp_onnx.rewrite import Rewrite, plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.tapped import open_tapped
from corp_onnx.tokens import trim as trim_module
from corp_onnx.tokens.liveness import find_dead_tokens
from corp_onnx.tokens.trim import LeaveOutTokens, TrimPlan, plan_trim, trim_tokens
from corp_onnx.units import KINDS, UnitKey, apply_changes, list_units

NAMES = [n for n in ENTRIES if runs_here(n)]

CLASS_TOKEN = (
    *("timm_vit_", "timm_deit", "timm_clip", "timm_swiglu", "timm_geglu", "torchvision_vit"),
    *("hf_vit", "hf_v4_vit", "hf_deit", "hf_clip", "hf_v4_clip", "hf_bert_classifier"),
)
"""Whose answer is read from the class token (and a distillation token) alone; the others pool, or give all tokens."""

TRIMMED = [n for n in NAMES if n.startswith(CLASS_TOKEN)]


@cache
def planned(name: str) -> TrimPlan:
    plan, _ = plan_trim(*probed(name))
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found(name: str) -> None:
    graph, _ = probed(name)
    trim = find_dead_tokens(graph)
    assert (trim is not None) == (name in TRIMMED)
    if trim is not None:
        assert trim.token_idx == ((0, 1) if "deit_distilled" in name or name.startswith("hf_deit") else (0,))


@pytest.mark.parametrize("name", TRIMMED)
class TestEveryExporter:
    @pytest.mark.long
    def test_answers_of_a_pruned_file_stay(self, name: str, tmp_path: Path) -> None:
        """With random maps in every operand, at another batch size than the probe's."""
        graph, blocks = probed(name)
        plan = planned(name)
        changes, feeds = random_changes(graph, blocks, 0), feeds_of(graph)
        whole = save(apply_changes(graph, changes), tmp_path, "whole", graph)
        rewrite = plan_rewrite(changes, plan)
        apart, trimmed = rewrite.write(graph, tmp_path / "trimmed.onnx")
        trim = find_dead_tokens(probe_graph(apart))
        assert trim is not None
        assert trim.token_idx == plan.trim.token_idx
        assert trimmed.path == tmp_path / "trimmed.onnx"
        onnx.checker.check_model(str(trimmed.path))
        found, expected = run(trimmed, feeds), run(load_model(whole), feeds)
        assert difference(found, expected) <= ROUNDING[graph.float_type]
        cut, tokens = rewrite.passes
        assert cut.check(graph, graph.model, trimmed, feeds, "cpu").passed
        assert tokens.check(graph, apart, trimmed, feeds, "cpu").passed

    @pytest.mark.long
    def test_cost_is_what_was_promised(self, name: str) -> None:
        graph, _ = probed(name)
        plan = planned(name)
        trimmed = probe_graph(replace(graph.model, proto=trim_tokens(plan.graph, plan.trim))).cost
        assert trimmed.by_node == plan.cost.by_node
        dense = graph.cost
        assert dense.total - trimmed.total == pytest.approx(plan.trim.saved, abs=len(dense.by_node))

    @pytest.mark.long
    def test_queries_stand_apart_where_they_shared_a_product(self, name: str) -> None:
        """Then their product too is computed for the tokens that are read, and units keep their names."""
        graph, blocks = probed(name)
        plan = planned(name)
        unit = blocks.attentions[-1]
        before, after = (
            {u.key: u.describe(p.graph, p.cost) for u in list_units(p.blocks, KINDS, skipped=True)}
            for p in (TrimPlan(plan.trim, {}, graph, blocks), plan)
        )
        assert before.keys() == after.keys()
        if plan.apart:
            assert plan.apart.keys() == {unit.key}
            query, key = unit.operands["q"], UnitKey(unit.key, "qk")
            assert query.is_fused
            n, d = plan.trim.n_tokens, query.linear.d_in
            left_out = (n - len(plan.trim.token_idx)) * d * unit.n_heads * unit.d_qk
            assert before[key].macs - after[key].macs == pytest.approx(left_out, abs=8)

    def test_what_is_left_is_what_was_there(self, name: str) -> None:
        """Every tensor that became shorter holds the rows of the dense one."""
        graph, _ = probed(name)
        trim = find_dead_tokens(graph)
        assert trim is not None
        names = [n for n, t in trim.axes.items() if t.is_plain(graph.dims(n)) and graph.types[n] == TensorProto.FLOAT]
        feeds = feeds_of(graph)
        dense = open_tapped(graph.model, names).run(feeds)
        found = open_tapped(replace(graph.model, proto=trim_tokens(graph, trim)), names).run(feeds)
        for tensor in names:
            np.testing.assert_allclose(found[tensor], trim.select(tensor, dense[tensor]), rtol=1e-3, atol=1e-5)


def test_attention_and_mlp_of_the_last_block_are_left_out() -> None:
    """By hand: of two blocks the second one's MLP, output projection and both products of the attention."""
    graph, blocks = probed("timm_vit_ts17_fused")
    trim = find_dead_tokens(graph)
    assert trim is not None
    last = blocks.blocks[-1]
    assert last.mlp is not None
    assert last.attention is not None
    assert last.attention.out is not None
    n, d, h = trim.n_tokens, 32, 48
    by_hand = 2 * n * d * h + n * d * d + 2 * n * n * d
    assert trim.saved == by_hand * (n - 1) / n
    assert {last.mlp.hidden, last.attention.out.linear.input, last.stream} <= set(trim.axes)
    assert blocks.blocks[0].stream not in trim.axes


def test_external_weights_stay_beside(tmp_path: Path) -> None:
    graph, _ = probed("timm_vit_ts17_external")
    data = graph.model.path.with_name(f"{graph.model.path.name}.data")
    (trimmed,) = Rewrite((LeaveOutTokens(),)).write(graph, tmp_path / "trimmed.onnx")
    assert difference(run(trimmed, feeds_of(graph)), run(graph.model, feeds_of(graph))) <= ROUNDING["float32"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["trimmed.onnx", "trimmed.onnx.data"]
    assert (tmp_path / "trimmed.onnx.data").stat().st_size <= data.stat().st_size


class TestReaders:
    """Small graphs around one product of tokens: who reads what decides."""

    @staticmethod
    def make(extra: list[onnx.NodeProto], outputs: list[str], folder: Path, index: object = 0):
        rng = np.random.default_rng(0)
        stored = [
            numpy_helper.from_array(rng.standard_normal((6, 6)).astype(np.float32), "w"),
            numpy_helper.from_array(np.array(index, dtype=np.int64), "i"),
            numpy_helper.from_array(np.array([0], dtype=np.int64), "zero"),
            numpy_helper.from_array(np.array([2], dtype=np.int64), "two"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
        ]
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["y"]),
            helper.make_node("Gather", ["y", "i"], ["cls"], axis=1),
            *extra,
        ]
        graph = helper.make_graph(
            nodes,
            "readers",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 6])],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            stored,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return find_in(model, folder)[0]

    def test_one_token(self, tmp_path: Path) -> None:
        graph = self.make([], ["cls"], tmp_path)
        trim = find_dead_tokens(graph)
        assert trim is not None
        assert trim.token_idx == (0,)
        assert trim.saved == 4 * 36

    def test_a_token_counted_from_the_end(self, tmp_path: Path) -> None:
        graph = self.make([], ["cls"], tmp_path, -1)
        trim = find_dead_tokens(graph)
        assert trim is not None
        assert trim.token_idx == (-1,)
        proto = trim_tokens(graph, trim)
        feeds = feeds_of(graph)
        expected = open_tapped(graph.model, []).run(feeds)["cls"]
        np.testing.assert_allclose(open_tapped(replace(graph.model, proto=proto), []).run(feeds)["cls"], expected)

    def test_no_token_at_all(self, tmp_path: Path) -> None:
        assert find_dead_tokens(self.make([], ["cls"], tmp_path, [])) is None

    def test_all_tokens_are_an_output(self, tmp_path: Path) -> None:
        assert find_dead_tokens(self.make([], ["cls", "y"], tmp_path)) is None

    def test_somebody_else_reads_all(self, tmp_path: Path) -> None:
        mean = helper.make_node("ReduceMean", ["y"], ["mean"], axes=[1], keepdims=0)
        assert find_dead_tokens(self.make([mean], ["cls", "mean"], tmp_path)) is None

    def test_two_readers_of_different_tokens(self, tmp_path: Path) -> None:
        """The union is computed, and each reader counts in it."""
        few = helper.make_node("Slice", ["y", "two_", "four_", "one"], ["few"])
        bounds = [helper.make_node("Constant", [], [n], value_ints=[v]) for n, v in (("two_", 2), ("four_", 4))]
        graph = self.make([*bounds, few], ["cls", "few"], tmp_path, 4)
        trim = find_dead_tokens(graph)
        assert trim is not None
        assert trim.token_idx == (2, 3, 4)
        proto = trim_tokens(graph, trim)
        feeds = feeds_of(graph)
        expected, found = (open_tapped(m, []).run(feeds) for m in (graph.model, replace(graph.model, proto=proto)))
        for name in ("cls", "few"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)

    def test_together_they_read_all(self, tmp_path: Path) -> None:
        bounds = [helper.make_node("Constant", [], [n], value_ints=[v]) for n, v in (("a", 1), ("b", 5))]
        rest = helper.make_node("Slice", ["y", "a", "b", "one"], ["rest"])
        assert find_dead_tokens(self.make([*bounds, rest], ["cls", "rest"], tmp_path)) is None

    def test_both_ends_at_once_stay(self, tmp_path: Path) -> None:
        """How many tokens there are may differ from run to run, so -1 and 0 may be the same or not."""
        assert find_dead_tokens(self.make([], ["cls"], tmp_path, [0, -1])) is None

    def test_the_number_of_tokens_is_asked_for(self, tmp_path: Path) -> None:
        """A Shape behind the product gets the tensor in front of it, which keeps its tokens."""
        extra = [
            helper.make_node("Shape", ["y"], ["s"]),
            helper.make_node("Cast", ["s"], ["size"], to=TensorProto.FLOAT),
        ]
        graph = self.make(extra, ["cls", "size"], tmp_path)
        trim = find_dead_tokens(graph)
        assert trim is not None
        assert [(slot.node.op, name) for slot, name in trim.shapes] == [("Shape", "x")]
        feeds = feeds_of(graph)
        found = open_tapped(replace(graph.model, proto=trim_tokens(graph, trim)), []).run(feeds)
        np.testing.assert_array_equal(found["size"], [3, 5, 6])


class TestPass:
    def test_tokens_that_are_read_after_all(self, tmp_path: Path) -> None:
        """The plan was made on the dense graph; a pruned one in which nothing is left to leave out is not written."""
        graph, _ = probed("timm_beit_ts17_fused")
        assert find_dead_tokens(graph) is None
        expected = r"^the tokens that no output of the dense model reads are read in the "
        with pytest.raises(CheckFailedError, match=expected + r"pruned one\. Nothing was written\. .* use --no-trim"):
            LeaveOutTokens().run(graph)
        rewrite = Rewrite((LeaveOutTokens(),))
        for make in (rewrite.make, lambda g: rewrite.write(g, tmp_path / "out.onnx")):
            with pytest.raises(CheckFailedError, match="use --no-trim"):
                make(graph)
        assert not (tmp_path / "out.onnx").exists()

    def test_however_little_it_saves(self, tmp_path: Path) -> None:
        """Whether it is worth it was decided on the dense graph."""
        large = [
            helper.make_node("Constant", [], ["shape"], value_ints=[6, 9000]),
            helper.make_node("ConstantOfShape", ["shape"], ["table"]),
            helper.make_node("MatMul", ["r", "table"], ["wide"]),
        ]
        graph = TestReaders.make(large, ["cls", "wide"], tmp_path)
        assert find_dead_tokens(graph) is None
        trimmed = probe_graph(replace(graph.model, proto=LeaveOutTokens().run(graph)))
        assert graph.cost.total - trimmed.cost.total == 4 * 36

    def test_it_removes_nothing_that_an_answer_needs(self) -> None:
        one = LeaveOutTokens()
        assert one.whole(probed("timm_vit_ts17_fused")[0]) is one
        assert one.padded() is None


def test_a_graph_that_answers_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, blocks = probed("timm_vit_dynamo23_fused")

    def wrong(graph, trim):
        proto = trim_tokens(graph, trim)
        for tensor in proto.graph.initializer:
            if tensor.name == "head.weight":
                tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
        return proto

    monkeypatch.setattr(trim_module, "trim_tokens", wrong)
    plan, note = plan_trim(graph, blocks)
    assert plan is None
    assert "without them this graph answers otherwise" in note


def test_answers_that_are_not_finite_show_nothing(tmp_path: Path) -> None:
    proto = onnx.load(fixture_path("timm_vit_dynamo23_fused"))
    weight = next(t for t in proto.graph.initializer if t.name == "head.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), 3e38, np.float32), weight.name))
    onnx.save(proto, tmp_path / "m.onnx")
    graph = probe_graph(load_model(tmp_path / "m.onnx"))
    plan, note = plan_trim(graph, find_blocks(graph))
    assert plan is None
    assert "on noise the answers of this model are not finite" in note


def test_note_says_what_is_left_out() -> None:
    plan, note = plan_trim(*probed("timm_deit_distilled_ts17"))
    assert plan is not None
    assert note.startswith("the outputs read 2 of the last block's 18 tokens: ")
    assert plan_trim(*probed("timm_beit_ts17_fused")) == (None, "")
