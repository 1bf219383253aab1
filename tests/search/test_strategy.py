"""Budgets and presets on a small graph: what was asked for is what the written model has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from corp_onnx.search.best import BestSettings, solve_widths, trace_choices
from corp_onnx.search.plan import Cut, gather_changes
from graphs import probed
from samples import DEMO, OPERATOR, write_photos

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.collect import choose_units, collect_moments
from corp_onnx.errors import OptionError
from corp_onnx.graph import count_parameters
from corp_onnx.graph.cost import count_macs
from corp_onnx.graph.model import load_model
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import find_recipe
from corp_onnx.metrics import tally_loss
from corp_onnx.rewrite import apply_changes
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.strategy import Situation, follow_best, follow_settings, prepare_search, search_agreement
from corp_onnx.search.widths import LATE_WEIGHT, Allowance, favour_late, find_depths, uniform_widths
from corp_onnx.settings import Budget, PruneSettings
from corp_onnx.tokens.trim import plan_trim, trim_model

SETTINGS = BestSettings(align=2)


@pytest.fixture(scope="module")
def situation(tmp_path_factory) -> Situation:
    graph, blocks = probed(OPERATOR)
    folder = write_photos(tmp_path_factory.mktemp("photos"), 40)
    images = open_images(folder, find_recipe({}, graph.shapes[graph.inputs[0]]))
    calibration, held_out = split_holdout(images, 0.25)
    units = choose_units(blocks, vo=True)
    moments = collect_moments(graph, units, calibration)
    return Situation(graph, blocks, units, moments, calibration, held_out, 8, "cpu", 0)


def rewritten(situation: Situation, changes):
    proto = apply_changes(situation.graph, situation.blocks, changes, {})
    return probe_graph(replace(situation.graph.model, proto=proto)), proto


def test_depth_of_every_unit() -> None:
    """From 0 to 1 over the blocks; all the same where there is one block."""
    assert set(find_depths(Blocks(probed(OPERATOR)[1].blocks[:1], ())).values()) == {0.5}
    found = find_depths(probed(OPERATOR)[1])
    assert found == {f"blocks.{i}.{unit}": float(i) for i in (0, 1) for unit in ("attn.qk", "attn.vo", "mlp")}
    counted = favour_late(dict.fromkeys(found, 2.0), found)
    assert counted["blocks.0.mlp"] == pytest.approx(2 * np.exp(-LATE_WEIGHT))
    assert counted["blocks.1.attn.vo"] == pytest.approx(2 * np.exp(LATE_WEIGHT))


@pytest.fixture(scope="module")
def search(situation):
    return prepare_search(situation, SETTINGS)


class TestBudget:
    @pytest.mark.parametrize("fraction", [0.6, 0.8])
    @pytest.mark.parametrize("kind", ["macs", "params"])
    def test_written_model_is_within_the_budget_and_near_it(self, search, situation, kind, fraction) -> None:
        outcome, _ = search.one_shot(kind, fraction)
        graph, _ = rewritten(situation, outcome.changes)
        if kind == "macs":
            kept = count_macs(graph).total / count_macs(situation.graph).total
        else:
            kept = count_parameters(graph) / count_parameters(situation.graph)
        assert fraction - 0.05 < kept <= fraction + 0.002

    def test_tokens_that_are_left_out_pay_for_widths(self, search, situation) -> None:
        """The same budget, wider units, and the file is still within it."""
        trim, _ = plan_trim(situation.graph, situation.blocks)
        assert trim is not None
        trimmed = prepare_search(replace(situation, trim=trim), SETTINGS)
        changes = trimmed.one_shot("macs", 0.6)[0].changes
        proto = apply_changes(situation.graph, situation.blocks, changes, {}, apart=trim.apart)
        trimmed_file = trim_model(replace(situation.graph.model, proto=proto))
        assert trimmed_file is not None
        kept = count_macs(probe_graph(replace(situation.graph.model, proto=trimmed_file[0]))).total
        assert 0.55 < kept / count_macs(situation.graph).total <= 0.602
        assert sum(trimmed.widths("macs", 0.6).values()) > sum(search.widths("macs", 0.6).values())

    def test_before_a_refit_late_blocks_stay_wider(self, search) -> None:
        """And without one, or with the option off, the widths are those of the plain search."""
        plain = search.widths("macs", 0.6)
        late = search.widths("macs", 0.6, before_refit=True)
        first, last = ([k for k in plain if k.startswith(f"blocks.{i}.")] for i in (0, 1))
        assert sum(late[k] for k in first) < sum(plain[k] for k in first)
        assert sum(late[k] for k in last) > sum(plain[k] for k in last)
        for off in ({"favour_late": False}, {"refit": False}, {"compensate": False}):
            other = replace(search, settings=replace(search.settings, **off))
            assert other.widths("macs", 0.6, before_refit=True) == plain

    def test_out_of_reach_says_what_can_be_reached(self, search) -> None:
        with pytest.raises(
            OptionError, match=r"--macs 0\.01 asks for less than pruning can reach .* 0\.\d+ of its MACs"
        ):
            search.one_shot("macs", 0.01)

    @pytest.mark.parametrize("allocate", ["search", "uniform"])
    def test_alignment_that_leaves_no_width(self, situation, allocate) -> None:
        with pytest.raises(OptionError, match=r"--align 1000: no unit is wider than that.* the widest has \d+"):
            prepare_search(situation, replace(SETTINGS, align=1000, allocate=allocate))

    def test_searched_widths_lose_less_than_uniform_ones(self, search, situation) -> None:
        total = count_macs(situation.graph).total
        widths = uniform_widths(search.choices, SETTINGS, Allowance("macs", 0.6, total, total))
        uniform = gather_changes(solve_widths(search.choices, widths))
        losses = [
            tally_loss(search.judge.evaluate(rewritten(situation, changes)[1]))
            for changes in (search.one_shot("macs", 0.6)[0].changes, uniform)
        ]
        assert losses[0] < losses[1]

    def test_equal_heads_ties_queries_keys_and_values(self, situation) -> None:
        tied = prepare_search(situation, replace(SETTINGS, equal_heads=True))
        widths = tied.widths("macs", 0.6)
        for unit in situation.blocks.attentions:
            assert widths[unit.qk_key] == widths[unit.vo_key]

    def test_widths_are_aligned_or_whole(self, search) -> None:
        widths = search.widths("macs", 0.7)
        full = {c.key: c.width for c in search.choices}
        assert all(w % 2 == 0 or w == full[key] for key, w in widths.items())


class TestAgreement:
    def test_found_model_agrees_as_much_as_asked(self, search, situation) -> None:
        outcome = search_agreement(search, 0.8)
        _, proto = rewritten(situation, outcome.changes)
        assert search.agreement(proto) >= 0.8
        assert outcome.kept_fraction is not None
        assert outcome.kept_fraction < 1
        assert "of the answers on 10 held-back images" in outcome.notes[0]

    def test_more_agreement_costs_no_less(self, search) -> None:
        plain = replace(search.settings, refit=False)
        search = replace(search, settings=plain)
        small, large = search_agreement(search, 0.5), search_agreement(search, 0.9)
        assert (small.kept_fraction or 0) <= (large.kept_fraction or 0)

    def test_tokens_alone_keep_all_answers(self, search, situation) -> None:
        """Where no unit can become narrower under the wanted agreement, what nobody reads is left out all the same."""
        trim, _ = plan_trim(situation.graph, situation.blocks)
        assert trim is not None
        hopeless = replace(search, situation=replace(situation, trim=trim), settings=replace(SETTINGS, align=2))
        outcome = search_agreement(hopeless, 1.01)
        assert outcome.plans == ()
        expected = trim.cost.total / count_macs(situation.graph).total
        assert outcome.kept_fraction == pytest.approx(expected, rel=1e-9)
        with pytest.raises(OptionError, match=r"--min-agreement 1\.01: no smaller model agrees that much"):
            search_agreement(search, 1.01)


class TestRefit:
    def test_refit_brings_the_answers_nearer(self) -> None:
        """On trained weights: those of the demo model, where errors add up over six blocks."""
        graph = probe_graph(load_model(DEMO))
        blocks = find_blocks(graph)
        images = open_images(DEMO.parent / "calib", find_recipe(graph.model.metadata, ()), limit=96)
        calibration, held_out = split_holdout(images, 0.33)
        units = choose_units(blocks, vo=True)
        moments = collect_moments(graph, units, calibration)
        search = prepare_search(
            Situation(graph, blocks, units, moments, calibration, held_out, 8, "cpu", 0),
            BestSettings(allocate="uniform"),
        )
        one_shot, refitted = search.one_shot("macs", 0.4)[1], search.refitted("macs", 0.4)[1]
        assert tally_loss(search.judge.evaluate(refitted)) < tally_loss(search.judge.evaluate(one_shot))

    def test_tokens_count_alike_where_the_switch_says_so(self, search) -> None:
        alike = replace(search, settings=replace(search.settings, weigh_tokens=False), _weights=None)
        one_shot = search.one_shot("macs", 0.6)[0]
        weighted, plain = search.refit(one_shot)[0], alike.refit(one_shot)[0]
        assert alike._weights is None
        key = search.walk.stops[0].key
        assert search._weights is not None
        assert search._weights[key].max() > 1
        assert not np.allclose(weighted.changes[key].out_weight, plain.changes[key].out_weight)

    def test_switched_off(self, situation) -> None:
        outcome = follow_best(situation, replace(SETTINGS, refit=False), Budget("macs", 0.7))
        search = prepare_search(situation, replace(SETTINGS, refit=False))
        same = search.one_shot("macs", 0.7)[0]
        for key, change in outcome.changes.items():
            for name in change.__slots__:
                assert np.array_equal(getattr(change, name), getattr(same.changes[key], name))


class TestIngredients:
    @pytest.mark.parametrize(
        "settings",
        [
            replace(SETTINGS, rank="energy"),
            replace(SETTINGS, rank="magnitude"),
            replace(SETTINGS, qk="sylvester"),
        ],
    )
    def test_each_one_alone_is_better_than_without_it(self, situation, settings) -> None:
        """On the calibration moments, which is what they minimise: the error curve is never below that of best."""
        best = {c.key: c for c in trace_choices(*_of(situation), SETTINGS)}
        other = {c.key: c for c in trace_choices(*_of(situation), settings)}
        for unit in situation.blocks.mlps:
            middle = unit.d_hidden // 2
            assert best[unit.key].error_curve[middle] <= other[unit.key].error_curve[middle] * (1 + 1e-9)

    def test_fractions_with_the_best_solvers(self, situation) -> None:
        settings = PruneSettings(cut=Cut(0.5, 0.5), best=SETTINGS)
        outcome = follow_settings(situation, settings)
        assert {p.kind for p in outcome.plans} == {"mlp", "qk"}
        assert all(p.width_after == round(p.width_before / 2) for p in outcome.plans)


class TestSettings:
    def test_paper_takes_no_budget(self) -> None:
        with pytest.raises(OptionError, match="takes fractions"):
            PruneSettings(preset="paper", budget=Budget("macs", 0.7))

    def test_fractions_exclude_a_budget(self) -> None:
        with pytest.raises(OptionError, match="one or the other"):
            PruneSettings(cut=Cut(), budget=Budget("macs", 0.7))

    @pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 2.0])
    def test_budget_is_a_fraction(self, value: float) -> None:
        with pytest.raises(OptionError, match="--min-agreement is a fraction"):
            Budget("agreement", value)

    def test_without_any_knob_agreement_decides(self) -> None:
        settings = PruneSettings()
        assert settings.goal == Budget("agreement", 0.95)
        assert settings.judges_by_agreement


def _of(situation: Situation):
    return situation.graph, situation.blocks, situation.units, situation.moments
