"""The scale in the weights of the queries: the same answers in every exporter's spelling, and with other widths."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphs import (
    ROUNDING,
    difference,
    feeds_of,
    find_in,
    probed,
    prunable_names,
    prune_both,
    random_changes,
    run,
    save,
)
from random_vits import SCALES, Spelling, write_model

from corp_onnx.blocks import QkPair
from corp_onnx.graph import load_model
from corp_onnx.rewrite.cut import CutWidths
from corp_onnx.units import AttentionChange, apply_changes, fold_scales
from corp_onnx.units.scale import find_scalars

NAMES = prunable_names()


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_answers_stay(name: str, tmp_path: Path) -> None:
    graph, blocks = probed(name)
    folded = fold_scales(blocks, {})
    assert all(change.scalars for change in folded.values() if isinstance(change, AttentionChange))
    proto = apply_changes(graph, folded)
    feeds = feeds_of(graph, 2)
    path = save(proto, tmp_path, "folded", graph)
    assert difference(run(path, feeds), run(graph.model, feeds)) < ROUNDING[graph.float_type]
    left = {output for node in proto.graph.node for output in node.output}
    for change in folded.values():
        assert isinstance(change, AttentionChange)
        assert not left & {node.output for node in change.scalars}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES[::3])
def test_with_other_widths(name: str, tmp_path: Path) -> None:
    """Against the oracle that never resizes anything; replay, whole and padded know of the scale as well."""
    graph, blocks = probed(name)
    changes = random_changes(graph, blocks, 5)
    _, oracle = prune_both(graph, blocks, changes, tmp_path)
    folded, feeds = fold_scales(blocks, changes), feeds_of(graph)
    path = save(apply_changes(graph, folded), tmp_path, "folded", graph)
    found, allowed = run(path, feeds), ROUNDING[graph.float_type]
    assert difference(found, run(oracle, feeds)) < allowed
    assert CutWidths(folded).check(graph, graph.model, load_model(path), feeds, "cpu").passed
    whole = save(CutWidths(folded).whole(graph).run(graph), tmp_path, "whole", graph)
    assert difference(run(whole, feeds), run(graph.model, feeds)) < allowed
    padded = save(CutWidths(folded).padded().run(graph), tmp_path, "padded", graph)
    assert difference(run(padded, feeds), found) < allowed


def test_most_exporters_write_a_scale_that_can_go() -> None:
    able = [name for name in NAMES if any(map(str, fold_scales(probed(name)[1], {})))]
    assert len(able) > 60


@pytest.mark.parametrize("mask", ["none", "add", "where"])
@pytest.mark.parametrize("scale", SCALES)
def test_every_place_of_the_scale(scale: str, mask: str, tmp_path: Path) -> None:
    spelling = Spelling(scale=scale, mask=mask)
    graph, blocks = find_in(write_model(spelling), tmp_path)
    (site,) = blocks.attentions
    assert isinstance(site.qk, QkPair)
    folded = fold_scales(blocks, {})
    assert bool(folded) == (scale != "none")
    feeds = feeds_of(graph)
    path = save(apply_changes(graph, folded), tmp_path, "folded", graph)
    assert difference(run(path, feeds), run(graph.model, feeds)) < ROUNDING["float32"]


def test_a_scale_with_other_readers_stays(tmp_path: Path) -> None:
    model = write_model(Spelling(scale="logits_mul"))
    graph, blocks = find_in(model, tmp_path)
    (site,) = blocks.attentions
    (node,) = find_scalars(graph, site)
    extra = model.graph.node.add(op_type="Identity", input=[node.output], output=["seen"])
    model.graph.output.add(name=extra.output[0])
    graph, blocks = find_in(model, tmp_path)
    assert fold_scales(blocks, {}) == {}
