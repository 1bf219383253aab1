"""Choices + a budget -> the width of every unit: searched, or the same fraction everywhere.

Enters what every unit may become (`Choice`), its sensitivity and an `Allowance` on the whole model; leaves widths by
unit. The search itself knows no models (solve/allocate.py); here costs become curves over allowed widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Blocks, SiteKey
from corp_onnx.errors import OptionError
from corp_onnx.search.spending import Spending
from corp_onnx.settings import CostKind
from corp_onnx.solve.allocate import UnitCurve, allocate_widths, tie_curves
from corp_onnx.units import Choice, UnitKey

LATE_WEIGHT = 0.5
"""Logarithm of what an error in the last block counts over one in the middle, and that over one in the first, where a
refit follows: every later unit's refit sees an earlier error and mends part of it, which a probe of the one-shot model
can not know. Chosen on held-back photographs (docs/method.md)."""


@dataclass(frozen=True, eq=False)
class Group:
    """Units whose costs can not be told apart: one alone, or those of a site that a unit shares (whole heads).

    Attributes:
        choices: of the units.
        prices: of each, what its widths 0..full cost; of the unit that shares the site, all that the site costs.
    """

    choices: tuple[Choice, ...]
    prices: tuple[Float[np.ndarray, " full+1"], ...]

    @property
    def full(self) -> tuple[int, ...]:
        """Every unit whole."""
        return tuple(choice.width for choice in self.choices)

    def cost(self, widths: Sequence[Any]) -> Any:
        """At some widths (numbers or arrays): the share of the site that stays, of what its units leave of it."""
        if len(self.choices) == 1:
            return self.prices[0][widths[0]]
        share, left = 1.0, 0.0
        for choice, price, width in zip(self.choices, self.prices, widths, strict=True):
            if choice.unit.shares_site:
                share, left = share * price[width] / price[-1], left + price[-1]
            else:
                left = left - (price[-1] - price[width])
        return share * left

    @cached_property
    def options(self) -> tuple[tuple[int, ...], ...]:
        """Every combination of allowed widths, by rising cost; with nothing of the site left, the rest stays whole.

        Raises:
            OptionError: heads are to be of one width, and no width is allowed for all.
        """
        found = [w for w in product(*(choice.widths().tolist() for choice in self.choices)) if self._allows(w)]
        if not found:
            names = " and ".join(str(choice.key) for choice in self.choices)
            raise OptionError(f"expected a width that {names} all allow, found none; relax the alignment")
        return tuple(sorted(found, key=lambda widths: (self.cost(widths), widths)))

    def _allows(self, widths: tuple[int, ...]) -> bool:
        pairs = list(zip(self.choices, widths, strict=True))
        if any(choice.unit.shares_site and width == 0 for choice, width in pairs):
            return all(choice.unit.shares_site or width == choice.width for choice, width in pairs)
        heads = {width for choice, width in pairs if choice.unit.n_heads is not None}
        return not self.choices[0].method.ties_heads or len(self.choices) == 1 or len(heads) <= 1


@dataclass(frozen=True, slots=True, eq=False)
class Allowance:
    """What a model may cost: `kept` of what the `dense` one does; `fixed` is what no width changes."""

    kind: CostKind
    kept: float
    dense: float
    groups: tuple[Group, ...]
    fixed: float

    @property
    def limit(self) -> float:
        """The cost that must not be passed."""
        return self.kept * self.dense

    def cost(self, widths: Mapping[UnitKey, int]) -> float:
        """Of the whole model at some widths."""
        return self.fixed + sum(group.cost([widths[c.key] for c in group.choices]) for group in self.groups)

    @property
    def smallest(self) -> float:
        """The smallest cost that the search can reach."""
        return self.fixed + sum(group.cost(group.options[0]) for group in self.groups)

    def refuse(self, smallest: float, how: str = "pruning") -> OptionError:
        """That no search can meet it.

        Args:
            smallest: the smallest share of the dense model's cost that can be reached.
            how: by what.
        """
        advice = "lower --align, or name more --units."
        if self.kind == "time":
            return OptionError(
                f"{1 / self.kept:.3g} times as fast is more than {how} can reach on this model here: about "
                f"{1 / smallest:.3g} times is the most. Ask for less, {advice}"
            )
        name = "MACs" if self.kind == "macs" else "parameters"
        return OptionError(
            f"--{self.kind} {self.kept:g} asks for less than {how} can reach on this model: {smallest:.3f} of its "
            f"{name} is the smallest. Ask for more, {advice}"
        )


def allow_cost(spending: Spending, choices: Sequence[Choice], kind: CostKind, kept: float) -> Allowance:
    """The allowance of a budget: what is left out besides widths is paid for already."""
    prices = spending.price(kind)
    shared = {choice.key.site for choice in choices if choice.unit.shares_site}
    members: dict[object, list[Choice]] = {}
    for choice in choices:
        members.setdefault(choice.key.site if choice.key.site in shared else choice.key, []).append(choice)
    groups = tuple(Group(tuple(group), tuple(prices.units[c.key] for c in group)) for group in members.values())
    fixed = prices.whole - sum(group.cost(group.full) for group in groups)
    return Allowance(kind, kept, prices.dense, groups, fixed)


def trace_groups(sensitivities: Mapping[UnitKey, float], groups: Sequence[Group]) -> list[UnitCurve]:
    """Loss over cost of everything that has a width of its own, whatever a budget of the kind of these prices asks."""
    curves = [_trace_group(group, sensitivities) for group in groups]
    return _tie_heads(groups, curves) if groups[0].choices[0].method.ties_heads else curves


def allocate_choices(curves: Sequence[UnitCurve], allowance: Allowance) -> dict[UnitKey, int]:
    """The width of every unit under a budget on the whole model.

    Args:
        curves: of the groups of the allowance, from `trace_groups`.

    Raises:
        OptionError: not even the smallest widths fit; says what can be reached.
    """
    groups = {group.choices[0].key: group for group in allowance.groups}
    smallest = (allowance.fixed + sum(float(c.cost.min()) for c in curves)) / allowance.dense
    if allowance.kept < smallest:
        raise allowance.refuse(smallest)
    widths: dict[UnitKey, int] = {}
    for key, found in allocate_widths(curves, allowance.limit - allowance.fixed).widths:
        choices = groups[key].choices
        several = groups[key].options[found] if len(choices) > 1 else (found,)
        widths |= {choice.key: width for choice, width in zip(choices, several, strict=True)}
    return widths


def _trace_group(group: Group, sensitivities: Mapping[UnitKey, float]) -> UnitCurve:
    """Loss over cost; of several units, the position among their options stands for a width."""
    first, *others = group.choices
    if not others:
        widths = first.widths()
        sensitivity = sensitivities.get(first.key, 1.0)
        return UnitCurve(first.key, widths, first.error_curve[widths], group.cost([widths]), sensitivity)
    options = np.array(group.options)  # [m, units]
    losses = [
        sensitivities.get(choice.key, 1.0) * choice.error_curve[widths]
        for choice, widths in zip(group.choices, options.T, strict=True)
    ]
    return UnitCurve(first.key, np.arange(len(options)), np.sum(losses, axis=0), group.cost(list(options.T)))


def find_depths(blocks: Blocks) -> dict[SiteKey, float]:
    """Of every site, 0 in the first block and 1 in the last."""
    last = len(blocks.blocks) - 1
    return {site.key: block.idx / last if last else 0.5 for block in blocks.blocks for site in block.sites}


def favour_late(sensitivities: Mapping[UnitKey, float], depths: Mapping[SiteKey, float]) -> dict[UnitKey, float]:
    """Every sensitivity as it counts before a refit.

    Args:
        depths: from `find_depths`.
    """
    return {
        key: sensitivity * float(np.exp(LATE_WEIGHT * (2 * depths[key.site] - 1)))
        for key, sensitivity in sensitivities.items()
    }


def require_narrower(choices: Sequence[Choice]) -> None:
    """Refuse an alignment that leaves every unit its full width.

    Raises:
        OptionError: no unit is wider than its step.
    """
    if all(len(choice.widths()) == 1 for choice in choices):
        raise OptionError(
            f"--align {choices[0].method.align}: no unit is wider than that, so nothing can be cut; the widest has "
            f"{max(choice.width for choice in choices)}. Give a smaller --align."
        )


def _tie_heads(groups: Sequence[Group], curves: Sequence[UnitCurve]) -> list[UnitCurve]:
    """The widths of heads of one site as one."""
    tied: dict[object, list[UnitCurve]] = {}
    for group, curve in zip(groups, curves, strict=True):
        choice = group.choices[0]
        tied.setdefault(choice.key if choice.unit.n_heads is None else choice.key.site, []).append(curve)
    return [reduce(tie_curves, several) for several in tied.values()]


def narrowest_widths(choices: Sequence[Choice]) -> dict[UnitKey, int]:
    """Every unit at one step, which is the least that the same fraction everywhere leaves."""
    return {choice.key: _aligned(choice, 0.0) for choice in choices}


def uniform_widths(choices: Sequence[Choice], allowance: Allowance) -> dict[UnitKey, int]:
    """The same fraction of every unit, the largest that fits the budget after alignment."""
    low, high = 0.0, 1.0
    best: dict[UnitKey, int] | None = None
    for _ in range(40):
        middle = (low + high) / 2
        widths = {c.key: _aligned(c, middle) for c in choices}
        if allowance.cost(widths) <= allowance.limit:
            best, low = widths, middle
        else:
            high = middle
    if best is None:
        raise allowance.refuse(allowance.cost(narrowest_widths(choices)) / allowance.dense, "uniform pruning")
    return best


def _aligned(choice: Choice, kept: float) -> int:
    step = choice.unit.step(choice.method)
    return min(choice.width, max(step, round(choice.width * kept / step) * step))
