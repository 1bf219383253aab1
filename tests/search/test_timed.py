"""Budgets of time: what a search pays by a table, and how a clock corrects it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from samples import DEMO

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.errors import OptionError
from corp_onnx.graph import load_model
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import find_recipe
from corp_onnx.latency.clock import Clock
from corp_onnx.latency.stopwatch import Compared, Stopwatch
from corp_onnx.latency.table import Place, Times, WidthTimes
from corp_onnx.latency.turns import Ratio
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.problem import Problem
from corp_onnx.search.search import Search, prepare_search
from corp_onnx.search.timed import Trial, choose_trial, search_time
from corp_onnx.settings import BEST, Budget
from corp_onnx.tokens.metric import learn_metrics
from corp_onnx.tokens.sites import find_merge_sites
from corp_onnx.tokens.trim import plan_trim
from corp_onnx.units import list_units

PLACE = Place("here", "CPUExecutionProvider", "onnxruntime", 1, None)
SECOND = 1e9
"""Multiply-accumulates in one of the machine of these tests."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Of the demo on a machine that takes exactly as long as MACs say."""
    graph = probe_graph(load_model(DEMO))
    blocks = find_blocks(graph)
    images = open_images(
        DEMO.parent / "calib", find_recipe(graph.model.metadata, graph.shapes[graph.inputs[0]]), limit=48
    )
    calibration, held_out = split_holdout(images, 0.25)
    method = replace(BEST, refit=False, widths=Budget("speedup", 1.5))
    units = list_units(blocks, method.units)
    sites = find_merge_sites(graph, blocks)
    trim, _ = plan_trim(graph, blocks)
    assert trim is not None
    macs = {unit: unit.describe(graph, graph.cost).macs for unit in units}
    of_site = {unit.key.site: sum(m for u, m in macs.items() if u.key.site == unit.key.site) for unit in units}
    curves: dict[str, WidthTimes] = {}
    for unit in units:
        widths = range(1, unit.width + 1)
        left = [of_site[unit.key.site] - macs[unit] * (1 - width / unit.width) for width in widths]
        curves[str(unit.key)] = WidthTimes(tuple(widths), tuple(count / SECOND for count in left))
    times = Times(PLACE, graph.cost.total / SECOND, trim.cost.total / SECOND, 0.0, 1.0, curves)
    return Problem(
        graph, blocks, units, method, collect_moments(graph, units, calibration), calibration, held_out, trim=trim,
        sites=sites, metrics=learn_metrics(graph, blocks, sites, calibration, "learnt"), clock=Clock(times, None),
    )  # fmt: skip


@pytest.fixture(scope="module")
def search(problem: Problem) -> Search:
    return prepare_search(problem)


class TestPrices:
    @pytest.mark.long
    @pytest.mark.parametrize("kept", [0.8, 0.5])
    def test_where_time_is_macs_both_budgets_give_the_same_widths(self, search: Search, kept: float) -> None:
        assert search.widths("time", kept) == search.widths("macs", kept)

    def test_merged_tokens_save_what_their_macs_do(self, search: Search, problem: Problem) -> None:
        assert search.merging is not None
        for schedule in search.merging.schedules[1::20]:
            merged = replace(problem, merge=search.merging.plan(schedule)).spending
            time, macs = merged.price("time"), merged.price("macs")
            own = sum(merged.cost.by_node[name] for name in merged.cost.by_node if name.startswith("corp_onnx.merge"))
            assert time.whole * SECOND == pytest.approx(macs.whole - own, rel=1e-3)
            for key, price in macs.units.items():
                saved = price[-1] - price[len(price) // 2]
                found = time.units[key][-1] - time.units[key][len(price) // 2]
                assert found * SECOND == pytest.approx(saved, rel=1e-6)

    def test_a_merge_costs_what_was_measured(self, search: Search, problem: Problem) -> None:
        assert search.merging is not None
        assert problem.clock is not None
        merge = search.merging.plan(search.merging.schedules[-1])
        assert merge is not None
        dear = Clock(replace(problem.clock.times, merge=0.5), None)
        free, paid = (
            replace(p, merge=merge).spending.price("time").whole for p in (problem, replace(problem, clock=dear))
        )
        assert paid - free == pytest.approx(0.5 * len(merge.steps))

    def test_tokens_that_save_half_of_what_macs_say_are_half_as_good(self, search: Search, problem: Problem) -> None:
        assert search.merging is not None
        assert problem.clock is not None
        merge = search.merging.plan(search.merging.schedules[-1])
        half = replace(problem, clock=Clock(replace(problem.clock.times, token_gain=0.5), None))
        which = ((problem, None), (problem, merge), (half, merge))
        whole, full, part = (replace(p, merge=m).spending.price("time").whole for p, m in which)
        assert whole - part == pytest.approx((whole - full) / 2)


class Pretended(Stopwatch):
    """A machine on which a model takes what its MACs say, times a factor that no table knows."""

    off: float
    asked: list[float]

    def start(self, proto: Any) -> Any:
        return proto

    def compare(self, other: Any) -> Compared:
        graph = probe_graph(replace(self.graph.model, proto=other))
        share = self.off * graph.cost.total / self.graph.cost.total
        type(self).asked.append(share)
        return Compared(1.0, share, Ratio(1 / share, 1 / share, 1 / share), 10)


def pretend(problem: Problem, off: float) -> Clock:
    assert problem.clock is not None
    kind = type("Off", (Pretended,), {"off": off, "asked": [], "__slots__": ()})
    return Clock(problem.clock.times, kind(problem.graph, "cpu", PLACE))


class TestTheClock:
    @pytest.mark.long
    @pytest.mark.parametrize("off", [0.8, 1.0, 1.25])
    def test_what_the_table_is_off_is_made_up_for(self, search: Search, problem: Problem, off: float) -> None:
        clock = pretend(problem, off)
        solution = search_time(search, Budget("speedup", 1.8), clock)
        proto = problem.finish(solution.changes, solution.merges).make(problem.graph)
        share = clock.watch.compare(proto).other  # type: ignore[union-attr]
        assert 0.95 / 1.8 <= share <= 1.011 / 1.8

    @pytest.mark.long
    def test_a_latency_is_a_share_of_the_dense_one(self, search: Search, problem: Problem) -> None:
        clock = pretend(problem, 1.0)
        budget = Budget("latency", clock.times.dense / 1.8)
        assert search_time(search, budget, clock).expected_speedup == pytest.approx(1.8, rel=0.05)

    @pytest.mark.long
    def test_what_no_width_reaches_by_the_clock_is_refused_with_what_was_measured(
        self, search: Search, problem: Problem
    ) -> None:
        with pytest.raises(OptionError, match=r"7 times as fast is more .* was measured") as caught:
            search_time(search, Budget("speedup", 7.0), pretend(problem, 3.0))
        assert "2." in str(caught.value)

    def test_by_a_table_of_another_machine_nothing_is_timed(self, search: Search, problem: Problem) -> None:
        assert problem.clock is not None
        assert search_time(search, Budget("speedup", 1.8), problem.clock).expected_speedup == pytest.approx(1.8)

    def test_the_slowest_that_is_fast_enough_is_taken(self) -> None:
        trials = [Trial(None, 0.5, share) for share in (0.62, 0.45, 0.5, 0.49)]  # type: ignore[arg-type]
        assert choose_trial(trials, 0.5).share == 0.5
        assert choose_trial(trials, 0.4).share == 0.45
        assert np.isclose(choose_trial(trials[:1], 0.5).share, 0.62)
