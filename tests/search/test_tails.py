"""A probe from the block that it changes answers as the whole rewritten model does, in every exporter's graph."""

from __future__ import annotations

from dataclasses import replace
from threading import get_ident
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graphs import ROUNDING, images_of, probed, prunable_names, random_changes
from merging import random_metric

from corp_onnx.blocks import Blocks, SiteKey
from corp_onnx.graph import Graph
from corp_onnx.refit.stream import find_walk
from corp_onnx.run.outputs import read_outputs
from corp_onnx.run.sessions import start_session
from corp_onnx.search import evaluator as evaluator_module
from corp_onnx.search import tails
from corp_onnx.search.evaluator import Evaluator, prepare_evaluator
from corp_onnx.search.tails import Tail, ask_tails
from corp_onnx.shelf import Shelf
from corp_onnx.tokens.merge import merge_tokens
from corp_onnx.tokens.sites import MergeStep, find_merge_sites
from corp_onnx.units import apply_changes

SOME = (
    "timm_vit_ts17_fused", "timm_vit_dynamo18_unfused", "timm_vit_ts17_fused_fixed", "timm_vit_ts17_inputs",
    "timm_deit_distilled_two_heads_ts17", "timm_swiglu_packed_ts17", "torchvision_vit_ts17", "hf_vit_dynamo23_sdpa",
    "hf_dinov2_resized_ts14_eager", "hf_bert_ts17_eager", "timm_eva02_ts17_fused",
    "timm_beit_shared_bias_dynamo18_unfused",
    "timm_swin_stages_dynamo18_fused", "timm_vit_respost_ts17", "timm_vit_parallel_ts17", "timm_siglip_map_ts17",
    "timm_vit_ts17_external", "timm_vit_ts17_unfolded", "timm_vit_ts17_fp16", "timm_vit_ts17_bf16",
    "hf_bert_ts17_eager_ortbert", "hf_v4_vit_ts17_eager_ortmmdit", "handmade_attention_3d",
)  # fmt: skip
"""An exporter, spelling or precision each."""


def pose(graph: Graph, blocks: Blocks) -> SimpleNamespace:
    """A problem as far as tails look at it."""
    return SimpleNamespace(graph=graph, blocks=blocks, shelf=Shelf())


def ask(graph: Graph) -> Evaluator:
    return prepare_evaluator(graph.model, images_of(graph, 3), batch_size=2)


def expecting(evaluator: Evaluator, proto) -> Evaluator:
    """The same images with the answers of a whole rewritten model."""
    session = start_session(proto, evaluator.model, "cpu")
    names = [task.output for task in evaluator.tasks]
    found = [read_outputs(session, feeds, n, names) for feeds, n in evaluator.feeds]
    return replace(evaluator, answers={name: np.concatenate([batch[name] for batch in found]) for name in names})


def compare(graph: Graph, blocks: Blocks, protos: dict[SiteKey, onnx.ModelProto]) -> tuple[float, int]:
    """(the largest relative difference between tails and whole models, how many tails are shorter than the model)."""
    evaluator = ask(graph)

    def differ(i: int, tail: Tail) -> tuple[float, bool]:
        proto = list(protos.values())[i]
        judged = replace(tail, evaluator=expecting(evaluator, proto)).evaluate(proto)
        assert judged.n_samples == 3
        return max(tally.relative_error or 0.0 for tally in judged.tallies), bool(tail.start)

    found = [own for _, own in ask_tails(pose(graph, blocks), evaluator, list(protos), differ)]  # type: ignore[arg-type]
    return max((worst for worst, _ in found), default=0.0), sum(is_short for _, is_short in found)


@pytest.mark.long
@pytest.mark.parametrize("name", SOME)
def test_units(name: str) -> None:
    graph, blocks = probed(name)
    changes = random_changes(graph, blocks, 0)
    protos = {key: apply_changes(graph, {key: change}) for key, change in changes.items()}
    worst, n_short = compare(graph, blocks, protos)
    assert worst < ROUNDING[graph.float_type]
    assert n_short >= (len(protos) - 1 if find_walk(blocks).stops else 0)  # stages of a Swin are no one stream


@pytest.mark.parametrize("name", [name for name in SOME if "vit" in name or "clip" in name][:8])
def test_merged_tokens(name: str) -> None:
    graph, blocks = probed(name)
    protos: dict[SiteKey, onnx.ModelProto] = {}
    for site in find_merge_sites(graph, blocks).sites:
        step = MergeStep(site, 1, random_metric(graph, site.source, 0))
        protos[SiteKey(site.block, "attn")] = merge_tokens(graph, (step,))
    assert compare(graph, blocks, protos)[0] < ROUNDING[graph.float_type]


def test_a_start_that_depends_on_the_site_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the whole model is run: the second block of a walk whose stops are mixed up."""
    graph, blocks = probed("timm_vit_ts17_fused")
    walk = find_walk(blocks)
    mixed = replace(walk, stops=(walk.stops[2], walk.stops[0]))
    monkeypatch.setattr(tails, "find_walk", lambda _blocks: mixed)
    keys = [stop.key for stop in mixed.stops]
    found = dict(ask_tails(pose(graph, blocks), ask(graph), keys, lambda _, tail: tail.start))  # type: ignore[arg-type]
    assert found == {0: walk.starts[2], 1: ""}


def test_the_stream_is_walked_no_further_than_the_last_site(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, blocks = probed("timm_vit_ts17_fused")
    steps: list[str] = []
    advance = tails.advance_model

    def counted(*args, **kwargs):
        steps.append(args[4])
        return advance(*args, **kwargs)

    monkeypatch.setattr(tails, "advance_model", counted)
    keys = [stop.key for stop in find_walk(blocks).stops]
    asked = ask_tails(pose(graph, blocks), ask(graph), [keys[1], keys[0], keys[1]], lambda i, _: i)  # type: ignore[arg-type]
    assert list(asked) == [(1, 1), (0, 0), (2, 2)]
    assert len(steps) == 1


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_losses_do_not_depend_on_what_runs_beside(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads meet in their probes where weights are few; one after the other where there are many."""
    monkeypatch.setattr(evaluator_module, "BESIDE_BYTES", limit)
    graph, blocks = probed("timm_vit_ts17_fused")
    changes = random_changes(graph, blocks, 0)
    threads: set[int] = set()

    def lose(i: int, tail: Tail) -> float:
        threads.add(get_ident())
        return tail.evaluate(apply_changes(graph, {keys[i]: changes[keys[i]]})).loss

    keys = list(changes)
    evaluator = ask(graph)
    found = dict(ask_tails(pose(graph, blocks), evaluator, keys, lose))  # type: ignore[arg-type]
    assert (get_ident() in threads) == (limit == 0 or evaluator.pace.n_calls == 1)
    expected = {i: evaluator.evaluate(apply_changes(graph, {key: changes[key]})).loss for i, key in enumerate(keys)}
    assert found == pytest.approx(expected, rel=1e-3)


if __name__ == "__main__":
    for name in prunable_names():
        graph, blocks = probed(name)
        if graph.model.proto.graph.input:
            test_units(name)
