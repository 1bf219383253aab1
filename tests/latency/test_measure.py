"""Micro-graphs: every width of every class is timed, as the stretch that the cut model really has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import probed
from samples import COMPUTED_SCALE, DEMO, FIXED, OPERATOR, SEPARATE, fixture_path

from corp_onnx.blocks import find_blocks
from corp_onnx.graph import load_model
from corp_onnx.graph.model import batch_kind
from corp_onnx.latency import measure
from corp_onnx.latency.measure import Feeds, Stopwatch, choose_points, choose_stand_ins, group_alike, measure_times
from corp_onnx.latency.table import Place
from corp_onnx.latency.turns import Schedule
from corp_onnx.progress import Run
from corp_onnx.refit.stream import StreamWalk
from corp_onnx.run.device import DeviceRun, bind_device
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import Session
from corp_onnx.settings import BEST
from corp_onnx.tokens.sites import MergeSites, find_merge_sites
from corp_onnx.tokens.trim import plan_trim
from corp_onnx.units import KINDS, apply_changes, list_units

QUICK = Schedule(repeats=2, warmup=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WHOLE", "PARTS", "TRIAL"):
        monkeypatch.setattr(measure, name, QUICK)


def watch_of(path: Path, batch: int = 2) -> Any:
    graph = probe_graph(load_model(path))
    batch = batch_kind(graph.model) or batch
    place = Place("here", "CPUExecutionProvider", "onnxruntime", batch, 1)
    return Stopwatch(graph, "cpu", place), find_blocks(graph)


@pytest.mark.long
@pytest.mark.parametrize("path", [DEMO, *map(fixture_path, (COMPUTED_SCALE, OPERATOR, SEPARATE, FIXED))])
def test_every_unit_has_its_times(path: Path) -> None:
    watch, blocks = watch_of(path)
    units = list_units(blocks, BEST.units)
    sites = find_merge_sites(watch.graph, blocks)
    times = measure_times(watch, blocks, units, BEST, plan_trim(watch.graph, blocks)[0], sites, Run())
    for unit in units:
        found = times.units[str(unit.key)]
        assert found.widths == tuple(choose_points(unit.widths(BEST)))
        assert found.widths[-1] == unit.width
        assert all(seconds > 0 for seconds in found.seconds)
    assert times.dense > 0
    assert times.whole > 0
    assert times.merge >= 0


def test_units_of_one_shape_share_their_times_and_sites_without_units_have_one() -> None:
    watch, blocks = watch_of(DEMO)
    units = list_units(blocks, ("mlp",))
    times = measure_times(watch, blocks, units, BEST, None, MergeSites(), Run())
    mlps = [times.units[str(unit.key)] for unit in units]
    assert all(found is mlps[0] for found in mlps)
    others = [unit for unit in choose_stand_ins(blocks, units) if unit not in units]
    assert {unit.key.site.part for unit in others} == {"attn"}
    assert all(times.units[str(unit.key)].widths == (unit.width,) for unit in others)


def test_a_device_is_timed_without_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DEVICES", {"CPUExecutionProvider": "cpu"})
    bound: list[DeviceRun] = []

    def bind(session: Session, feeds: Feeds, device: str) -> DeviceRun:
        made = bind_device(session, feeds, device)
        bound.append(DeviceRun(pytest.fail, made.resident))
        return bound[-1]

    monkeypatch.setattr(measure, "bind_device", bind)
    watch, blocks = watch_of(DEMO)
    units = list_units(blocks, BEST.units)
    times = measure_times(watch, blocks, units, BEST, None, find_merge_sites(watch.graph, blocks), Run())
    n_points = sum(len(choose_points(alike[0].widths(BEST))) for alike in group_alike(watch.graph, units))
    assert len(bound) == n_points + 1 + 3  # the dense model beside them, and beside two that merge
    assert times.dense > 0


def test_without_a_walk_a_site_takes_its_share_of_the_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "find_walk", lambda _: StreamWalk((), "none"))
    watch, blocks = watch_of(DEMO)
    units = list_units(blocks, BEST.units)
    times = measure_times(watch, blocks, units, BEST, None, MergeSites(), Run())
    for unit in units:
        share = unit.describe(watch.graph, watch.graph.cost).mac_share
        curve = times.units[str(unit.key)].trace()
        assert curve[-1] - curve[unit.width // 2] == pytest.approx(times.dense * share / 2)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_cut_keeps_the_first_channels_and_gives_their_width(kind: str) -> None:
    graph, blocks = probed(COMPUTED_SCALE)
    unit = list_units(blocks, {kind})[0]
    width = max(1, unit.width // 2)
    change = unit.cut(graph, width)
    cut = probe_graph(replace(graph.model, proto=apply_changes(graph, {unit.site.key: change})))
    assert list_units(find_blocks(cut), {kind})[0].width == width
    dense, _ = unit.cut(graph, unit.width).last_product(graph)
    padded, _ = change.padded().last_product(graph)
    assert padded.shape == dense.shape
    kept = padded != 0
    assert np.array_equal(padded[kept], dense[kept])
    n_kept = 1.0 if kind == "qk" else width / unit.width  # queries and keys leave the last product alone
    assert kept.mean() == pytest.approx(n_kept, abs=0.01)


def test_points_are_few_and_hold_both_ends() -> None:
    assert choose_points(range(8, 769, 8))[0] == 8
    assert choose_points(range(8, 769, 8))[-1] == 768
    assert len(choose_points(range(8, 769, 8))) == measure.MAX_POINTS
    assert choose_points([0, 8, 16]) == [8, 16]


def test_a_class_is_of_one_kind_and_shape() -> None:
    watch, blocks = watch_of(DEMO)
    classes = group_alike(watch.graph, list_units(blocks, BEST.units))
    assert [len({(u.kind, u.width) for u in alike}) for alike in classes] == [1] * len(classes)
    assert sum(map(len, classes)) == len(list_units(blocks, BEST.units))
