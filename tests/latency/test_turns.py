"""Rounds of turns on a clock that the test owns: who runs when, what is paired with what, and the percentiles."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pytest

from corp_onnx.errors import OptionError
from corp_onnx.latency.turns import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    Schedule,
    paired_ratio,
    summarise,
    time_turns,
    turn_orders,
)


@dataclass
class FakeMachine:
    """Its clock moves only while something runs, by the cost of that times how slow the machine is in this round."""

    costs: tuple[float, ...]
    slowness: Callable[[int], float] = lambda _round: 1.0
    now: float = 100.0
    turns: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def runs(self) -> list[Callable[[], None]]:
        return [lambda i=i: self._run(i) for i in range(len(self.costs))]

    def _run(self, i: int) -> None:
        self.now += self.costs[i] * self.slowness(len(self.turns) // len(self.costs))
        self.turns.append(i)

    def rounds(self) -> list[list[int]]:
        n = len(self.costs)
        return [self.turns[k : k + n] for k in range(0, len(self.turns), n)]


def take(machine: FakeMachine, schedule: Schedule) -> np.ndarray:
    return time_turns(machine.runs(), schedule, clock=machine.clock)


def test_every_round_has_everyone_once_and_seconds_lie_in_their_own_column() -> None:
    machine = FakeMachine((3.0, 1.0, 2.0))
    seconds = take(machine, Schedule(repeats=7, warmup=2))
    assert [sorted(r) for r in machine.rounds()] == [[0, 1, 2]] * 9
    np.testing.assert_allclose(seconds, [[3.0, 1.0, 2.0]] * 7)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_over_n_rounds_everyone_has_every_place(n: int) -> None:
    orders = np.array(list(islice(turn_orders(n, seed=3), 4 * n)))
    for block in orders.reshape(4, n, n):
        assert [sorted(column) for column in block.T.tolist()] == [list(range(n))] * n


def test_the_order_is_drawn_and_the_seed_decides() -> None:
    first, again, other = (list(islice(turn_orders(6, seed), 60)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len({tuple(order) for order in first}) > 12  # more than one draw and its rotations


def test_a_ratio_within_rounds_survives_a_machine_that_a_ratio_of_medians_does_not() -> None:
    rng = np.random.default_rng(0)
    drift = rng.lognormal(0, 1.5, 1000)
    machine = FakeMachine((3.0, 2.0), slowness=lambda i: drift[i])
    seconds = take(machine, Schedule(repeats=200))
    ratio = paired_ratio(seconds[:, 0], seconds[:, 1])
    np.testing.assert_allclose([ratio.q1, ratio.median, ratio.q3], 1.5)
    # taken one model after the other, the same machine gives something else
    apart = np.median(3.0 * drift[:100]) / np.median(2.0 * drift[100:200])
    assert abs(apart - 1.5) > 0.1


def test_ratio_against_rounds_by_hand() -> None:
    baseline, other = np.array([2.0, 9.0, 8.0, 3.0, 5.0]), np.array([1.0, 3.0, 2.0, 3.0, 1.0])
    ratio = paired_ratio(baseline, other)  # 2, 3, 4, 1, 5
    assert (ratio.q1, ratio.median, ratio.q3) == (2.0, 3.0, 4.0)


def test_percentiles_interpolate_between_sorted_rounds() -> None:
    seconds = np.random.default_rng(1).exponential(size=41)
    ordered = sorted(seconds.tolist())

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        above = ordered[min(low + 1, len(ordered) - 1)]
        return ordered[low] + (place - low) * (above - ordered[low])

    found = summarise(seconds)
    expected = [at(s) for s in (0.5, 0.9, 0.99, 0.25, 0.75)]
    np.testing.assert_allclose([found.p50, found.p90, found.p99, found.q1, found.q3], expected)


def test_warm_up_rounds_do_not_count() -> None:
    machine = FakeMachine((1.0,), slowness=lambda i: 50.0 if i < 4 else 1.0)
    np.testing.assert_allclose(take(machine, Schedule(repeats=3, warmup=4)), 1.0)
    assert len(machine.turns) == 7


@pytest.mark.parametrize(
    ("costs", "seconds", "rounds"),
    [((1.0, 3.0), 100.0, 23), ((1.0, 3.0), 5.0, MIN_ROUNDS), ((1e-9,), 5.0, MAX_ROUNDS), ((0.0,), 5.0, MAX_ROUNDS)],
)
def test_a_budget_of_seconds_becomes_rounds(costs: tuple[float, ...], seconds: float, rounds: int) -> None:
    """Two warm-up rounds; what the first cost (twice as slow) is taken off the budget, the second tells the rest."""
    machine = FakeMachine(costs, slowness=lambda i: 2.0 if i == 0 else 1.0)
    assert len(take(machine, Schedule(seconds=seconds, warmup=2))) == rounds


def test_progress_counts_rounds() -> None:
    machine, said = FakeMachine((1.0, 1.0)), []
    time_turns(machine.runs(), Schedule(repeats=3), clock=machine.clock, progress=lambda *a: said.append(a))
    assert said == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"repeats": 0}, "--repeats must be at least 1; found 0."),
        ({"seconds": 0.0}, "--seconds must be a positive number; found 0."),
        ({"seconds": float("nan")}, "--seconds must be a positive number; found nan."),
        ({"seconds": float("inf")}, "--seconds must be a positive number; found inf."),
        ({"warmup": 0}, "--warmup must be at least 1, since first runs allocate memory; found 0."),
    ],
)
def test_a_schedule_out_of_range_is_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(sentence)}$"):
        Schedule(**options)  # type: ignore[arg-type]
