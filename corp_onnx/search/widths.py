"""Choices + a budget -> the width of every unit: searched, or the same fraction everywhere.

Enters what every unit may become (`UnitChoice`), its kappa and an `Allowance` on the whole model; leaves widths by unit
key. The search itself knows no models (allocate.py); here costs become curves over aligned widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.errors import OptionError
from corp_onnx.search.best import BestSettings, UnitChoice
from corp_onnx.solve.allocate import UnitCurve, aligned_widths, allocate_widths, tie_curves

CostKind = Literal["macs", "params"]

LATE_WEIGHT = 0.5
"""Logarithm of what an error in the last block counts over one in the middle, and that over one in the first, where a
refit follows: every later unit's refit sees an earlier error and mends part of it, which a probe of the one-shot model
can not know. Chosen on held-back photographs (docs/method.md)."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a model may cost: `kept` of the `dense` model's MACs or parameters.

    `whole` is the cost with every unit at full width: that of the dense model, less what is left out besides widths.
    """

    kind: CostKind
    kept: float
    dense: float
    whole: float

    @property
    def limit(self) -> float:
        """The cost that must not be passed."""
        return self.kept * self.dense

    def slopes(self, choices: Sequence[UnitChoice]) -> dict[str, float]:
        """What one channel of each unit costs."""
        return {c.key: c.macs_per_width if self.kind == "macs" else c.params_per_width for c in choices}

    def fixed(self, choices: Sequence[UnitChoice]) -> float:
        """What no width changes."""
        slopes = self.slopes(choices)
        return self.whole - sum(slopes[c.key] * c.width for c in choices)


def allocate_choices(
    choices: Sequence[UnitChoice],
    kappas: dict[str, float],
    settings: BestSettings,
    allowance: Allowance,
) -> dict[str, int]:
    """The width of every unit under a budget on the whole model.

    Raises:
        OptionError: not even the smallest widths fit; says what can be reached.
    """
    slopes, fixed = allowance.slopes(choices), allowance.fixed(choices)
    curves: list[UnitCurve] = []
    for choice in choices:
        widths = aligned_widths(choice.width, settings.align, smallest=min(settings.align, choice.width))
        kappa = kappas.get(choice.key, 1.0)
        curves.append(UnitCurve(choice.key, widths, choice.error_curve[widths], slopes[choice.key] * widths, kappa))
    if settings.equal_heads:
        curves = _tie_heads(curves)
    smallest = (fixed + sum(float(c.cost.min()) for c in curves)) / allowance.dense
    if allowance.kept < smallest:
        name = "MACs" if allowance.kind == "macs" else "parameters"
        raise OptionError(
            f"--{allowance.kind} {allowance.kept:g} asks for less than pruning can reach on this model: "
            f"{smallest:.3f} of its {name} is the smallest. Ask for more, or lower --align."
        )
    return dict(allocate_widths(curves, allowance.limit - fixed).widths)


def find_depths(blocks: Blocks) -> dict[str, float]:
    """Of every unit, 0 in the first block and 1 in the last."""
    depths: dict[str, float] = {}
    for i, block in enumerate(blocks.blocks):
        depth = i / (len(blocks.blocks) - 1) if len(blocks.blocks) > 1 else 0.5
        attention, mlp = block.attention, block.mlp
        keys = ([attention.qk_key, attention.vo_key] if attention else []) + ([mlp.key] if mlp else [])
        depths |= dict.fromkeys(keys, depth)
    return depths


def favour_late(kappas: Mapping[str, float], depths: Mapping[str, float]) -> dict[str, float]:
    """Every kappa as it counts before a refit.

    Args:
        depths: from `find_depths`.
    """
    return {key: kappa * float(np.exp(LATE_WEIGHT * (2 * depths[key] - 1))) for key, kappa in kappas.items()}


def require_narrower(choices: Sequence[UnitChoice], align: int) -> None:
    """Refuse an alignment that leaves every unit its full width.

    Raises:
        OptionError: no unit is wider than `align`.
    """
    widest = max(choice.width for choice in choices)
    if widest <= align:
        raise OptionError(
            f"--align {align}: no unit is wider than that, so nothing can be cut; the widest has {widest}. "
            "Give a smaller --align."
        )


def _tie_heads(curves: Sequence[UnitCurve]) -> list[UnitCurve]:
    by_unit: dict[str, list[UnitCurve]] = {}
    for curve in curves:
        name = curve.key.rsplit(".", 1)[0] if curve.key.endswith((".qk", ".vo")) else curve.key
        by_unit.setdefault(name, []).append(curve)
    return [tie_curves(*group) if len(group) == 2 else group[0] for group in by_unit.values()]


def uniform_widths(choices: Sequence[UnitChoice], settings: BestSettings, allowance: Allowance) -> dict[str, int]:
    """The same fraction of every unit, the largest that fits the budget after alignment."""
    slopes, fixed = allowance.slopes(choices), allowance.fixed(choices)
    low, high = 0.0, 1.0
    best: dict[str, int] | None = None
    for _ in range(40):
        middle = (low + high) / 2
        widths = {c.key: _aligned(c.width, middle, settings.align) for c in choices}
        if fixed + sum(slopes[k] * w for k, w in widths.items()) <= allowance.limit:
            best, low = widths, middle
        else:
            high = middle
    if best is None:
        raise OptionError(
            f"--{allowance.kind} {allowance.kept:g} asks for less than uniform pruning can reach on this model."
        )
    return best


def _aligned(width: int, kept: float, align: int) -> int:
    return min(width, max(align, round(width * kept / align) * align))
