"""Micro-graphs: every width of every class is timed, as the stretch that the cut model really has."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import probed
from samples import COMPUTED_SCALE, DEMO, FIXED, OPERATOR, SEPARATE, fixture_path

from corp_onnx.blocks import find_blocks
from corp_onnx.errors import ModelError
from corp_onnx.graph import load_model
from corp_onnx.graph.model import batch_kind
from corp_onnx.latency import measure, parts, stopwatch
from corp_onnx.latency.measure import choose_points, choose_stand_ins, group_alike, measure_times
from corp_onnx.latency.stopwatch import Feeds, Stopwatch
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
    monkeypatch.setattr(measure, "WHOLE", QUICK)
    monkeypatch.setattr(parts, "PARTS", QUICK)
    monkeypatch.setattr(stopwatch, "TRIAL", QUICK)


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


class Device:
    """The host's memory as a device's, with room for so many batches at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.n_bound, self.held = room, 0, weakref.WeakSet[Any]()
        monkeypatch.setattr(stopwatch, "DEVICES", {"CPUExecutionProvider": "cpu"})
        monkeypatch.setattr(stopwatch, "bind_device", self.bind)

    def bind(self, session: Session, feeds: Feeds, device: str) -> DeviceRun:
        self.held.add(session.native)
        if len(self.held) > self.room:
            raise ModelError("no room")
        self.n_bound += 1
        return DeviceRun(pytest.fail, bind_device(session, feeds, device).resident)


def time_on(device: Device) -> int:
    """The number of points, all of which have their times."""
    watch, blocks = watch_of(DEMO)
    units = list_units(blocks, BEST.units)
    times = measure_times(watch, blocks, units, BEST, None, find_merge_sites(watch.graph, blocks), Run())
    assert device.n_bound
    for unit in units:
        found = times.units[str(unit.key)]
        assert found.widths == tuple(choose_points(unit.widths(BEST)))
        assert all(seconds > 0 for seconds in found.seconds)
    return sum(len(choose_points(alike[0].widths(BEST))) for alike in group_alike(watch.graph, units))


def test_a_device_is_timed_without_transfers_class_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, 1 + measure.MAX_POINTS)
    n_points = time_on(device)
    assert device.n_bound == n_points + 3 + 3  # the dense model beside every class, and beside two that merge


def test_a_device_without_room_for_a_class_times_it_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    time_on(Device(monkeypatch, 4))


def test_a_device_without_room_for_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, 1)
    watch, blocks = watch_of(DEMO)
    units = list_units(blocks, ("mlp",))
    classes = group_alike(watch.graph, units)
    with pytest.raises(ModelError, match="no room"):
        parts.time_parts(watch, blocks, classes, {unit: [8, unit.width] for unit in units}, 1.0, Run())


def test_without_a_walk_a_site_takes_its_share_of_the_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "find_walk", lambda _: StreamWalk((), "none"))
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
