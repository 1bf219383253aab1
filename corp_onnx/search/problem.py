"""What the search looks at, and what it answers: values between the stages (prune.py) and the strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.images import Images
from corp_onnx.moments import Moments
from corp_onnx.rewrite import Rewrite, plan_rewrite
from corp_onnx.settings import Method
from corp_onnx.tokens.trim import TrimPlan
from corp_onnx.units import (
    Change,
    Changes,
    Choice,
    Evidence,
    Unit,
    UnitKey,
    UnitPlan,
    gather_changes,
    list_units,
)

Progress = Callable[[str, int, int], None]
"""(stage, done, in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Everything that a strategy may look at.

    Attributes:
        units: those that may become narrower.
        moments: of each, by its key as text.
        importances: of every MLP's channels, by the same; for the rank `taylor` only.
        trim: the tokens that the pruned model will not compute.
    """

    graph: Graph
    blocks: Blocks
    units: tuple[Unit, ...]
    method: Method
    moments: Moments
    calibration: Images
    held_out: Images
    batch_size: int = 8
    provider: str = "cpu"
    seed: int = 0
    progress: Progress | None = None
    importances: Mapping[str, np.ndarray] = field(default_factory=dict)
    trim: TrimPlan | None = None

    @property
    def cost(self) -> Cost:
        """Of the model with every unit at full width, without the tokens that will not be computed."""
        return self.graph.cost if self.trim is None else self.trim.cost

    @property
    def macs(self) -> dict[UnitKey, int]:
        """Of every unit at full width, in that model."""
        at = self.trim or self
        units = list_units(at.blocks, {unit.kind for unit in self.units}, skipped=True)
        return {unit.key: unit.describe(at.graph, self.cost).macs for unit in units}

    @property
    def parameters(self) -> dict[UnitKey, int]:
        """Of every unit at full width, less what no width changes."""
        spent = {unit: unit.describe(self.graph, self.cost).n_parameters for unit in self.units}
        return {unit.key: n - unit.n_fixed_parameters for unit, n in spent.items()}

    def trace(self) -> tuple[Choice, ...]:
        """Every width of every unit; the OBS order costs n^3 for an MLP, the rest is small."""
        evidence = Evidence(self.graph, self.moments, self.importances)
        return tuple(unit.trace(evidence, self.method) for unit in self.units)

    def rewrite(self, changes: Changes) -> Rewrite:
        """The passes from the dense model to one with these changes, without what is exact anyway."""
        return plan_rewrite(changes)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What changes, the one-shot plans behind it, and what the search says of itself."""

    changes: Changes
    plans: tuple[UnitPlan, ...]
    kept_fraction: float | None = None
    notes: tuple[str, ...] = ()


def solve_widths(choices: tuple[Choice, ...], widths: Mapping[UnitKey, int]) -> tuple[UnitPlan, ...]:
    """The solution of every unit that does not stay whole; those of one site see each other in turn."""
    plans: list[UnitPlan] = []
    for choice in choices:
        before: Change | None = gather_changes(plans).get(choice.unit.site.key)
        if widths[choice.key] < choice.width and not (before is not None and before.removes):
            plans.append(choice.solve(widths[choice.key], before))
    return tuple(plans)
