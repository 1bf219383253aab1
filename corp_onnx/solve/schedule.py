"""How many tokens merge in which block: loss curves and costs by block in, the best `Schedule`s out.

    minimise  sum_b  D_b(n_b) - D_b(n_b-1)    so that    sum_b C_b(n_b) + C_merge * (blocks that merge) <= budget

over falling numbers of tokens n_0 >= n_1 >= ... behind the blocks. D_b(n) is the loss of a model that merges in block b
alone, down to n tokens; a block that comes behind others pays only for what it takes away beyond what is gone already,
since the cheapest pairs are the same ones everywhere. For a price on cost the best numbers follow exactly by dynamic
programming over (block, tokens); a sweep of prices gives the schedules worth having.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

N_PRICES = 200
"""Of the sweep, over eight powers of ten; between two of them the numbers of tokens hardly differ."""

SHARES = (0.8, 0.9, 1.1, 1.2, 1.3)
"""Of the numbers of a schedule, tried besides."""

MAX_STATES = 256
"""Numbers of tokens that are told apart: a longer sequence goes in steps of several."""

FLOOR = 1e-7
"""Of a loss: below is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class StageCurve:
    """One block: what its tokens cost and what merging in it loses.

    Attributes:
        cost: of everything between this block's merge and the next at 0..n_tokens tokens.
        loss: of merging here alone down to 0..n_tokens tokens; None where tokens can not merge here.
    """

    cost: Float[np.ndarray, " m"]
    loss: Float[np.ndarray, " m"] | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Tokens merged by block, the cost of what scales with tokens, and the loss that the curves promise."""

    n_merged: tuple[int, ...]
    cost: float
    loss: float


def smooth_losses(losses: Float[np.ndarray, "stages probes"]) -> Float[np.ndarray, "stages probes"]:
    """Probes of neighbouring blocks, averaged as logarithms with weights 1, 2, 1; at the ends the trend goes on.

    A loss on a few dozen images is noise by a third and more, and a schedule seeks out what came out too low.
    Neighbours see nearly the same tokens.
    """
    logs = np.log(np.maximum(losses, FLOOR))
    if len(logs) < 3:
        return np.exp(logs)
    before, behind = (
        np.vstack([2 * logs[:1] - logs[1:2], logs[:-1]]),
        np.vstack([logs[1:], 2 * logs[-1:] - logs[-2:-1]]),
    )
    return np.exp((before + 2 * logs + behind) / 4)


def trace_loss(n_tokens: int, n_merged: Sequence[int], losses: Sequence[float]) -> Float[np.ndarray, " m"]:
    """A loss curve over tokens that stay from a few probes: a power law between them, and the outer ones' beyond.

    Args:
        n_merged: of every probe, ascending.
        losses: of every probe; noise that makes one fall is flattened, and no curve rises slower than in proportion.
    """
    known = np.maximum.accumulate(np.maximum(np.asarray(losses, dtype=np.float64), FLOOR))
    x, y = np.log(np.asarray(n_merged, dtype=np.float64)), np.log(known)
    merged = n_tokens - np.arange(n_tokens + 1, dtype=np.float64)
    at = np.log(np.maximum(merged, 1.0))
    curve = np.interp(at, x, y)
    if len(x) > 1:
        first, last = (max(float((y[i + 1] - y[i]) / (x[i + 1] - x[i])), 1.0) for i in (0, len(x) - 2))
    else:
        first = last = 2.0
    curve = np.where(at < x[0], y[0] + first * (at - x[0]), curve)
    curve = np.where(at > x[-1], y[-1] + last * (at - x[-1]), curve)
    return np.where(merged > 0, np.exp(curve), 0.0)


def list_schedules(
    stages: Sequence[StageCurve], n_tokens: int, n_special: int, merge_cost: float = 0.0
) -> tuple[Schedule, ...]:
    """Schedules of rising loss and falling cost, the first of which merges nothing.

    Args:
        merge_cost: what a merge itself costs, wherever it is.
    """
    spread = max(float(stage.loss[n_special]) for stage in stages if stage.loss is not None) or 1.0
    whole = sum(float(stage.cost[n_tokens]) for stage in stages)
    prices = np.geomspace(1e-6, 1e2, N_PRICES) * spread / max(whole, 1.0)
    steps = _trace_steps(stages, n_tokens, n_special)
    numbers = {_cheapest(stages, steps, float(price), merge_cost) for price in prices}
    nothing = Schedule((0,) * len(stages), whole, 0.0)
    hull = _keep_undominated([nothing, *(measure_schedule(stages, n_tokens, merged, merge_cost) for merged in numbers)])
    between = [_scale(stages, n_tokens, n_special, merge_cost, s, share) for s in hull for share in SHARES]
    return _keep_undominated([*hull, *between])


def _keep_undominated(schedules: Sequence[Schedule]) -> tuple[Schedule, ...]:
    """Those that no other beats in loss and cost, by rising loss."""
    kept: list[Schedule] = []
    for schedule in sorted(schedules, key=lambda s: (s.loss, s.cost)):
        if not kept or schedule.cost < kept[-1].cost:
            kept.append(schedule)
    return tuple(kept)


def _scale(
    stages: Sequence[StageCurve], n_tokens: int, n_special: int, merge_cost: float, schedule: Schedule, share: float
) -> Schedule:
    """The same merges with other numbers of tokens: prices leave gaps where the best schedule changes its blocks."""
    left, merged = n_tokens, list[int]()
    for r in schedule.n_merged:
        merged.append(min(round(r * share), most_merged(left, n_special)))
        left -= merged[-1]
    return measure_schedule(stages, n_tokens, merged, merge_cost)


def constant_schedules(stages: Sequence[StageCurve], n_tokens: int, n_special: int) -> tuple[Schedule, ...]:
    """ToMe's: the same number in every block that can merge, as far as its tokens reach."""
    found: list[Schedule] = []
    for r in range(n_tokens):
        left, merged = n_tokens, list[int]()
        for stage in stages:
            merged.append(0 if stage.loss is None else min(r, most_merged(left, n_special)))
            left -= merged[-1]
        if found and tuple(merged) == found[-1].n_merged:
            break
        found.append(measure_schedule(stages, n_tokens, merged))
    return tuple(found)


