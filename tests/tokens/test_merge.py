"""Tokens merged in every exporter's graph: exact where tokens are equal, NumPy's arithmetic where they are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import ENTRIES, ROUNDING, difference, feeds_of, probed, random_changes, run, runs_here, save
from merging import random_choices, random_metric, random_steps, run_tail, same_tokens
from onnx.reference import ReferenceEvaluator

from corp_onnx.blocks import find_blocks
from corp_onnx.errors import CheckFailedError
from corp_onnx.graph import load_model
from corp_onnx.graph.proto import has_bfloat16
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.tapped import open_tapped
from corp_onnx.tokens.costs import count_costs
from corp_onnx.tokens.flow import trace_tokens
from corp_onnx.tokens.liveness import find_dead_tokens
from corp_onnx.tokens.merge import MergeTokens, merge_tokens
from corp_onnx.tokens.sites import MergeStep, find_merge_sites, part_tokens
from corp_onnx.tokens.trim import plan_trim

NAMES = [n for n in ENTRIES if runs_here(n)]

WHY_NOT = {
    "hf_beit": "",
    "timm_beit": "",
    "timm_eva": "not recognised",
    "hf_dinov2": "answers token by token",
    "hf_dinov3": "",
    "hf_bert_dynamo": "",
    "hf_bert_ts17": "",
    "timm_swin": "",
    "handmade": "",
    "timm_vit_parallel": "knows tokens by their position",
    "timm_vit_rope": "",
}
"""Families in which no tokens merge, and a part of the reason that is given."""


STILL = frozenset(
    """
    torchvision_vit_ts17 torchvision_vit_dynamo18 torchvision_vit_dynamo23 torchvision_vit_ts14 hf_dinov2_ts17_eager
    hf_dinov2_dynamo18_sdpa hf_dinov2_ts17_sdpa hf_dinov2_resized_ts14_eager hf_dinov2_resized_ts17_sdpa
    hf_dinov2_sizes_ts14_eager hf_bert_ts17_eager hf_bert_dynamo18_sdpa hf_bert_ts17_sdpa hf_bert_dynamo23_sdpa
    timm_eva02_ts17_fused timm_eva02_ts17_unfused timm_eva02_dynamo18 timm_eva02_base_ts17_unfused
    timm_dinov3_ts17_fused timm_dinov3_dynamo23 hf_dinov3_ts17_sdpa timm_vit_qknorm_ts17 timm_vit_qknorm_dynamo18
    timm_vit_scale_norms_ts17 timm_vit_gated_ts17 timm_swin_ts17_fused_fixed timm_swin_ts17_unfused_onnxslim
    timm_swin_stages_dynamo18_fused timm_swin_stages_ts17_fused_fixed_onnxsim timm_vit_respost_ts17
    timm_vit_parallel_ts17 torch_convnet_ts17 torchvision_vit_ts17_onnxslim torchvision_vit_ts17_onnxsim
    hf_vit_ts17_eager_ort hf_vit_ts17_sdpa_ort timm_vit_ts17_ort timm_vit_ts17_unfused_ort timm_vit_ts17_ortfast
    timm_vit_dynamo18_ort hf_bert_ts17_eager_ortbert hf_bert_ts17_eager_ortbertmha hf_clip_vision_ts17_eager_ortclip
    handmade_ms_mha_bias handmade_ms_attention handmade_attention_3d handmade_attention_bias handmade_head_major
    handmade_narrow
    """.split()  # noqa: SIM905  a name a line is half a page
)
"""Graphs in which nothing merges: by name, since to look takes longer than to run half of the tests below."""

MERGING = [name for name in NAMES if name not in STILL]


@pytest.mark.parametrize("name", sorted(STILL))
def test_a_graph_in_which_nothing_merges_says_why(name: str) -> None:
    found = find_merge_sites(*probed(name))
    _, blocks = probed(name)
    assert not found.sites
    assert len(found.skipped) == len(blocks.blocks)
    assert all(reason for _, reason in found.skipped)
    for family, reason in WHY_NOT.items():
        if name.startswith(family):
            assert reason in found.skipped[-1][1]


@pytest.mark.parametrize("name", MERGING)
class TestEveryExporter:
    def test_equal_tokens_merge_without_a_trace(self, name: str, tmp_path: Path) -> None:
        """Whatever merges with whatever: the answers are those of the dense graph."""
        graph, blocks = probed(name)
        sites, steps = random_steps(graph, blocks, 3)
        if has_bfloat16(graph.model.proto):
            pytest.skip("a stretch of a bfloat16 graph is fed float32")
        merged = load_model(save(merge_tokens(graph, steps), tmp_path, "merged", graph))
        n_images = graph.n_images if graph.fixed_batch else 3
        feeds = feeds_of(graph, n_images)
        first = steps[0].site.stream
        h = same_tokens(graph, first, sites.n_special, n_images, 0)
        expected = run_tail(graph.model, graph, first, h, feeds, {})
        for seed in range(3):
            given = random_choices(steps, sites.n_tokens, sites.n_special, n_images, seed)
            found = run_tail(merged, graph, first, h, feeds, given)
            assert difference(found, expected) <= ROUNDING[graph.float_type]

    @pytest.mark.long
    def test_nothing_merged_is_the_dense_function(self, name: str, tmp_path: Path) -> None:
        graph, blocks = probed(name)
        _, steps = random_steps(graph, blocks)
        whole = MergeTokens(steps).whole(graph).run(graph)
        feeds = feeds_of(graph, graph.n_images if graph.fixed_batch else 3)
        found = run(load_model(save(whole, tmp_path, "whole", graph)), feeds)
        assert difference(found, run(graph.model, feeds)) <= ROUNDING[graph.float_type]

    @pytest.mark.long
    def test_what_merges_is_what_numpy_says(self, name: str, tmp_path: Path) -> None:
        graph, blocks = probed(name)
        sites, steps = random_steps(graph, blocks)
        one = MergeTokens(steps)
        merged = load_model(save(one.run(graph), tmp_path, "merged", graph))
        onnx.checker.check_model(str(merged.path))
        feeds = feeds_of(graph, graph.n_images if graph.fixed_batch else 3)
        check = one.check(graph, graph.model, merged, feeds, "cpu")
        assert check.passed, check
        trim = find_dead_tokens(graph)
        if trim is None or any(step.site.stream not in trim.axes for step in steps):  # somebody reads what merged
            assert difference(run(merged, feeds), run(graph.model, feeds)) > 1e-4
        sizes = open_tapped(merged, [steps[-1].tensor("sizes")]).run(feeds)[steps[-1].tensor("sizes")]
        assert sizes.sum(axis=1) == pytest.approx(sites.n_tokens)
        assert (sizes[:, : sites.n_special] == 1).all()

    @pytest.mark.long
    def test_blocks_are_found_again_and_cost_is_what_was_promised(self, name: str, tmp_path: Path) -> None:
        graph, blocks = probed(name)
        sites, steps = random_steps(graph, blocks)
        after = probe_graph(load_model(save(merge_tokens(graph, steps), tmp_path, "merged", graph)))
        assert [s.key for s in find_blocks(after).sites] == [s.key for s in blocks.sites]
        streams = [site.stream for site in sites.sites]
        costs = count_costs(graph, trace_tokens(graph, streams), graph.cost, streams, None)
        by_site = {step.site.stream: step.n_merged for step in steps}
        promised = costs.at([by_site.get(stream, 0) for stream in streams], steps)
        assert promised.total == pytest.approx(after.cost.total, rel=1e-4)


class TestSteps:
    NAME = "timm_vit_ts17_unfused"

    def test_every_variant_of_a_metric(self, tmp_path: Path) -> None:
        graph, blocks = probed(self.NAME)
        site = find_merge_sites(graph, blocks).sites[0]
        feeds = feeds_of(graph)
        for i, (offset, importance) in enumerate([(False, False), (True, False), (False, True), (True, True)]):
            metric = random_metric(graph, site.source, i, offset=offset, importance=importance)
            one = MergeTokens((MergeStep(site, 4, metric),))
            merged = load_model(save(one.run(graph), tmp_path, f"merged{i}", graph))
            assert one.check(graph, graph.model, merged, feeds, "cpu").passed

    def test_another_choice_than_the_metric_says_is_seen(self, tmp_path: Path) -> None:
        graph, blocks = probed(self.NAME)
        site = find_merge_sites(graph, blocks).sites[0]
        steps = [MergeStep(site, 3, random_metric(graph, site.source, seed)) for seed in (0, 1)]
        merged = load_model(save(merge_tokens(graph, steps[:1]), tmp_path, "merged", graph))
        check = MergeTokens((steps[1],)).check(graph, graph.model, merged, feeds_of(graph), "cpu")
        assert not check.passed

    def test_a_mean_that_forgets_sizes_is_seen(self, tmp_path: Path) -> None:
        graph, blocks = probed(self.NAME)
        _, steps = random_steps(graph, blocks, 3)
        proto = merge_tokens(graph, steps)
        for node in proto.graph.node:
            if node.op_type == "Div" and steps[0].tensor("tokens") in node.output:
                node.op_type, node.input[1] = "Mul", node.input[1]
        merged = load_model(save(proto, tmp_path, "merged", graph))
        assert not MergeTokens(steps).check(graph, graph.model, merged, feeds_of(graph), "cpu").passed

    def test_an_image_merges_by_itself(self, tmp_path: Path) -> None:
        graph, blocks = probed(self.NAME)
        _, steps = random_steps(graph, blocks, 3)
        merged = load_model(save(merge_tokens(graph, steps), tmp_path, "merged", graph))
        feeds = feeds_of(graph, 4)
        whole = run(merged, feeds)
        alone = [run(merged, {k: v[i : i + 1] for k, v in feeds.items()}) for i in range(4)]
        assert difference([np.concatenate(o) for o in zip(*alone, strict=True)], whole) < ROUNDING["float32"]

    def test_the_evaluator_of_onnx_agrees(self, tmp_path: Path) -> None:
        """It takes the depth of a OneHot as a scalar alone."""
        graph, blocks = probed(self.NAME)
        _, steps = random_steps(graph, blocks, 3)
        merged = load_model(save(merge_tokens(graph, steps), tmp_path, "merged", graph))
        feeds = feeds_of(graph)
        found = ReferenceEvaluator(str(merged.path)).run(None, feeds)
        assert isinstance(found, list)
        assert difference(found, run(merged, feeds)) < ROUNDING["float32"]

    def test_pruned_and_trimmed_as_well(self, tmp_path: Path) -> None:
        graph, blocks = probed("timm_vit_ts17_unfused")
        trim, _ = plan_trim(graph, blocks)
        assert trim is not None
        _, steps = random_steps(graph, blocks, 3, without=list(trim.trim.axes))
        assert steps
        rewrite = plan_rewrite(random_changes(graph, blocks, 1), trim, {}, steps)
        assert [one.name for one in rewrite.passes] == ["replay", "merge", "tokens"]
        assert rewrite.choices == tuple(steps[0].tensor(what) for what in ("order", "partner"))
        cut, merged, trimmed = rewrite.write(graph, tmp_path / "out.onnx")
        feeds, files = (
            feeds_of(graph),
            [save(m.proto, tmp_path, name, graph) for m, name in ((cut, "cut"), (merged, "merged"))],
        )
        answers = [run(file, feeds) for file in (*files, trimmed)]
        assert difference(answers[2], answers[1]) < ROUNDING["float32"]
        assert difference(answers[1], answers[0]) > 1e-4
        costs = [probe_graph(m).cost.total for m in (cut, merged, trimmed)]
        assert costs[0] > costs[1] > costs[2]

    def test_a_graph_with_an_obstacle_is_refused(self) -> None:
        graph, blocks = probed("hf_dinov2_ts17_eager")
        source = blocks.attentions[0].operands["k"].linear.input
        stream = blocks.attentions[0].residual.stream
        site = find_merge_sites(*probed(self.NAME)).sites[0]
        step = MergeStep(replace(site, stream=stream, source=source), 2, random_metric(graph, source, 0))
        with pytest.raises(CheckFailedError, match=r"tokens can not be merged in this graph: behind it .* --no-merge"):
            merge_tokens(graph, [step])

    def test_opset_12_is_refused_with_a_reason(self) -> None:
        graph, blocks = probed(self.NAME)
        old = replace(graph, model=replace(graph.model, proto=_with_opset(graph.model.proto, 12)))
        found = find_merge_sites(old, blocks)
        assert found.sites == ()
        assert found.skipped[0][1] == "merging takes operators of opset 13, and this file is of 12"


def _with_opset(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    next(o for o in copy.opset_import if o.domain in ("", "ai.onnx")).version = version
    return copy


def test_tokens_are_parted_in_turn_behind_special_ones() -> None:
    sources, targets = part_tokens(9, 2)
    assert sources.tolist() == [2, 4, 6, 8]
    assert targets.tolist() == [0, 1, 3, 5, 7]
