"""Things that run -> seconds, all taken in turns, so that their ratios hold where the machine itself is not steady.

Enter functions without arguments; leaves an array [rounds, functions] of seconds. In every round each function runs
once. A neighbour on the machine, a clock that warms up or a cache that fills then meets all of them alike, and the
ratio of two functions is taken *within* a round:

    speed-up of j over i = median over rounds of t_i / t_j

which is not the ratio of two medians: a slow round is slow for both and cancels. The order of a round is drawn at
random and then rotated, so that everyone has every place, and every neighbour's leftovers, equally often.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from corp_onnx.errors import OptionError
from corp_onnx.options import fill_settings

SESSION_CONFIG = {"session.force_spinning_stop": "1"}
"""ONNX Runtime's threads go on spinning for a while after a run; those of one model would slow the next one's turn."""

MIN_ROUNDS = 10
"""However slow a round is: quartiles of fewer say nothing."""

MAX_ROUNDS = 10_000
"""However fast a round is."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to measure.

    Args:
        repeats: rounds; None takes as many as fit into `seconds`.
        seconds: budget of one comparison where `repeats` is None; at least `MIN_ROUNDS` rounds are taken.
        warmup: rounds before the first that counts.
        seed: of the order of turns.
    """

    repeats: int | None = None
    seconds: float = 10.0
    warmup: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats is not None and self.repeats < 1:
            raise OptionError(f"--repeats must be at least 1; found {self.repeats}.")
        if not 0 < self.seconds < float("inf"):
            raise OptionError(f"--seconds must be a positive number; found {self.seconds:g}.")
        if self.warmup < 1:
            raise OptionError(f"--warmup must be at least 1, since first runs allocate memory; found {self.warmup}.")


def choose_schedule(schedule: Schedule | None = None, **options: Any) -> Schedule:
    """How long to measure, as one value or by the names of its fields; None is 'not given'.

    Raises:
        OptionError: a name that is not known, a value out of range, or rounds and seconds together.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if {"repeats", "seconds"} <= set(given):
        raise OptionError("--repeats and --seconds both say how long to measure; give one of them.")
    return fill_settings(Schedule, schedule, given)


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one call: percentiles over the rounds (linear interpolation); q1 to q3 holds the middle half."""

    p50: float
    p90: float
    p99: float
    q1: float
    q3: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio taken within each round: its median, and the quartiles between which the middle half of rounds lies."""

    median: float
    q1: float
    q3: float


def time_turns(
    runs: Sequence[Callable[[], object]],
    schedule: Schedule,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> Float64[np.ndarray, "rounds runs"]:
    """Seconds of every function in every round.

    Args:
        clock: monotonic seconds.
        progress: called with (rounds done, rounds in all) after each round that counts.
    """
    orders = turn_orders(len(runs), schedule.seed)
    warmup = [float(_time_round(runs, next(orders), clock).sum()) for _ in range(schedule.warmup)]
    # the last warm-up round tells what a round costs: the first ones are slower
    n_rounds = schedule.repeats or _count_rounds(schedule.seconds - sum(warmup[:-1]), warmup[-1])
    seconds = np.empty((n_rounds, len(runs)))
    for i in range(n_rounds):
        seconds[i] = _time_round(runs, next(orders), clock)
        if progress is not None:
            progress(i + 1, n_rounds)
    return seconds


def _count_rounds(budget: float, round_seconds: float) -> int:
    """Rounds that fit into what the warm-up left of a budget."""
    fitting = budget / round_seconds if round_seconds > 0 else MAX_ROUNDS
    return int(min(max(fitting, MIN_ROUNDS), MAX_ROUNDS))


def _time_round(
    runs: Sequence[Callable[[], object]], order: Sequence[int], clock: Callable[[], float]
) -> Float64[np.ndarray, " runs"]:
    seconds = np.empty(len(runs))
    for i in order:
        start = clock()
        runs[i]()
        seconds[i] = clock() - start
    return seconds


def turn_orders(n: int, seed: int) -> Iterator[list[int]]:
    """Orders of n turns without end: a random one, then its n - 1 rotations, then another random one."""
    rng = np.random.default_rng(seed)
    while True:
        drawn = rng.permutation(n).tolist()
        for shift in range(n):
            yield drawn[shift:] + drawn[:shift]


def summarise(seconds: Float[np.ndarray, " rounds"]) -> Latency:
    """Percentiles of the latency of one function."""
    p50, p90, p99, q1, q3 = (float(p) for p in np.percentile(seconds, (50, 90, 99, 25, 75)))
    return Latency(p50, p90, p99, q1, q3)


def paired_ratio(baseline: Float[np.ndarray, " rounds"], seconds: Float[np.ndarray, " rounds"]) -> Ratio:
    """How many times faster than `baseline`, round by round: above one is faster."""
    q1, median, q3 = (float(p) for p in np.percentile(baseline / seconds, (25, 50, 75)))
    return Ratio(median, q1, q3)
