"""Widths for every unit under one budget: error curves and a budget in, an `Allocation` out.

    minimise  sum_u s_u err_u(w_u)    so that    sum_u cost_u(w_u) <= budget,    w_u among the widths allowed for u

The search relaxes the budget: for a price lambda on cost every unit picks the width of least loss + lambda * cost on
its own; bisection finds the lowest price that the budget allows, and what budget is left over buys single steps, best
value first. Relaxed, the problem also bounds the loss from below, so an `Allocation` knows how far from the best it can
be. Costs may be MACs, parameters or milliseconds; they are additive over units, as are the losses.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.errors import OptionError

N_BISECTIONS = 100
"""Halvings of the price; 100 pass any float64 interval, and stop earlier once the price no longer moves."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitCurve:
    """What each allowed width of one unit costs and loses.

    `width` ascends; `error[i]` and `cost[i]` belong to `width[i]`; `sensitivity` (s) turns the error into loss: a
    probe's KL over its error, 1 if the errors are losses already. `tied_keys` are further units of the same width.
    """

    key: Hashable
    width: Int[np.ndarray, "m"]
    error: Float[np.ndarray, "m"]
    cost: Float[np.ndarray, "m"]
    sensitivity: int | float = 1.0
    tied_keys: tuple[Hashable, ...] = ()

    def __post_init__(self) -> None:
        if not (0 < self.width.size == self.error.size == self.cost.size) or np.any(np.diff(self.width) <= 0):
            raise ValueError(f"expected ascending widths with an error and a cost each for {self.key}")
        if not (np.isfinite(self.loss).all() and np.isfinite(self.cost).all() and self.sensitivity >= 0):
            raise ValueError(f"expected finite errors and costs and a sensitivity of zero or more for {self.key}")

    @property
    def loss(self) -> Float[np.ndarray, "m"]:
        """sensitivity * error."""
        return self.sensitivity * self.error


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """(unit key, width) for every unit, tied ones included; reads like a dict.

    `loss_bound` is what no allocation within the budget can fall below; `loss` - `loss_bound` is at most what one step
    of one unit is worth.
    """

    widths: tuple[tuple[Any, int], ...]
    cost: float
    loss: float
    loss_bound: float

    def __getitem__(self, key: Hashable) -> int:
        return dict(self.widths)[key]

    def __len__(self) -> int:
        return len(self.widths)


def aligned_widths(
    full_width: int, multiple: int, smallest: int = 1, largest: int | None = None
) -> Int[np.ndarray, "m"]:
    """The multiples of `multiple` from `smallest` to `largest`, and `full_width` itself, which costs no rewrite.

    Raises:
        OptionError: `multiple` is below one.
    """
    if multiple < 1:
        raise OptionError(f"expected widths aligned to 1 or more, found {multiple}")
    top = full_width if largest is None else min(largest, full_width)
    widths = np.arange(multiple, top + 1, multiple)
    widths = widths[widths >= smallest]
    return np.append(widths, full_width) if widths.size == 0 or widths[-1] != full_width else widths


def tie_curves(a: UnitCurve, b: UnitCurve) -> UnitCurve:
    """One curve for two units that must have the same width: losses and costs added over the widths both allow.

    Raises:
        OptionError: they allow no common width.
    """
    common, a_idx, b_idx = np.intersect1d(a.width, b.width, assume_unique=True, return_indices=True)
    if common.size == 0:
        raise OptionError(f"expected a width that {a.key} and {b.key} both allow, found none; relax the alignment")
    return UnitCurve(
        key=a.key,
        width=common,
        error=a.loss[a_idx] + b.loss[b_idx],
        cost=a.cost[a_idx] + b.cost[b_idx],
        tied_keys=(*a.tied_keys, b.key, *b.tied_keys),
    )


