"""Sums made inside the graph, on a CPU here, against those of the host; float32 is all that lies between them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import ENTRIES, find_in, images_of, probed, runs_here
from interrupted import KINDS, StopError, keep, require_same_bytes, stop_after
from onnx import numpy_helper
from random_vits import Spelling, write_model

from corp_onnx.calibrate import collect
from corp_onnx.calibrate.collect import choose_reducer, collect_moments
from corp_onnx.calibrate.in_graph import LOOK_EVERY, GraphSums
from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments import ChannelMoments, LogitMoments, Moments
from corp_onnx.run.reduced import SumPen, open_reduced
from corp_onnx.units import list_units

RUN = [n for n in ENTRIES if runs_here(n) and ENTRIES[n]["expect"]["n_blocks"]]

FLOAT32 = 2e-5
"""Of sqrt(G_ii G_jj): the bound is 2^-24 for each token of a batch, and roundings mostly cancel."""

FLOAT16 = 4e-3
"""Of models in half precision, of which ONNX Runtime fuses other nodes where other tensors are read."""


def require_near(found: Moments, expected: Moments, allowed: float = FLOAT32) -> None:
    assert found.keys() == expected.keys()
    for key, moments in expected.entries:
        other = found[key]
        assert type(other) is type(moments)
        if isinstance(moments, ChannelMoments) and isinstance(other, ChannelMoments):
            assert other.count == moments.count
            grams = [("gram", moments.gram[None], other.gram[None])]
            scale = np.sqrt(moments.energy / moments.count)
            assert np.abs(other.mean - moments.mean).max() <= max(allowed, 1e-5) * np.sqrt(moments.energy.max())
            assert scale.shape == moments.mean.shape
        else:
            assert isinstance(moments, LogitMoments)
            assert isinstance(other, LogitMoments)
            for name in ("n_images", "n_tokens", "n_key_tokens"):
                assert getattr(other, name) == getattr(moments, name)
            names = ("q_gram", "k_gram", "k_centred_gram")
            grams = [(name, getattr(moments, name), getattr(other, name)) for name in names]
            energy = moments.logit_energy
            assert np.abs(other.logit_energy - energy).max() <= 10 * allowed * energy.max()
        for name, one, two in grams:
            size = np.sqrt(np.diagonal(one, axis1=-2, axis2=-1))
            bound = allowed * size[..., :, None] * size[..., None, :] + allowed * np.square(size).max() * 1e-2
            assert (np.abs(one - two) <= bound).all(), (key, name)


def collect_both(graph: Any, blocks: Any, n_images: int = 5, **given: Any) -> tuple[Moments, Moments]:
    units, images = list_units(blocks, KINDS), images_of(graph, n_images)
    found = collect_moments(graph, units, images, batch_size=2, reducer="graph", **given)
    return found, collect_moments(graph, units, images, batch_size=2, reducer="host", **given)


def test_what_lies_on_a_device_goes_with_the_sums() -> None:
    """At once, and not when Python looks for circles: it is gigabytes."""
    graph, blocks = probed("timm_vit_ts17_fused")
    sums = GraphSums(graph, list_units(blocks, KINDS))
    running, gone = sums.running, weakref.ref(sums)
    gc.disable()
    try:
        del sums
        assert gone() is running[0].together
        del running
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.long
@pytest.mark.parametrize("name", RUN)
def test_sums_in_the_graph_are_those_of_the_host(name: str) -> None:
    """Every exporter: fused and separate, windows, tokens first, half precision, attention in one operator."""
    graph, blocks = probed(name)
    if not list_units(blocks, KINDS):
        pytest.skip("nothing to sum")
    require_near(*collect_both(graph, blocks), FLOAT32 if graph.float_type == "float32" else FLOAT16)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "timm_vit_ts17_fused_fixed", "hf_vit_ts17_sdpa"])
def test_sums_on_a_gpu_are_those_of_the_host(name: str) -> None:
    graph, blocks = probed(name)
    units, images = list_units(blocks, KINDS), images_of(graph, 5)
    assert choose_reducer("cuda") == "graph"
    found = collect_moments(graph, units, images, batch_size=2, provider="cuda")
    require_near(found, collect_moments(graph, units, images, batch_size=2))


@pytest.mark.parametrize(
    "spelling", [Spelling(), Spelling(gemm=True), Spelling(qkv="flat"), Spelling(heads_in_batch=True)]
)
def test_what_fills_up_a_fixed_batch_does_not_count(spelling: Spelling, tmp_path: Path) -> None:
    graph, blocks = find_in(write_model(replace(spelling, batch=3)), tmp_path)
    assert graph.fixed_batch
    require_near(*collect_both(graph, blocks, 4))
    require_near(*collect_both(graph, blocks, 3))


def test_no_digit_is_lost_over_many_images() -> None:
    """A batch is added to sums so large that float32 would not notice it, and found in them to the bit of float64."""
    graph, blocks = probed("timm_vit_ts17_fused")
    (unit, *_) = list_units(blocks, KINDS)
    pen = SumPen(graph)
    shapes = unit.write_sum(pen).shapes
    reduced = open_reduced(pen)
    ((feeds, n_real),) = reduced.stream(images_of(graph, 2), 2)
    reduced.run(feeds, n_real)
    alone = {name: reduced.read(f"{unit.key}/{name}") for name in shapes}
    for name in shapes:
        reduced.write(f"{unit.key}/{name}", np.full(shapes[name], 2.0**40))
    reduced.run(feeds, n_real)
    for name, array in alone.items():
        assert np.abs(array).max() < 2.0**16  # a unit in the last place of 2^40 in float32 is 2^17
        assert np.array_equal(reduced.read(f"{unit.key}/{name}"), 2.0**40 + array)


@pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "timm_vit_ts17_fused_fixed"])
@pytest.mark.parametrize("stop", [3, 8])
def test_what_was_interrupted_ends_with_the_same_bytes(name: str, stop: int, tmp_path: Path) -> None:
    """What is on the device is in the checkpoint as well; the host's sums are another calibration."""
    graph, blocks = probed(name)
    units, images = list_units(blocks, KINDS), images_of(graph, 11)
    given: dict[str, Any] = {"batch_size": 2, "reducer": "graph"}
    with pytest.raises(StopError):
        collect_moments(graph, units, images, checkpoint=keep(tmp_path), progress=stop_after(stop), **given)
    with pytest.raises(InputError, match=r"reducer: graph there, host here|images at a time"):
        collect_moments(graph, units, images, batch_size=2, checkpoint=keep(tmp_path))
    found = collect_moments(graph, units, images, checkpoint=keep(tmp_path), **given)
    require_same_bytes(found, collect_moments(graph, units, images, **given))


@pytest.mark.parametrize("n_images", [2, 4 * LOOK_EVERY])
def test_a_number_that_is_none_is_named(n_images: int, tmp_path: Path) -> None:
    """At the end, and in a long run after the first look."""
    proto = write_model(Spelling())
    weight = next(t for t in proto.graph.initializer if list(t.dims) == [7, 12])
    broken = numpy_helper.to_array(weight).copy()
    broken[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(broken, weight.name))
    graph, blocks = find_in(proto, tmp_path)
    seen: list[int] = []
    with pytest.raises(NonFiniteError, match=r"tensor '.*' \(blocks\.0\.mlp\) holds NaN"):
        collect_moments(
            graph, list_units(blocks, KINDS), images_of(graph, n_images), reducer="graph", progress=seen.append
        )
    assert sum(seen) <= LOOK_EVERY


def test_where_sums_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_reducer("cpu") == "host"
    monkeypatch.setattr(collect, "resolve_provider", lambda _: "CUDAExecutionProvider")
    assert choose_reducer("cuda") == "graph"
