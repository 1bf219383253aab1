"""Allocation against every combination of widths, and its refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.errors import OptionError
from corp_onnx.solve.allocate import UnitCurve, aligned_widths, allocate_widths, tie_curves


def make_curves(seed: int, n_units: int = 4, n_widths: int = 4, convex: bool = True) -> list[UnitCurve]:
    rng = np.random.default_rng(seed)
    curves = []
    for u in range(n_units):
        width = 8 * np.arange(1, n_widths + 1)
        step = rng.uniform(0.01, 1, size=n_widths)
        step = np.sort(step) if convex else step
        error = step.cumsum()[::-1] - step[0]
        curves.append(UnitCurve(f"unit {u}", width, error, width * rng.uniform(1, 5), sensitivity=rng.uniform(0.5, 2)))
    return curves


def brute_force(curves: list[UnitCurve], budget: float) -> float:
    combinations = itertools.product(*(range(curve.width.size) for curve in curves))
    fitting = (c for c in combinations if sum(curve.cost[i] for curve, i in zip(curves, c, strict=True)) <= budget)
    return min(sum(curve.sensitivity * curve.error[i] for curve, i in zip(curves, c, strict=True)) for c in fitting)


def budgets(curves: list[UnitCurve], share: float) -> float:
    low, high = (sum(curve.cost[i] for curve in curves) for i in (0, -1))
    return float(low + share * (high - low))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), share=st.floats(0, 1.2), convex=st.booleans())
def test_it_fits_the_budget_and_lies_between_the_bound_and_one_step_above_the_best(seed, share, convex):
    curves = make_curves(seed, convex=convex)
    budget = budgets(curves, share)
    allocation = allocate_widths(curves, budget)
    best = brute_force(curves, budget * (1 + 1e-9))
    idx = [curve.width.tolist().index(allocation[curve.key]) for curve in curves]
    assert allocation.cost == pytest.approx(sum(curve.cost[i] for curve, i in zip(curves, idx, strict=True)))
    assert allocation.loss == pytest.approx(sum(curve.loss[i] for curve, i in zip(curves, idx, strict=True)))
    assert allocation.cost <= budget * (1 + 1e-9)
    assert allocation.loss_bound <= best + 1e-9
    # the hull's largest step is what rounding one unit down can lose; concave curves may jump over all their widths
    step = max(np.abs(np.diff(curve.loss)).max() if convex else np.ptp(curve.loss) for curve in curves)
    assert best - 1e-9 <= allocation.loss <= best + step + 1e-9


def test_it_is_nearly_always_the_best_and_far_from_uniform():
    ratios, uniform = [], []
    for seed in range(40):
        curves = make_curves(seed)
        budget = budgets(curves, 0.5)
        best = brute_force(curves, budget)
        ratios.append(allocate_widths(curves, budget).loss / best)
        uniform.append(sum(curve.loss[1] for curve in curves) / best)
    assert np.mean(ratios) < 1.03
    assert np.mean(uniform) > 1.3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), price=st.floats(0.001, 0.2))
def test_a_budget_on_a_step_of_convex_curves_is_met_exactly(seed, price):
    """The choice at any price is the best for what it costs."""
    curves = make_curves(seed)
    idx = [int((curve.loss + price * curve.cost).argmin()) for curve in curves]
    budget = float(sum(curve.cost[i] for curve, i in zip(curves, idx, strict=True)))
    expected = sum(curve.loss[i] for curve, i in zip(curves, idx, strict=True))
    allocation = allocate_widths(curves, budget)
    assert allocation.loss == pytest.approx(expected, abs=1e-9)
    assert allocation.loss_bound == pytest.approx(expected, abs=1e-6)


def test_everything_fits_a_full_budget_and_nothing_below_the_smallest():
    curves = make_curves(0)
    full = allocate_widths(curves, budgets(curves, 1.0))
    assert [width for _, width in full.widths] == [32] * 4
    assert full.loss == full.loss_bound == 0
    least = budgets(curves, 0.0)
    assert [width for _, width in allocate_widths(curves, least).widths] == [8] * 4
    with pytest.raises(OptionError, match=f"expected a budget of at least {least:g}, the smallest reachable, found 1"):
        allocate_widths(curves, 1.0)


def test_what_is_left_of_the_budget_is_spent():
    """A concave curve: no price picks its middle width, the rest of the budget does."""
    curve = UnitCurve("a", np.array([8, 16, 24]), np.array([10.0, 9.0, 0.0]), np.array([8.0, 16.0, 24.0]))
    assert allocate_widths([curve], 17.0)["a"] == 16
    assert allocate_widths([curve], 15.0)["a"] == 8


def test_a_cost_that_does_not_grow_with_width_is_used():
    """Measured latency: the wider kernel may be the faster one."""
    curve = UnitCurve("a", np.array([7, 8]), np.array([0.2, 0.1]), np.array([3.0, 2.5]))
    assert allocate_widths([curve], 2.6)["a"] == 8


def test_a_unit_that_loses_nothing_is_pruned_for_one_that_does():
    width, cost = np.array([8, 16]), np.array([8.0, 16.0])
    silent = UnitCurve("silent", width, np.array([5.0, 0.0]), cost, sensitivity=0.0)
    loud = UnitCurve("loud", width, np.array([1.0, 0.0]), cost)
    allocation = allocate_widths([silent, loud], 24.0)
    assert (allocation["silent"], allocation["loud"]) == (8, 16)


def test_tied_units_take_one_width():
    qk = UnitCurve("qk", np.array([8, 16, 24]), np.array([4.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0]), sensitivity=2.0)
    vo = UnitCurve("vo", np.array([16, 24, 32]), np.array([3.0, 1.0, 0.0]), np.array([20.0, 30.0, 40.0]))
    tied = tie_curves(qk, vo)
    assert tied.width.tolist() == [16, 24]
    assert tied.loss.tolist() == [5.0, 1.0]
    assert tied.cost.tolist() == [22.0, 33.0]
    allocation = allocate_widths([tied, make_curves(0)[0]], 100.0)
    assert allocation["qk"] == allocation["vo"] == 24
    assert len(allocation) == 3
    apart = UnitCurve("apart", np.array([7]), np.array([0.0]), np.array([1.0]))
    with pytest.raises(OptionError, match="a width that qk and apart both allow, found none"):
        tie_curves(qk, apart)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.floats(1e-6, 1e12))
def test_the_unit_of_cost_does_not_matter(seed, scale):
    curves = make_curves(seed)
    scaled = [UnitCurve(c.key, c.width, c.error, c.cost * scale, c.sensitivity) for c in curves]
    budget = budgets(curves, 0.4)
    assert allocate_widths(curves, budget).widths == allocate_widths(scaled, budget * scale).widths


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((64, 8), [8, 16, 24, 32, 40, 48, 56, 64]),
        ((20, 8), [8, 16, 20]),
        ((5, 8), [5]),
        ((64, 16, 32), [32, 48, 64]),
        ((64, 16, 1, 40), [16, 32, 64]),
        ((3, 1), [1, 2, 3]),
    ],
)
def test_aligned_widths_end_in_the_full_width(arguments, expected):
    assert aligned_widths(*arguments).tolist() == expected


def test_an_alignment_below_one_is_refused():
    with pytest.raises(OptionError, match="aligned to 1 or more, found 0"):
        aligned_widths(64, 0)


@pytest.mark.parametrize(
    ("width", "error", "sensitivity"),
    [([8, 8], [1, 0], 1.0), ([8], [1, 0], 1.0), ([8, 16], [np.nan, 0], 1.0), ([8, 16], [1, 0], -1)],
)
def test_a_curve_that_makes_no_sense_is_refused(width, error, sensitivity):
    with pytest.raises((ValueError, TypeError), match=r"for odd|Type-check error"):
        UnitCurve("odd", np.array(width), np.array(error, dtype=np.float64), np.ones(len(width)), sensitivity)


def test_of_equal_losses_the_wider_stays_while_the_budget_allows():
    flat = UnitCurve("flat", np.array([8, 16, 24]), np.zeros(3), np.array([8.0, 16.0, 24.0]))
    assert allocate_widths([flat], 24.0)["flat"] == 24
    assert allocate_widths([flat], 20.0)["flat"] <= 16
