"""Stretches of a graph, with inner tensors given in place of computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from graphs import feeds_of, probed
from merging import random_choices, random_steps

from corp_onnx.run.comparison import compare_answers, read_choices, run_whole
from corp_onnx.run.segments import open_segment
from corp_onnx.tokens.merge import merge_tokens

NAME = "timm_vit_ts17_unfused"


def merged():
    graph, blocks = probed(NAME)
    sites, steps = random_steps(graph, blocks, 3)
    return graph, sites, steps[:1], replace(graph.model, proto=merge_tokens(graph, steps[:1]))


def test_what_is_given_is_not_computed() -> None:
    """The stretch of the graph that would compute it is not there, nor what that alone would read."""
    graph, _, steps, model = merged()
    names = [steps[0].tensor(what) for what in ("order", "partner")]
    types = {**graph.types, **dict.fromkeys(names, 7)}
    stream = steps[0].site.stream
    tail = open_segment(model, types, [stream], list(graph.outputs), given=names)
    assert set(tail.sources) == set(names)
    unmerged = open_segment(graph.model, graph.types, [stream], list(graph.outputs), given=["not there"])
    assert unmerged.sources == ()


def test_given_choices_decide_the_answers() -> None:
    graph, sites, steps, model = merged()
    feeds = feeds_of(graph)
    names = [steps[0].tensor(what) for what in ("order", "partner")]
    own = read_choices(model, names, feeds)
    assert all(array.dtype == np.int64 for array in own.values())
    plain = run_whole(model, feeds)
    assert np.abs(run_whole(model, feeds, given=own) - plain).max() < 1e-5
    others = random_choices(steps, sites.n_tokens, sites.n_special, 3, 5)
    assert np.abs(run_whole(model, feeds, given=others) - plain).max() > 1e-3
    assert read_choices(model, [], feeds) == {}


def test_a_model_is_compared_under_the_choices_of_the_other() -> None:
    """Two metrics merge other tokens; with the same choices both graphs compute the same."""
    graph, _, steps, model = merged()
    directions = np.roll(steps[0].metric.directions, 3, axis=0)
    step = replace(steps[0], metric=replace(steps[0].metric, directions=directions))
    other = replace(graph.model, proto=merge_tokens(graph, [step]))
    feeds = feeds_of(graph)
    names = [steps[0].tensor(what) for what in ("order", "partner")]
    apart = compare_answers("x", model, other, feeds, "float32", "")
    together = compare_answers("x", model, other, feeds, "float32", "", choices=names)
    assert not apart.passed
    assert together.passed
