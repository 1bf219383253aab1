"""The dense model with tokens merged, as a refit walks it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from graphs import ENTRIES, probed, runs_here
from merging import random_steps

from corp_onnx.blocks import find_blocks
from corp_onnx.refit.stream import find_walk
from corp_onnx.search.stretches import stretch_dense
from corp_onnx.tokens.sites import find_merge_sites

NAMES = [name for name in ENTRIES if runs_here(name)][::3]
FEW = ["timm_vit_ts17_fused", "timm_deit3_ts17_fused"]


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(n, marks=pytest.mark.long) for n in NAMES if n not in FEW)])
def test_stops_are_those_that_would_be_found_in_it(name: str) -> None:
    graph, blocks = probed(name)
    if not find_merge_sites(graph, blocks).sites:
        pytest.skip("nothing merges in it")
    _, steps = random_steps(graph, blocks, 3)
    problem, walk = cast(Any, SimpleNamespace(graph=graph, blocks=blocks)), find_walk(blocks)
    at = stretch_dense(problem, walk, steps)
    found = find_walk(find_blocks(at.graph))
    assert [stop.key for stop in at.walk.stops] == [stop.key for stop in found.stops]
    assert at.walk.starts == found.starts
    for stop, other in zip(at.walk.stops, found.stops, strict=True):
        assert (stop.residual.stream, stop.residual.skip) == (other.residual.stream, other.residual.skip)
        assert (stop.regressor, stop.linear.output) == (other.regressor, other.linear.output)
        scales = [one.residual.scale and one.residual.scale.name for one in (stop, other)]
        assert scales[0] == scales[1]
    assert not walk.stops or any(
        stop.residual.skip != own.residual.skip for stop, own in zip(at.walk.stops, walk.stops, strict=True)
    )
