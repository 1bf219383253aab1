"""What is told of a rewritten graph without running it is what a run tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from graphs import probed, prunable_names, random_changes
from merging import random_steps

from corp_onnx.graph import Graph, Model
from corp_onnx.run import rewritten
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.rewritten import probe_rewritten
from corp_onnx.tokens.merge import merge_tokens
from corp_onnx.tokens.trim import plan_trim, trim_tokens
from corp_onnx.units import apply_changes

NAMES = prunable_names()


def rewrites(name: str) -> Iterator[tuple[Graph, onnx.ModelProto]]:
    """Graphs and what passes make of them: other widths, fewer tokens, and those behind these."""
    graph, blocks = probed(name)
    cut = apply_changes(graph, random_changes(graph, blocks, 7))
    yield graph, cut
    _, steps = random_steps(graph, blocks)
    if steps:
        behind = probe_graph(replace(graph.model, proto=cut))
        yield behind, merge_tokens(behind, steps)
    trim, _ = plan_trim(graph, blocks)
    if trim is not None:
        yield trim.graph, trim_tokens(trim.graph, trim.trim)


def same_or_noise(found: np.ndarray | None, measured: np.ndarray, name: str, graph: Graph) -> bool:
    """Whether a value is what a run gives, to half precision; where there is none, whether it is of the images."""
    if found is None:
        return depends_on_images(graph, name)
    return found.dtype == measured.dtype and np.allclose(found, measured, rtol=1e-3, atol=0)


def depends_on_images(graph: Graph, name: str) -> bool:
    todo, seen = [name], set[str]()
    while todo:
        tensor = todo.pop()
        if tensor in graph.inputs:
            return True
        node = graph.producers.get(tensor)
        if node is not None and node.op != "Shape" and tensor not in seen:
            seen.add(tensor)
            todo += [i for i in node.inputs if i]
    return False


@cache
def told(name: str) -> int:
    """How many of the rewrites of a graph needed no run, when each of them has been compared with one."""
    n_told = 0
    for before, proto in rewrites(name):
        model = replace(before.model, proto=proto)
        measured = probe_graph(model)
        found = rewritten._follow(before, model)
        if found is None:
            continue
        n_told += 1
        assert {n: found.shapes[n] for n in measured.shapes} == measured.shapes
        assert {n: found.types[n] for n in measured.types} == measured.types
        assert found.n_images == measured.n_images
        assert found.values.keys() <= measured.values.keys()
        assert all(same_or_noise(found.values.get(n), v, n, measured) for n, v in measured.values.items())
    return n_told


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if i % 4 else pytest.mark.long) for i, name in enumerate(NAMES)]
)
def test_it_is_what_a_run_tells(name: str) -> None:
    told(name)


@pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "hf_vit_dynamo23_sdpa"])
def test_usual_exports_need_no_run(name: str) -> None:
    assert told(name) == len(list(rewrites(name))) == 3


def test_where_it_does_not_tell_the_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, blocks = probed("timm_vit_ts17_fused")
    model = replace(graph.model, proto=apply_changes(graph, random_changes(graph, blocks, 7)))
    monkeypatch.setattr(rewritten, "_infer", lambda *_: None)
    found, measured = probe_rewritten(graph, model), probe_graph(model)
    assert (found.shapes, found.types) == (measured.shapes, measured.types)


def test_no_session_of_the_model_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, blocks = probed("timm_vit_ts17_fused")
    model = replace(graph.model, proto=apply_changes(graph, random_changes(graph, blocks, 7)))

    def refuse(_: Model) -> Graph:
        raise AssertionError("the model is run")

    monkeypatch.setattr(rewritten, "probe_graph", refuse)
    assert probe_rewritten(graph, model).shapes
