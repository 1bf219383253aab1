"""The plan of a prune: by method, and that every phase that a run enters is in it, under the same name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import probed
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.checks.preflight import choose_units
from corp_onnx.checks.workload import FINISHED, Price, plan_phases
from corp_onnx.graph.cost import Cost
from corp_onnx.options import choose_settings
from corp_onnx.progress import Moment, Run
from corp_onnx.prune import prune_model
from corp_onnx.search.folds import N_FOLDS
from corp_onnx.tokens.sites import MergeSites, find_merge_sites

MERGING = "timm_vit_ts17_unfused"
"""Tokens can merge in it."""


def planned(name: str, n_images: int = 64, **options: Any) -> dict[str, tuple[int, float]]:
    graph, blocks = probed(name)
    method = choose_settings(**options).method
    sites = find_merge_sites(graph, blocks) if method.merges else MergeSites()
    units = choose_units(graph, blocks, method)
    phases = plan_phases(graph, blocks, units, sites, method, n_images, 8)
    return {phase.name: (phase.times, phase.cost) for phase in phases}


def test_the_default_run() -> None:
    found = planned(MERGING)
    assert list(found) == [
        "calibrate", "compare tokens", "trace", "probe units", "probe tokens", "search", "refit", "weigh tokens",
        "verify", "measure",
    ]  # fmt: skip
    assert {name: times for name, (times, _) in found.items() if times > 1} == {"search": 2, "refit": 3}
    assert all(cost > 0 for _, cost in found.values())


def test_the_paper() -> None:
    assert list(planned(MERGING, preset="paper")) == ["calibrate", "trace", "verify", "measure"]


@pytest.mark.parametrize(
    ("options", "gone", "more"),
    [
        ({"macs": 0.6, "merge": "none"}, {"compare tokens", "probe tokens"}, set[str]()),
        ({"macs": 0.6, "refit": False}, {"refit", "weigh tokens"}, set[str]()),
        ({"macs": 0.6, "weigh_tokens": False}, {"weigh tokens"}, set[str]()),
        ({"rank": "taylor"}, set[str](), {"rank"}),
        ({"allocate": "amp"}, {"compare tokens", "probe tokens", "search"}, set[str]()),
        ({"macs": 0.6, "allocate": "uniform"}, {"compare tokens", "probe tokens", "probe units"}, set[str]()),
    ],
)
def test_what_a_method_leaves_out(options: dict[str, Any], gone: set[str], more: set[str]) -> None:
    assert set(planned(MERGING, **options)) == set(planned(MERGING)) - gone | more


def test_an_order_of_channels_without_curves_costs_next_to_nothing() -> None:
    """The paper's fractions ask for no error at other widths."""
    assert planned(MERGING, preset="paper")["trace"][1] < planned(MERGING, macs=0.6)["trace"][1]


def test_more_images_cost_more() -> None:
    few, many = planned(MERGING, 64), planned(MERGING, 640)
    assert 9 * few["calibrate"][1] < many["calibrate"][1] < 10 * few["calibrate"][1]  # moments are finished once
    assert many["probe units"] == few["probe units"]
    assert many["refit"][1] > few["refit"][1]


def test_passes_end_behind_their_part_of_the_network() -> None:
    """Three of them take the images twice as long as one, and finish each moment once."""
    graph, blocks = probed(MERGING)
    method = choose_settings(macs=0.6).method
    units = choose_units(graph, blocks, method)
    costs = [
        next(p.cost for p in plan_phases(graph, blocks, units, MergeSites(), method, 64, 8, n_passes=n)) for n in (1, 3)
    ]
    assert costs[1] - costs[0] == pytest.approx(costs[0] - Price(graph, blocks, units).squares(FINISHED))


def test_what_an_image_costs_has_no_say_in_what_a_rewrite_does() -> None:
    """One of a wide model takes as long as many of a small one, and writing it as long as its weights do."""
    graph, blocks = probed(MERGING)
    units = choose_units(graph, blocks, choose_settings(macs=0.6).method)
    price = Price(graph, blocks, units)
    wider = replace(graph)
    vars(wider)["cost"] = Cost({name: 100 * macs for name, macs in graph.cost.by_node.items()})
    assert Price(wider, blocks, units).written == pytest.approx(price.written / 100)
    assert Price(wider, blocks, units).cubes(1.0) == pytest.approx(price.cubes(1.0) / 100)
    n_channels = [unit.width for unit in units if unit.n_heads is None]
    assert price.cubes(3.0) * graph.cost.total == pytest.approx(3 * sum(n**3 for n in n_channels))
    assert price.squares(3.0) * graph.cost.total == pytest.approx(3 * sum(n**2 for n in n_channels))


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"min_agreement": 0.5, "align": 2},
        {"macs": 0.6, "align": 2},
        {"params": 0.8, "align": 2, "allocate": "uniform"},
        {"amp_threshold": 0.05, "align": 2, "allocate": "amp"},
        {"preset": "paper"},
    ],
)
def test_a_run_goes_by_its_plan(options: dict[str, Any], tmp_path: Path) -> None:
    """Every phase from calibration on was foreseen, and in the end nothing is left."""
    photos = write_photos(tmp_path / "photos", 40)
    seen: list[Moment] = []
    prune_model(fixture_path(OPERATOR), photos, tmp_path / "x.onnx", progress=Run(seen.append), **options)
    method = choose_settings(**options).method
    graph, blocks = probed(OPERATOR)
    sites = find_merge_sites(graph, blocks) if method.merges else MergeSites()
    n_folds = N_FOLDS if method.promises else 0  # so few images choose in folds
    phases = plan_phases(graph, blocks, choose_units(graph, blocks, method), sites, method, 32, 8, n_folds)
    stages = list(dict.fromkeys(moment.stage for moment in seen))
    known = {phase.name for phase in phases} | {"load", "open images"}
    assert {stage.split(" of at most ")[0].rstrip(" 1234567") for stage in stages} <= known
    assert {phase.name for phase in phases if phase.times == 1} <= set(stages)
    assert stages[-1] == "measure"
    assert seen[-1].left == pytest.approx(0, abs=1e-6)
    assert seen[-1].share == pytest.approx(1)
