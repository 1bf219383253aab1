"""Choices + a budget -> the width of every unit: searched, or the same fraction everywhere.

Enters what every unit may become (`Choice`), its sensitivity and an `Allowance` on the whole model; leaves widths by
unit. The search itself knows no models (solve/allocate.py); here costs become curves over allowed widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corp_onnx.blocks import Blocks, SiteKey
from corp_onnx.errors import OptionError
from corp_onnx.graph import count_parameters
from corp_onnx.graph.cost import count_macs
from corp_onnx.search.problem import Problem
from corp_onnx.solve.allocate import UnitCurve, allocate_widths, tie_curves
from corp_onnx.units import Choice, UnitKey

CostKind = Literal["macs", "params"]

LATE_WEIGHT = 0.5
"""Logarithm of what an error in the last block counts over one in the middle, and that over one in the first, where a
refit follows: every later unit's refit sees an earlier error and mends part of it, which a probe of the one-shot model
can not know. Chosen on held-back photographs (docs/method.md)."""


@dataclass(frozen=True, slots=True, eq=False)
class Allowance:
    """What a model may cost: `kept` of the `dense` model's MACs or parameters.

    Attributes:
        slopes: what one channel of each unit costs.
        fixed: what no width changes.
    """

    kind: CostKind
    kept: float
    dense: float
    slopes: Mapping[UnitKey, float]
    fixed: float

    @property
    def limit(self) -> float:
        """The cost that must not be passed."""
        return self.kept * self.dense


def allow_cost(problem: Problem, choices: Sequence[Choice], kind: CostKind, kept: float) -> Allowance:
    """The allowance of a budget: what is left out besides widths is paid for already."""
    dense, whole, spent = count_macs(problem.graph).total, problem.cost.total, problem.macs
    if kind == "params":
        dense = whole = count_parameters(problem.graph)
        spent = problem.parameters
    slopes = {choice.key: spent[choice.key] / choice.width for choice in choices}
    return Allowance(kind, kept, dense, slopes, whole - sum(slopes[c.key] * c.width for c in choices))


def allocate_choices(
    choices: Sequence[Choice], sensitivities: Mapping[UnitKey, float], allowance: Allowance
) -> dict[UnitKey, int]:
    """The width of every unit under a budget on the whole model.

    Raises:
        OptionError: not even the smallest widths fit; says what can be reached.
    """
    curves: list[UnitCurve] = []
    for choice in choices:
        widths = choice.widths()
        loss = sensitivities.get(choice.key, 1.0)
        cost = allowance.slopes[choice.key] * widths
        curves.append(UnitCurve(choice.key, widths, choice.error_curve[widths], cost, loss))
    if choices[0].method.equal_heads:
        curves = _tie_heads(choices, curves)
    smallest = (allowance.fixed + sum(float(c.cost.min()) for c in curves)) / allowance.dense
    if allowance.kept < smallest:
        name = "MACs" if allowance.kind == "macs" else "parameters"
        raise OptionError(
            f"--{allowance.kind} {allowance.kept:g} asks for less than pruning can reach on this model: "
            f"{smallest:.3f} of its {name} is the smallest. Ask for more, or lower --align."
        )
    return dict(allocate_widths(curves, allowance.limit - allowance.fixed).widths)


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


def _tie_heads(choices: Sequence[Choice], curves: Sequence[UnitCurve]) -> list[UnitCurve]:
    """The widths of heads of one site as one."""
    groups: dict[object, list[UnitCurve]] = {}
    for choice, curve in zip(choices, curves, strict=True):
        groups.setdefault(choice.key if choice.unit.n_heads is None else choice.key.site, []).append(curve)
    return [tie_curves(*group) if len(group) == 2 else group[0] for group in groups.values()]


def uniform_widths(choices: Sequence[Choice], allowance: Allowance) -> dict[UnitKey, int]:
    """The same fraction of every unit, the largest that fits the budget after alignment."""
    low, high = 0.0, 1.0
    best: dict[UnitKey, int] | None = None
    for _ in range(40):
        middle = (low + high) / 2
        widths = {c.key: _aligned(c, middle) for c in choices}
        if allowance.fixed + sum(allowance.slopes[k] * w for k, w in widths.items()) <= allowance.limit:
            best, low = widths, middle
        else:
            high = middle
    if best is None:
        raise OptionError(
            f"--{allowance.kind} {allowance.kept:g} asks for less than uniform pruning can reach on this model."
        )
    return best


def _aligned(choice: Choice, kept: float) -> int:
    step = choice.unit.step(choice.method)
    return min(choice.width, max(step, round(choice.width * kept / step) * step))
