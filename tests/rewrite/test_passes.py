"""The passes in a row: in memory and by way of files, whole, padded, and with what the tokens ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import ROUNDING, difference, feeds_of, probed, random_changes, run, save

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph, load_model
from corp_onnx.rewrite import Rewrite, plan_rewrite
from corp_onnx.rewrite.cut import CutWidths
from corp_onnx.run.probe import probe_graph
from corp_onnx.tokens.liveness import find_dead_tokens
from corp_onnx.tokens.trim import LeaveOutTokens, TrimPlan, plan_trim
from corp_onnx.units import AttentionChange, apply_changes

NAMES = ("timm_vit_ts17_fused", "hf_vit_dynamo23_sdpa", "torchvision_vit_ts17", "timm_vit_ts17_external")


def planned(name: str) -> tuple[Graph, dict, TrimPlan]:
    graph, blocks = probed(name)
    trim, _ = plan_trim(graph, blocks)
    assert trim is not None
    return graph, random_changes(graph, blocks, 7), trim


@pytest.mark.parametrize("name", NAMES)
class TestBothPasses:
    def test_what_is_made_in_memory_is_what_is_written(self, name: str, tmp_path: Path) -> None:
        graph, changes, trim = planned(name)
        rewrite = plan_rewrite(changes, trim, {"note": "kept"})
        cut, pruned = rewrite.write(graph, tmp_path / "out.onnx")
        is_outside = name.endswith("external")
        files = ["between", "out.onnx", "out.onnx.data"] if is_outside else ["out.onnx"]
        assert sorted(f.name for f in tmp_path.iterdir()) == files
        assert (cut.path.parent == tmp_path / "between") == is_outside
        assert pruned.path == tmp_path / "out.onnx"
        assert pruned.metadata["note"] == cut.metadata["note"] == "kept"
        made = rewrite.make(graph)
        assert [n.SerializeToString() for n in made.graph.node] == [
            n.SerializeToString() for n in load_model(pruned.path).proto.graph.node
        ]
        feeds = feeds_of(graph)
        assert difference(run(save(made, tmp_path, "made", graph), feeds), run(pruned, feeds)) < ROUNDING["float32"]

    def test_answers_are_those_of_the_first_pass_and_fewer_tokens_are_computed(self, name: str, tmp_path: Path) -> None:
        graph, changes, trim = planned(name)
        cut, pruned = plan_rewrite(changes, trim).write(graph, tmp_path / "out.onnx")
        feeds = feeds_of(graph)
        between = cut if name.endswith("external") else save(cut.proto, tmp_path, "cut", graph)
        assert difference(run(pruned, feeds), run(between, feeds)) < ROUNDING["float32"]
        assert difference(run(pruned, feeds), run(graph.model, feeds)) > 0.01
        assert probe_graph(pruned).cost.total < probe_graph(cut).cost.total
        assert find_dead_tokens(probe_graph(cut)) is not None
        assert find_dead_tokens(probe_graph(pruned)) is None

    def test_whole_is_the_dense_function_by_the_same_passes(self, name: str, tmp_path: Path) -> None:
        graph, changes, trim = planned(name)
        rewrite = plan_rewrite(changes, trim).whole(graph)
        assert [type(p) for p in rewrite.passes] == [CutWidths, LeaveOutTokens]
        whole = rewrite.write(graph, tmp_path / "out.onnx")[-1]
        feeds = feeds_of(graph)
        assert difference(run(whole, feeds), run(graph.model, feeds)) < ROUNDING["float32"]
        assert probe_graph(whole).cost.total < graph.cost.total

    def test_padded_computes_every_token_at_full_width(self, name: str, tmp_path: Path) -> None:
        graph, changes, trim = planned(name)
        rewrite = plan_rewrite(changes, trim)
        padded = rewrite.padded()
        assert [type(p) for p in padded.passes] == [CutWidths]
        wide = padded.write(graph, tmp_path / "wide.onnx")[-1]
        pruned = rewrite.write(graph, tmp_path / "out.onnx")[-1]
        feeds = feeds_of(graph)
        assert difference(run(pruned, feeds), run(wide, feeds)) < ROUNDING["float32"]
        assert probe_graph(wide).cost.total >= graph.cost.total


class TestPlan:
    def test_without_tokens_one_pass(self) -> None:
        graph, changes, _ = planned("timm_vit_ts17_fused")
        rewrite = plan_rewrite(changes)
        assert [type(p) for p in rewrite.passes] == [CutWidths]
        proto, expected = rewrite.make(graph), apply_changes(graph, changes)
        assert proto.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)

    def test_queries_stand_apart_beside_what_was_solved(self) -> None:
        _, changes, trim = planned("timm_vit_ts17_fused")
        (key,) = trim.apart
        cut = plan_rewrite(changes, trim).passes[0]
        assert isinstance(cut, CutWidths)
        joined, solved = cut.changes[key], changes[key]
        assert isinstance(joined, AttentionChange)
        assert joined.apart
        assert (joined.q_map, joined.v_map) == (solved.q_map, solved.v_map)
        assert not solved.apart  # what was solved stays as it was
        others = {k: c for k, c in changes.items() if k != key}
        alone = plan_rewrite(others, trim).passes[0]
        assert isinstance(alone, CutWidths)
        assert alone.changes == {**others, key: trim.apart[key]}

    def test_nothing_to_cut_and_tokens_to_leave_out(self, tmp_path: Path) -> None:
        graph, _, trim = planned("timm_vit_ts17_fused")
        pruned = plan_rewrite({}, trim).write(graph, tmp_path / "out.onnx")[-1]
        feeds = feeds_of(graph)
        assert difference(run(pruned, feeds), run(graph.model, feeds)) < ROUNDING["float32"]
        assert probe_graph(pruned).cost.total == trim.cost.total

    def test_a_pass_says_what_it_needs_and_what_it_gives(self) -> None:
        _, changes, trim = planned("timm_vit_ts17_fused")
        passes = plan_rewrite(changes, trim).passes
        assert [p.name for p in passes] == ["replay", "tokens"]
        assert all(p.requires and p.ensures for p in passes)

    def test_the_graph_stays_as_it_is(self) -> None:
        graph, changes, trim = planned("timm_vit_ts17_fused")
        before = graph.model.proto.SerializeToString(deterministic=True)
        rewrite = plan_rewrite(changes, trim)
        rewrite.make(graph)
        rewrite.whole(graph).make(graph)
        rewrite.padded().make(graph)
        assert graph.model.proto.SerializeToString(deterministic=True) == before
        assert SiteKey(0, "attn") in changes
        assert isinstance(rewrite, Rewrite)