def most_merged(n_tokens: int, n_special: int) -> int:
    """Tokens that one step can merge: every second one that is not special, but one."""
    return max(0, (n_tokens - n_special + 1) // 2 - 1)


def measure_schedule(
    stages: Sequence[StageCurve], n_tokens: int, n_merged: Sequence[int], merge_cost: float = 0.0
) -> Schedule:
    """Cost and promised loss of given numbers."""
    left, cost, loss = n_tokens, 0.0, 0.0
    for stage, r in zip(stages, n_merged, strict=True):
        if r and stage.loss is not None:
            loss, cost = loss + float(stage.loss[left - r] - stage.loss[left]), cost + merge_cost
        left -= r
        cost += float(stage.cost[left])
    return Schedule(tuple(int(r) for r in n_merged), cost, loss)


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """From every number of tokens to every other, the loss that a merge adds; infinite where it can not go there.

    Attributes:
        states: the numbers of tokens that are told apart, ascending.
        losses: of every stage [to, from]; None where nothing merges.
    """

    states: Int[np.ndarray, " states"]
    losses: tuple[Float[np.ndarray, "states states"] | None, ...]


def _trace_steps(stages: Sequence[StageCurve], n_tokens: int, n_special: int) -> _Steps:
    states = _states(n_tokens, n_special)
    gone = states[None, :] - states[:, None]
    most = np.array([most_merged(int(n), n_special) for n in states])[None, :]
    can_go = (gone > 0) & (gone <= most)

    def trace(loss: Float[np.ndarray, " m"]) -> Float[np.ndarray, "states states"]:
        return np.where(can_go, np.maximum(loss[states][:, None] - loss[states][None, :], 0.0), np.inf)

    return _Steps(states, tuple(None if stage.loss is None else trace(stage.loss) for stage in stages))


def _cheapest(stages: Sequence[StageCurve], steps: _Steps, price: float, merge_cost: float) -> tuple[int, ...]:
    """The numbers merged of least loss + price * cost."""
    states = steps.states
    best = np.where(states == states[-1], 0.0, np.inf)  # by tokens that are left; all of them at first
    stayed = np.arange(len(states))
    came: list[Int[np.ndarray, " states"]] = []
    for stage, losses in zip(stages, steps.losses, strict=True):
        back = stayed
        if losses is not None:
            merged_from = (losses + best).argmin(axis=1)
            loss = losses[stayed, merged_from] + best[merged_from] + price * merge_cost
            back, best = np.where(loss < best, merged_from, stayed), np.minimum(loss, best)
        came.append(back)
        best = best + price * stage.cost[states]
    at = int(best.argmin())
    merged: list[int] = []
    for back in reversed(came):
        merged.append(int(states[back[at]] - states[at]))
        at = int(back[at])
    return tuple(merged[::-1])


def _states(n_tokens: int, n_special: int) -> Int[np.ndarray, " states"]:
    step = -(-n_tokens // MAX_STATES)
    return np.array(range(n_tokens, n_special, -step), dtype=np.int64)[::-1]