def allocate_widths(curves: Sequence[UnitCurve], budget: float) -> Allocation:
    """The widths of (nearly) least loss whose costs add up to at most `budget`; ties go to the wider.

    Exact where every loss is convex over cost and the budget falls on a step, otherwise within one step of one unit:
    see `Allocation.loss_bound`. About 100 * units * widths operations.

    Raises:
        OptionError: not even the cheapest widths fit; says what they cost.
    """
    smallest = float(sum(curve.cost.min() for curve in curves))
    # sums of the same costs in another order differ by rounding; that must not decide
    slack = 1e-12 * max(abs(budget), abs(smallest))
    if smallest > budget + slack:
        raise OptionError(f"expected a budget of at least {smallest:g}, the smallest reachable, found {budget:g}")
    table = _tabulate(curves)
    price, choice = _search_price(table, budget + slack)
    bound = float(table.relaxed(price).min(axis=1).sum()) - price * budget  # weak duality: no loss within it is below
    _spend_rest(table, choice, budget + slack)
    widths = [
        (key, int(curve.width[i]))
        for curve, i in zip(curves, choice, strict=True)
        for key in (curve.key, *curve.tied_keys)
    ]
    loss = sum(table.loss[table.units, choice].tolist())
    return Allocation(tuple(widths), table.total_cost(choice), loss, min(bound, loss))


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The curves of all units side by side: what is behind a shorter one's end costs nothing and loses everything."""

    loss: Float[np.ndarray, "units m"]
    cost: Float[np.ndarray, "units m"]
    units: Int[np.ndarray, " units"]

    def relaxed(self, price: float) -> Float[np.ndarray, "units m"]:
        """loss + price * cost."""
        return self.loss + price * self.cost

    def choose(self, price: float) -> Int[np.ndarray, " units"]:
        """Every unit's width of least loss + price * cost, the widest of equals."""
        return self.loss.shape[1] - 1 - self.relaxed(price)[:, ::-1].argmin(axis=1)

    def total_cost(self, choice: Int[np.ndarray, " units"]) -> float:
        """Of all units."""
        return sum(self.cost[self.units, choice].tolist())


def _tabulate(curves: Sequence[UnitCurve]) -> _Table:
    shape = len(curves), max(curve.width.size for curve in curves)
    loss, cost = np.full(shape, np.inf), np.zeros(shape)
    for unit, curve in enumerate(curves):
        loss[unit, : curve.width.size], cost[unit, : curve.width.size] = curve.loss, curve.cost
    return _Table(loss, cost, np.arange(len(curves)))


def _search_price(table: _Table, budget: float) -> tuple[float, Int[np.ndarray, " units"]]:
    """The lowest price found whose choice fits, and that choice."""
    choice = table.choose(0.0)
    if table.total_cost(choice) <= budget:
        return 0.0, choice
    low, high = 0.0, 1.0
    choice = table.choose(high)
    while table.total_cost(choice) > budget:
        low, high = high, high * 4.0
        if not np.isfinite(high):
            # every width dearer than the cheapest is out of reach, whatever it saves
            return low, np.where(np.isfinite(table.loss), table.cost, np.inf).argmin(axis=1)
        choice = table.choose(high)
    for _ in range(N_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        candidate = table.choose(middle)
        if table.total_cost(candidate) <= budget:
            high, choice = middle, candidate
        else:
            low = middle
    return high, choice


def _spend_rest(table: _Table, choice: Int[np.ndarray, " units"], budget: float) -> None:
    """Takes the change of one unit that saves most loss for its cost, in place, while one fits."""
    left = budget - table.total_cost(choice)
    while True:
        saved = table.loss[table.units, choice][:, None] - table.loss
        price = table.cost - table.cost[table.units, choice][:, None]
        value = np.where(price > 0, saved / np.where(price > 0, price, 1.0), np.inf)
        value = np.where((saved > 0) & (price <= left), value, 0.0)
        unit, width = np.unravel_index(value.argmax(), value.shape)
        if value[unit, width] <= 0:
            return
        left -= float(price[unit, width])
        choice[unit] = width
