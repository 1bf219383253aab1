"""Schedules of the demo model: their cost and loss, one budget for widths and tokens, the refit on merged streams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import probed
from samples import DEMO

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.errors import OptionError
from corp_onnx.graph import load_model
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import find_recipe
from corp_onnx.refit import refit_changes
from corp_onnx.refit.parts import fit_weights
from corp_onnx.refit.stream import KnownStreams, place_given
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.segments import open_segment
from corp_onnx.search.problem import Problem
from corp_onnx.search.search import Search, prepare_search
from corp_onnx.search.stretches import stretch_dense
from corp_onnx.search.tokens import prepare_merging
from corp_onnx.settings import BEST
from corp_onnx.tokens.metric import learn_metrics
from corp_onnx.tokens.sites import MergeSites, MergeStep, find_merge_sites, list_assignments, list_carried
from corp_onnx.tokens.trim import plan_trim
from corp_onnx.units import list_units

CALIB = DEMO.parent / "calib"


@pytest.fixture(scope="module")
def problem() -> Problem:
    graph = probe_graph(load_model(DEMO))
    blocks = find_blocks(graph)
    images = open_images(CALIB, find_recipe(graph.model.metadata, graph.shapes[graph.inputs[0]]), limit=96)
    calibration, held_out = split_holdout(images, 0.25)
    units = list_units(blocks, BEST.units)
    sites = find_merge_sites(graph, blocks)
    trim, _ = plan_trim(graph, blocks)
    return Problem(
        graph, blocks, units, BEST, collect_moments(graph, units, calibration), calibration, held_out, trim=trim,
        sites=sites, metrics=learn_metrics(graph, blocks, sites, calibration, "learnt"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def search(problem) -> Search:
    return prepare_search(problem)


def kept(problem: Problem, solution) -> float:
    proto = plan_rewrite(solution.changes, problem.trim, merges=solution.merges).make(problem.graph)
    return probe_graph(replace(problem.graph.model, proto=proto)).cost.total / problem.graph.cost.total


class TestSchedules:
    @pytest.mark.long
    def test_a_plan_costs_what_its_graph_does(self, search, problem) -> None:
        for schedule in search.merging.schedules[1::12]:
            plan = search.merging.plan(schedule)
            proto = plan_rewrite({}, problem.trim, merges=plan.steps).make(problem.graph)
            found = probe_graph(replace(problem.graph.model, proto=proto)).cost.total
            assert plan.cost.total == pytest.approx(found, rel=1e-3)

    def test_the_loss_that_curves_promise_is_about_the_loss_there_is(self, search, problem) -> None:
        """Within a factor of three where it matters, though every probe sees one block alone."""
        deepest = search.merging.schedules[-1]
        assert sum(r > 0 for r in deepest.n_merged) > 1
        proto = plan_rewrite({}, merges=search.merging.plan(deepest).steps).make(problem.graph)
        assert 1 / 3 < search.judge.evaluate(proto).loss / deepest.loss < 3

    def test_nothing_merges_where_only_the_class_token_is_left(self, search) -> None:
        assert all(schedule.n_merged[-1] == 0 for schedule in search.merging.schedules)

    def test_named_blocks_alone(self, problem, search) -> None:
        named = replace(problem, method=replace(BEST, merge_blocks=(1, 3)))
        found = prepare_merging(named, search.judge)
        assert found is not None
        merging = {i for s in found.schedules for i, r in enumerate(s.n_merged) if r}
        assert merging
        assert merging <= {1, 3}

    @pytest.mark.long
    def test_constant_is_the_same_everywhere(self, problem, search) -> None:
        found = prepare_merging(replace(problem, method=replace(BEST, merge="constant")), search.judge)
        assert found is not None
        assert found.schedules[2].n_merged == (2, 2, 2, 2, 2, 0)

    def test_not_wanted_or_not_possible(self, problem, search) -> None:
        assert prepare_merging(replace(problem, sites=MergeSites()), search.judge) is None
        graph, blocks = probed("hf_dinov2_ts17_eager")
        none = replace(problem, sites=find_merge_sites(graph, blocks))
        assert prepare_merging(none, search.judge) is None


class TestOneBudget:
    @pytest.mark.long
    @pytest.mark.parametrize("budget", [0.3, 0.6])
    def test_the_file_is_within_it_and_near(self, search, problem, budget) -> None:
        solution = search.one_shot("macs", budget)
        assert budget - 0.05 < kept(problem, solution) <= budget + 0.002

    def test_both_together_lose_less_than_widths_alone(self, search) -> None:
        """At a size that schedules alone do not reach."""
        both, widths = (s.one_shot("macs", 0.15) for s in (search, replace(search, merging=None)))
        assert both.merges
        assert both.plans
        losses = [search.judge.evaluate(search.make(s)).loss for s in (both, widths)]
        assert losses[0] < 0.8 * losses[1]

    def test_parameters_are_not_merged(self, search) -> None:
        assert search.one_shot("params", 0.6).merges == ()

    def test_out_of_reach(self, search) -> None:
        with pytest.raises(OptionError, match=r"--macs 0\.001 asks for less than pruning can reach"):
            search.one_shot("macs", 0.001)


class TestRefit:
    def test_it_lowers_the_loss(self, search) -> None:
        one_shot = search.one_shot("macs", 0.12)
        assert one_shot.merges
        refitted = search.refit(one_shot)
        before, after = (search.judge.evaluate(search.make(s)).loss for s in (one_shot, refitted))
        assert after < 0.8 * before
        assert refitted.expected_loss == pytest.approx(before)

    @pytest.mark.long
    def test_streams_that_merge_by_themselves_ruin_it(self, search, problem) -> None:
        """The same walk without assignments: rows of the two streams no longer correspond."""
        widths = replace(search, merging=None).one_shot("macs", 0.5)
        numbers = zip(problem.sites.sites[1:], (20, 12, 6, 3), strict=False)
        steps = tuple(MergeStep(site, r, problem.metrics[site.block]) for site, r in numbers)
        one_shot = replace(widths, merges=steps)
        at = stretch_dense(search.problem, search.walk, steps)
        assert at.given == list_carried(steps)
        changes = refit_changes(at.graph, at.walk, one_shot.changes, search.make(one_shot), problem.calibration, {})
        solutions = replace(one_shot, changes=changes), search.refit(one_shot)
        ruined, sound = (search.judge.evaluate(search.make(s)).loss for s in solutions)
        assert ruined > 3 * sound

    @pytest.mark.long
    def test_only_the_stream_in_front_of_the_first_merge_is_known_to_others(self, search) -> None:
        """Two budgets whose tokens merge in different places, each refitted alone and behind the other."""
        solutions = [search.one_shot("macs", value) for value in (0.12, 0.35)]
        assert solutions[0].merges != solutions[1].merges
        sharing = replace(search, _known=KnownStreams())
        for solution in (*solutions, solutions[0]):
            alone, behind = (one.refit(solution).changes for one in (search, sharing))
            for key, change in alone.items():
                pairs = zip(
                    behind[key].last_product(search.problem.graph),
                    change.last_product(search.problem.graph),
                    strict=True,
                )
                assert all((found == wanted).all() for found, wanted in pairs)
        latest = max(min(step.site.block for step in solution.merges) for solution in solutions)
        streams = [stop.residual.stream for stop in search.walk.stops]
        assert set(sharing._known._rows) == {search.walk.starts[0], *streams[: 2 * latest]}

    @pytest.mark.long
    def test_sizes_that_are_given_are_those_that_would_be_found(self, search, problem) -> None:
        """A stretch without them computes the model from its images; with them it reads nothing but what is given."""
        one_shot = search.one_shot("macs", 0.12)
        at, pruned = stretch_dense(search.problem, search.walk, one_shot.merges), search.make(one_shot)
        changes, expected = (
            refit_changes(at.graph, at.walk, one_shot.changes, pruned, problem.calibration, {}, given=given)
            for given in (at.given, list_assignments(one_shot.merges))
        )
        for key, change in expected.items():
            for found, wanted in zip(changes[key].last_product(at.graph), change.last_product(at.graph), strict=True):
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
        needed = [
            {
                source
                for stop, before in zip(at.walk.stops, at.walk.starts, strict=True)
                for source in open_segment(
                    at.graph.model, at.graph.types, [before], [stop.residual.stream], given=given
                ).sources
            }
            for given in (at.given, list_assignments(one_shot.merges))
        ]
        assert "input" in needed[1]
        assert needed[0] <= set(at.given)

    @pytest.mark.long
    def test_what_merges_is_known_before_it_is_needed(self, search) -> None:
        """Each tensor at the stretch that finds it out: its stream, and what it follows from."""
        at = stretch_dense(search.problem, search.walk, search.one_shot("macs", 0.12).merges)
        placed = place_given(at.graph, at.walk, at.given)
        assert sorted(name for names in placed for name in names) == sorted(at.given)
        stretch = {name: i for i, names in enumerate(placed) for name in names}
        for step in search.one_shot("macs", 0.12).merges:
            streams = [stop.residual.stream for stop in at.walk.stops]
            home = streams.index(step.site.stream)
            assert stretch[step.tensor("order")] == stretch[step.tensor("partner")] == home
            assert stretch[step.tensor("sizes")] == home + 1

    @pytest.mark.long
    def test_weights_of_tokens_are_found_once_whatever_merges(self, search, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the dense model; streams with fewer tokens take the leading ones."""
        before = search.weigh_tokens()
        monkeypatch.setattr("corp_onnx.search.stretches.weigh_stops", None)
        other = prepare_search(search.problem)  # finds them among the findings
        assert all((weights == before[key]).all() for key, weights in other.weigh_tokens().items())
        at = stretch_dense(search.problem, search.walk, search.one_shot("macs", 0.35).merges)
        assert {len(before[stop.key]) for stop in search.walk.stops} == {65}
        for stop in at.walk.stops:
            n_tokens = at.graph.dims(stop.residual.stream)[1]
            assert (fit_weights(before[stop.key], n_tokens) == before[stop.key][:n_tokens]).all()
        assert (fit_weights(before[stop.key], 70)[65:] == 1).all()


def test_metrics_of_all_blocks_have_directions(problem) -> None:
    assert all(np.linalg.matrix_rank(m.directions) == 32 for m in problem.metrics.values())
