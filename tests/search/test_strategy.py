"""Budgets and presets on a small graph: what was asked for is what the written model has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import probed
from samples import DEMO, OPERATOR, write_photos

from corp_onnx import targets
from corp_onnx.blocks import SiteKey, find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.checks.preflight import choose_units
from corp_onnx.errors import OptionError
from corp_onnx.graph.model import load_model
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import find_recipe
from corp_onnx.metrics import find_task
from corp_onnx.metrics.judgement import Kept
from corp_onnx.rewrite import plan_rewrite
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.evaluator import prepare_evaluator
from corp_onnx.search.folds import cut_folds
from corp_onnx.search.problem import Problem, Solution, solve_first, solve_widths
from corp_onnx.search.promise import PromiseSearch
from corp_onnx.search.search import Search, prepare_search
from corp_onnx.search.strategy import follow_budget, follow_method
from corp_onnx.search.widths import LATE_WEIGHT, allow_cost, favour_late, find_depths, uniform_widths
from corp_onnx.settings import BEST, PAPER, Budget, Fractions, Method
from corp_onnx.threads import Crew
from corp_onnx.tokens.trim import plan_trim
from corp_onnx.units import KINDS, UnitKey, gather_changes, list_units

METHOD = Method(align=2)


@pytest.fixture(scope="module")
def problem(tmp_path_factory) -> Problem:
    graph, blocks = probed(OPERATOR)
    folder = write_photos(tmp_path_factory.mktemp("photos"), 40)
    images = open_images(folder, find_recipe({}, graph.shapes[graph.inputs[0]]))
    calibration, held_out = split_holdout(images, 0.25)
    units = list_units(blocks, METHOD.units)
    moments = collect_moments(graph, units, calibration)
    return Problem(graph, blocks, units, METHOD, moments, calibration, held_out)


def probe_pruned(problem: Problem, changes, trim=None):
    proto = plan_rewrite(changes, trim).make(problem.graph)
    return probe_graph(replace(problem.graph.model, proto=proto))


def with_method(problem: Problem, **fields) -> Problem:
    return replace(problem, method=replace(problem.method, **fields))


def loss(search: Search, solution) -> float:
    return search.judge.evaluate(search.make(solution)).loss


def test_depth_of_every_unit() -> None:
    """From 0 to 1 over the blocks; all the same where there is one block."""
    assert set(find_depths(replace(probed(OPERATOR)[1], blocks=probed(OPERATOR)[1].blocks[:1])).values()) == {0.5}
    found = find_depths(probed(OPERATOR)[1])
    assert found == {SiteKey(i, part): float(i) for i in (0, 1) for part in ("attn", "mlp")}
    units = [unit.key for unit in list_units(probed(OPERATOR)[1], KINDS)]
    counted = favour_late(dict.fromkeys(units, 2.0), found)
    assert counted.keys() == set(units)
    assert counted[UnitKey(SiteKey(0, "mlp"), "mlp")] == pytest.approx(2 * np.exp(-LATE_WEIGHT))
    assert counted[UnitKey(SiteKey(1, "attn"), "vo")] == pytest.approx(2 * np.exp(LATE_WEIGHT))


@pytest.fixture(scope="module")
def search(problem):
    return prepare_search(problem)


class TestBudget:
    @pytest.mark.parametrize("fraction", [0.6, 0.8])
    @pytest.mark.parametrize("kind", ["macs", "params"])
    def test_written_model_is_within_the_budget_and_near_it(self, search, problem, kind, fraction) -> None:
        solution = search.one_shot(kind, fraction)
        assert solution.kept_fraction == fraction
        graph = probe_pruned(problem, solution.changes)
        if kind == "macs":
            kept = graph.cost.total / problem.graph.cost.total
        else:
            kept = graph.n_parameters / problem.graph.n_parameters
        assert fraction - 0.05 < kept <= fraction + 0.002

    def test_tokens_that_are_left_out_pay_for_widths(self, search, problem) -> None:
        """The same budget, wider units, and the file is still within it."""
        trim, _ = plan_trim(problem.graph, problem.blocks)
        assert trim is not None
        trimmed = prepare_search(replace(problem, trim=trim))
        changes = trimmed.one_shot("macs", 0.6).changes
        kept = probe_pruned(problem, changes, trim).cost.total
        assert 0.55 < kept / problem.graph.cost.total <= 0.602
        assert sum(trimmed.widths("macs", 0.6).values()) > sum(search.widths("macs", 0.6).values())

    def test_before_a_refit_late_blocks_stay_wider(self, search) -> None:
        """And without one, or with the option off, the widths are those of the plain search."""
        plain = search.widths("macs", 0.6)
        late = search.widths("macs", 0.6, before_refit=True)
        first, last = ([k for k in plain if k.site.block == i] for i in (0, 1))
        assert sum(late[k] for k in first) < sum(plain[k] for k in first)
        assert sum(late[k] for k in last) > sum(plain[k] for k in last)
        for off in ({"favour_late": False}, {"refit": False}, {"compensate": False}):
            other = replace(search, problem=with_method(search.problem, **off))
            assert other.widths("macs", 0.6, before_refit=True) == plain

    def test_out_of_reach_says_what_can_be_reached(self, search) -> None:
        with pytest.raises(
            OptionError, match=r"--macs 0\.01 asks for less than pruning can reach .* 0\.\d+ of its MACs"
        ):
            search.one_shot("macs", 0.01)

    @pytest.mark.parametrize("allocate", ["search", "uniform"])
    def test_alignment_that_leaves_no_width(self, problem, allocate) -> None:
        with pytest.raises(OptionError, match=r"--align 1000: no unit is wider than that.* the widest has \d+"):
            prepare_search(with_method(problem, align=1000, widths=Budget("macs", 0.6, allocate)))

    def test_searched_widths_lose_less_than_uniform_ones(self, search, problem) -> None:
        widths = uniform_widths(search.choices, allow_cost(problem.spending, search.choices, "macs", 0.6))
        plans = solve_widths(search.choices, widths)
        uniform = Solution(gather_changes(plans), plans)
        assert loss(search, search.one_shot("macs", 0.6)) < loss(search, uniform)

    def test_solutions_that_several_widths_share_are_made_once(self, search, monkeypatch: pytest.MonkeyPatch) -> None:
        several = [search.widths("macs", kept) for kept in (0.6, 0.61, 0.6)]
        alone = [solve_widths(search.choices, widths) for widths in several]
        with Crew(2) as crew:
            known = solve_first(search.choices, several, crew)
        (kind,) = {type(choice) for choice in search.choices if choice.key.kind == "mlp"}
        monkeypatch.setattr(kind, "solve", None)  # an MLP is alone on its site: none is solved again
        for widths, plans in zip(several, alone, strict=True):
            found = solve_widths(search.choices, widths, known)
            assert [(p.key, p.width) for p in found] == [(p.key, p.width) for p in plans]
            for one, other in zip(found, plans, strict=True):
                if one.key.kind == "mlp":
                    assert known[one.key, one.width] is one
                    assert np.array_equal(one.solved.weight, other.solved.weight)

    def test_equal_heads_ties_queries_keys_and_values(self, problem) -> None:
        tied = prepare_search(with_method(problem, equal_heads=True))
        widths = tied.widths("macs", 0.6)
        for site in problem.blocks.attentions:
            assert widths[UnitKey(site.key, "qk")] == widths[UnitKey(site.key, "vo")]
        assert {widths[UnitKey(site.key, "mlp")] for site in problem.blocks.mlps} != {tied.choices[0].width}

    def test_target_ties_heads_above_its_least_width(self, problem, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(targets.TARGETS, "tensorrt", targets.Target(equal_heads=True, min_head=5))
        search = prepare_search(with_method(problem, target="tensorrt"))
        widths = search.widths("macs", search.smallest_macs() / problem.graph.cost.total + 0.01)
        heads = {key: width for key, width in widths.items() if key.kind != "mlp"}
        assert min(heads.values()) == 6  # the next multiple of 2
        assert min(width for key, width in widths.items() if key.kind == "mlp") < 6
        for site in problem.blocks.attentions:
            assert widths[UnitKey(site.key, "qk")] == widths[UnitKey(site.key, "vo")]

    def test_widths_are_aligned_or_whole(self, search) -> None:
        widths = search.widths("macs", 0.7)
        full = {c.key: c.width for c in search.choices}
        assert all(w % 2 == 0 or w == full[key] for key, w in widths.items())


def find(search: Search, wanted: float, kind: str = "agreement", confidence: float = 0.95) -> Solution:
    budget = Budget(kind, wanted)  # type: ignore[arg-type]
    return PromiseSearch(search, (search,), budget, confidence).find()


class Hopeless(PromiseSearch):
    """Whatever is tried keeps too little."""

    def score(self, kept: Kept) -> float:
        del kept
        return 0.0


class TestPromise:
    def test_ten_images_prove_nothing_and_all_of_them_have_to_agree(self, search) -> None:
        outcome = find(search, 0.8)
        assert search.judge_solution(outcome).kept.mean == 1
        assert outcome.kept_fraction is not None
        assert outcome.kept_fraction < 1
        assert "of the answers on the 10 images that chose the size." in outcome.notes[0]
        assert outcome.notes[1] == (
            "--min-agreement 0.8 can not be proven by 10 images, even if all of them agree: that takes 16. "
            "The smallest model on which all of them agree is taken."
        )

    def test_where_images_can_prove_it_the_lower_end_keeps_it(self, search) -> None:
        """Of 10 images 0.6 is proven by 9 or more: the share alone would be content with 6."""
        outcome = find(search, 0.6)
        kept = search.judge_solution(outcome).kept
        interval = kept.interval(0.95)
        assert interval is not None
        assert interval[0] >= 0.6
        assert kept.mean >= 0.9
        assert len(outcome.notes) == 1

    def test_less_confidence_is_content_with_a_smaller_model(self, search) -> None:
        search = replace(search, problem=with_method(search.problem, refit=False))
        sure, unsure = find(search, 0.6), find(search, 0.6, confidence=0.1)
        assert (unsure.kept_fraction or 0) < (sure.kept_fraction or 0)

    def test_more_agreement_costs_no_less(self, search) -> None:
        search = replace(search, problem=with_method(search.problem, refit=False))
        small, large = find(search, 0.3), find(search, 0.6)
        assert (small.kept_fraction or 0) <= (large.kept_fraction or 0)

    @pytest.mark.long
    def test_tokens_alone_keep_all_answers(self, search, problem) -> None:
        """Where no unit can become narrower under the promise, what nobody reads is left out all the same."""
        trim, _ = plan_trim(problem.graph, problem.blocks)
        assert trim is not None
        trimmed, budget = replace(search, problem=replace(problem, trim=trim)), Budget("agreement", 0.9)
        outcome = Hopeless(trimmed, (trimmed,), budget, 0.95).find()
        assert outcome.plans == ()
        expected = trim.cost.total / problem.graph.cost.total
        assert outcome.kept_fraction == pytest.approx(expected, rel=1e-9)
        with pytest.raises(OptionError, match=r"--min-agreement 0\.9: no smaller model keeps that much"):
            Hopeless(search, (search,), budget, 0.95).find()

    def test_embeddings_keep_a_similarity(self, problem) -> None:
        """The same graph, its logits taken for an embedding."""
        feeds = prepare_evaluator(problem.graph.model, problem.judging).answers["logits"]
        task = find_task("logits", feeds, given="embed")
        search = prepare_search(replace(with_method(problem, refit=False), tasks=(task,)))
        loose, tight = find(search, 0.8, "similarity"), find(search, 0.99, "similarity")
        assert (loose.kept_fraction or 0) < (tight.kept_fraction or 0)
        assert search.judge_solution(tight).kept.name == "cosine"
        interval = search.judge_solution(tight).kept.interval()
        assert interval is not None
        assert interval[0] >= 0.99
        assert "keep a cosine of 0.99" in tight.notes[0]


class TestFolds:
    def test_every_image_judges_once_and_never_what_it_was_fitted_to(self, problem) -> None:
        folds = cut_folds(problem)
        judged = [name for fold in folds for name in fold.judging.names]
        assert sorted(judged) == sorted(problem.calibration.names)
        for fold in folds:
            assert not set(fold.judging.names) & set(fold.calibration.names)
            assert max(m.n_tokens for _, m in fold.moments.entries) < max(
                m.n_tokens for _, m in problem.moments.entries
            )

    def test_the_model_of_all_images_takes_the_size_that_folds_prove(self, problem) -> None:
        crossed = replace(problem, is_crossed=True, method=replace(METHOD, widths=Budget("agreement", 0.2)))
        outcome = follow_method(crossed)
        assert "on the 30 images that chose the size" in outcome.notes[0]
        assert outcome.changes
        assert 0 < (outcome.kept_fraction or 0) < 1

    def test_three_images_are_not_cut(self, problem) -> None:
        assert cut_folds(replace(problem, calibration=problem.calibration.select([0, 1, 2]))) == ()


class TestRefit:
    def test_refit_brings_the_answers_nearer(self) -> None:
        """On trained weights: those of the demo model, where errors add up over six blocks."""
        graph = probe_graph(load_model(DEMO))
        blocks = find_blocks(graph)
        images = open_images(DEMO.parent / "calib", find_recipe(graph.model.metadata, ()), limit=96)
        calibration, held_out = split_holdout(images, 0.33)
        method = Method(widths=Budget("macs", 0.4, "uniform"))
        units = list_units(blocks, method.units)
        moments = collect_moments(graph, units, calibration)
        search = prepare_search(Problem(graph, blocks, units, method, moments, calibration, held_out))
        assert loss(search, search.refitted("macs", 0.4)) < loss(search, search.one_shot("macs", 0.4))

    def test_tokens_count_alike_where_the_switch_says_so(self, search) -> None:
        alike = replace(search, problem=with_method(search.problem, weigh_tokens=False), _weights=None)
        one_shot = search.one_shot("macs", 0.6)
        weighted, plain = search.refit(one_shot), alike.refit(one_shot)
        assert alike.weigh_tokens() == {}
        key = search.walk.stops[0].key
        assert search.weigh_tokens()[key].max() > 1
        assert not np.allclose(weighted.changes[key].out_weight, plain.changes[key].out_weight)

    def test_switched_off(self, problem) -> None:
        plain = with_method(problem, refit=False)
        outcome = follow_budget(plain, Budget("macs", 0.7))
        same = prepare_search(plain).one_shot("macs", 0.7)
        assert outcome.changes.keys() == same.changes.keys()
        for key, change in outcome.changes.items():
            for name in change.__slots__:
                assert np.array_equal(getattr(change, name), getattr(same.changes[key], name))


class TestIngredients:
    @pytest.mark.parametrize(
        "fields", [{"rank": "energy"}, {"rank": "magnitude"}, {"rank": "weighted"}, {"qk": "sylvester"}]
    )
    def test_each_one_alone_is_better_than_without_it(self, problem, fields) -> None:
        """On the calibration moments, which is what they minimise: the error curve is never below that of best."""
        best = {c.key: c for c in problem.trace()}
        other = {c.key: c for c in with_method(problem, **fields).trace()}
        assert best.keys() == other.keys() == {unit.key for unit in problem.units}
        for unit in list_units(problem.blocks, ("mlp",)):
            middle = unit.width // 2
            assert best[unit.key].error_curve[middle] <= other[unit.key].error_curve[middle] * (1 + 1e-9)

    def test_fractions_with_the_best_solvers(self, problem) -> None:
        method = replace(METHOD, widths=Fractions(0.5, 0.5))
        wanted = choose_units(problem.graph, problem.blocks, method)
        outcome = follow_method(replace(problem, units=wanted, method=method))
        assert {p.unit.kind for p in outcome.plans} == {"mlp", "qk"}
        assert all(p.width == round(p.unit.width / 2) for p in outcome.plans)


class TestSettings:
    @pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 2.0])
    def test_budget_is_a_fraction(self, value: float) -> None:
        with pytest.raises(OptionError, match="--min-agreement is a fraction"):
            Budget("agreement", value)

    def test_budget_of_an_unknown_kind_or_rule(self) -> None:
        with pytest.raises(OptionError, match="--allocate must be search or uniform; found even"):
            Budget("macs", 0.5, "even")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="latency, similarity or promise; found flops"):
            Budget("flops", 0.5)  # type: ignore[arg-type]

    def test_without_any_knob_a_promise_decides(self) -> None:
        assert BEST.widths == Budget("promise")
        assert BEST.promises
        assert Budget().settle(is_classes=True) == Budget("agreement", 0.9)
        assert Budget().settle(is_classes=False) == Budget("similarity", 0.95)
        assert Budget("macs", 0.6).settle(is_classes=False) == Budget("macs", 0.6)
        assert not replace(BEST, widths=Budget("macs", 0.95)).promises
        assert not PAPER.promises

    def test_the_paper_cuts_fractions_and_does_nothing_else(self) -> None:
        assert (PAPER.units, PAPER.rank, PAPER.qk, PAPER.widths) == (
            ("mlp", "qk"), "energy", "sylvester", Fractions(0.5, 0.5)
        )  # fmt: skip
        assert (PAPER.refits, PAPER.trim, PAPER.compensate) == (False, False, True)
        assert (BEST.refits, BEST.trim) == (True, True)
        assert not replace(BEST, compensate=False).refits

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"rank": "size"}, "--rank must be obs, energy, magnitude, weighted or taylor; found size"),
            ({"qk": "exact"}, "--qk must be low-rank or sylvester; found exact"),
            ({"ridge": 0.0}, "--ridge must be a number above 0; found 0"),
            ({"ridge": float("inf")}, "--ridge must be a number above 0; found inf"),
            ({"align": 0}, "--align must be 1 or more; found 0"),
        ],
    )
    def test_a_method_that_makes_no_sense(self, fields: dict, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            replace(BEST, **fields)

    @pytest.mark.parametrize("value", [-0.1, 1.0])
    def test_a_fraction_removed_leaves_something(self, value: float) -> None:
        for name in ("mlp", "attn"):
            with pytest.raises(OptionError, match=rf"--{name} is the fraction removed and must lie in \[0, 1\); found"):
                Fractions(**{name: value})
