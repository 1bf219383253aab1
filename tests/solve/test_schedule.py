"""Schedules against every combination of numbers, and loss curves against their probes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.solve.schedule import (
    MAX_STATES,
    StageCurve,
    constant_schedules,
    list_schedules,
    measure_schedule,
    most_merged,
    smooth_losses,
    trace_loss,
)

N_TOKENS, N_SPECIAL = 9, 1


def make_stages(seed: int, n_stages: int = 3, closed: tuple[int, ...] = ()) -> list[StageCurve]:
    rng = np.random.default_rng(seed)
    tokens = np.arange(N_TOKENS + 1) / N_TOKENS
    stages = []
    for i in range(n_stages):
        cost = rng.uniform(1, 3) * tokens + rng.uniform(0, 1) * tokens**2
        loss = trace_loss(N_TOKENS, (1, 3), sorted(rng.uniform(1e-3, 1, 2)))
        stages.append(StageCurve(cost, None if i in closed else loss))
    return stages


def every_schedule(stages: list[StageCurve], merge_cost: float):
    """All numbers that the bipartite step allows, one stage behind the other."""
    for numbers in itertools.product(range(N_TOKENS), repeat=len(stages)):
        left, fits = N_TOKENS, True
        for stage, r in zip(stages, numbers, strict=True):
            fits &= r <= (0 if stage.loss is None else most_merged(left, N_SPECIAL))
            left -= r
        if fits:
            yield measure_schedule(stages, N_TOKENS, numbers, merge_cost)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), merge_cost=st.sampled_from([0.0, 0.1]), price=st.floats(1e-3, 1.0))
def test_no_other_is_better_at_any_price(seed, merge_cost, price):
    """Within a percent: prices are swept in steps."""
    stages = make_stages(seed, closed=(1,) if seed % 3 == 0 else ())
    found = list_schedules(stages, N_TOKENS, N_SPECIAL, merge_cost)
    assert all(r == 0 for s in found for r, stage in zip(s.n_merged, stages, strict=True) if stage.loss is None)
    best = min(s.loss + price * s.cost for s in every_schedule(stages, merge_cost))
    assert min(s.loss + price * s.cost for s in found) <= 1.01 * best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999))
def test_each_can_be_followed(seed):
    stages = make_stages(seed, 4)
    for schedule in list_schedules(stages, N_TOKENS, N_SPECIAL):
        left = N_TOKENS
        for r in schedule.n_merged:
            assert 0 <= r <= most_merged(left, N_SPECIAL)
            left -= r
        assert schedule == measure_schedule(stages, N_TOKENS, schedule.n_merged)


def test_they_begin_with_nothing_and_trade_loss_for_cost():
    found = list_schedules(make_stages(0), N_TOKENS, N_SPECIAL)
    assert found[0].n_merged == (0, 0, 0)
    assert found[0].loss == 0
    assert len(found) > 3
    assert all(a.loss < b.loss and a.cost > b.cost for a, b in itertools.pairwise(found))


def test_a_price_on_merging_gathers_merges():
    stages = make_stages(1, 6)
    free, dear = (list_schedules(stages, N_TOKENS, N_SPECIAL, cost)[-1] for cost in (0.0, 1.0))
    assert np.count_nonzero(dear.n_merged) < np.count_nonzero(free.n_merged)


def test_constant_numbers_as_far_as_tokens_reach():
    stages = make_stages(2, closed=(1,))
    found = constant_schedules(stages, N_TOKENS, N_SPECIAL)
    assert [s.n_merged for s in found] == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 2)]
    assert all(a.cost > b.cost for a, b in itertools.pairwise(found))


def test_long_sequences_go_in_steps():
    n = 4 * MAX_STATES
    share = np.arange(n + 1) / n
    stages = [StageCurve(share, trace_loss(n, (80, 200, 400), (1e-4, 1e-3, 1e-2))) for _ in range(4)]
    found = list_schedules(stages, n, 1)
    assert len(found) > 5


class TestLossCurve:
    def test_it_passes_through_its_probes(self):
        curve = trace_loss(100, (8, 20, 40), (0.001, 0.01, 0.2))
        assert curve[[92, 80, 60]] == pytest.approx([0.001, 0.01, 0.2])
        assert curve[100] == 0
        assert (np.diff(curve) < 0).all()

    def test_a_power_law_is_recovered(self):
        merged = 100 - np.arange(100)
        curve = trace_loss(100, (8, 20, 40), tuple(1e-6 * r**2.5 for r in (8, 20, 40)))
        assert curve[:100] == pytest.approx(1e-6 * merged**2.5)

    def test_noise_is_flattened_and_the_end_rises_at_least_in_proportion(self):
        curve = trace_loss(100, (8, 20, 40), (0.01, 0.004, 0.01))
        assert curve[80] == pytest.approx(0.01)
        assert curve[20] == pytest.approx(0.02)

    def test_one_probe_is_enough(self):
        assert trace_loss(10, (2,), (0.04,))[[8, 6]] == pytest.approx([0.04, 0.16])


class TestSmoothing:
    def test_a_power_law_over_blocks_stays(self):
        losses = np.outer(0.5 ** np.arange(6), [0.1, 0.3])
        assert smooth_losses(losses) == pytest.approx(losses)

    def test_one_that_came_out_too_low_is_raised_by_its_neighbours(self):
        losses = np.full((5, 1), 0.1)
        losses[2] = 0.001
        found = smooth_losses(losses)[:, 0]
        assert found[2] == pytest.approx(0.01)
        assert found[[0, 4]] == pytest.approx([0.1, 0.1])

    def test_noise_shrinks(self):
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((400, 1))
        assert np.std(np.log(smooth_losses(np.exp(noise)))) < 0.7 * np.std(noise)

    def test_two_blocks_and_losses_of_nothing(self):
        assert smooth_losses(np.array([[0.1], [0.2]])) == pytest.approx(np.array([[0.1], [0.2]]))
        assert (smooth_losses(np.zeros((4, 2))) > 0).all()


@pytest.mark.parametrize(("n_tokens", "n_special", "most"), [(197, 1, 97), (9, 1, 3), (4, 0, 1), (3, 1, 0), (2, 1, 0)])
def test_a_step_leaves_a_source(n_tokens, n_special, most):
    assert most_merged(n_tokens, n_special) == most
