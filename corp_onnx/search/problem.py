"""What the search looks at, and what it answers: values between the stages (prune.py) and the strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.images import Images
from corp_onnx.metrics import OutputTask
from corp_onnx.moments import Moments
from corp_onnx.progress import Count, Run
from corp_onnx.rewrite import Rewrite, plan_rewrite
from corp_onnx.settings import CONFIDENCE, Method
from corp_onnx.shelf import Shelf
from corp_onnx.tokens.sites import MergePlan, MergeSites, MergeStep, TokenMetric
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


@dataclass(frozen=True, slots=True, eq=False)
class Spending:
    """What units cost at full width.

    Attributes:
        cost: of the whole model, without the tokens that will not be computed or have merged.
    """

    graph: Graph
    blocks: Blocks
    units: tuple[Unit, ...]
    trim: TrimPlan | None
    cost: Cost

    @property
    def macs(self) -> dict[UnitKey, int]:
        """Of every unit in that model."""
        at = self.trim or self
        units = list_units(at.blocks, {unit.kind for unit in self.units}, skipped=True)
        return {unit.key: unit.describe(at.graph, self.cost).macs for unit in units}

    @property
    def parameters(self) -> dict[UnitKey, int]:
        """Of every unit, less what no width changes."""
        spent = {unit: unit.describe(self.graph, self.cost).n_parameters for unit in self.units}
        return {unit.key: n - unit.n_fixed_parameters for unit, n in spent.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Everything that a strategy may look at.

    Attributes:
        units: those that may become narrower.
        moments: of each, by its key as text.
        run: where its stages tell how far they are.
        importances: of every MLP's channels, by the same; for the rank `taylor` only.
        trim: the tokens that the pruned model will not compute.
        sites: where tokens can merge; nowhere, where they are not to.
        metrics: how they are compared, by block.
        calibration: the images of the moments and of the probes.
        judging: held back from both; a promise is searched for on them.
        merge: the tokens that merge, where that is decided; widths are searched for the rest of a budget.
        tasks: of the outputs that are judged; None looks.
        is_crossed: whether the calibration images choose the size as well, in folds (folds.py).
        confidence: of the interval whose lower end a promise is about.
        shelf: where images and streams lie that several stages need.
    """

    graph: Graph
    blocks: Blocks
    units: tuple[Unit, ...]
    method: Method
    moments: Moments
    calibration: Images
    judging: Images
    batch_size: int = 8
    provider: str = "cpu"
    seed: int = 0
    run: Run = field(default_factory=Run)
    importances: Mapping[str, np.ndarray] = field(default_factory=dict)
    trim: TrimPlan | None = None
    sites: MergeSites = field(default_factory=MergeSites)
    metrics: Mapping[int, TokenMetric] = field(default_factory=dict)
    merge: MergePlan | None = None
    tasks: tuple[OutputTask, ...] | None = None
    is_crossed: bool = False
    confidence: float = CONFIDENCE
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def cost(self) -> Cost:
        """Of the model with every unit at full width, without the tokens that will not be computed."""
        if self.merge is not None:
            return self.merge.cost
        return self.graph.cost if self.trim is None else self.trim.cost

    @property
    def spending(self) -> Spending:
        """What units cost in that model."""
        return Spending(self.graph, self.blocks, self.units, self.trim, self.cost)

    def trace(self) -> tuple[Choice, ...]:
        """Every width of every unit; the OBS order costs n^3 for an MLP, the rest is small."""
        evidence = Evidence(self.graph, self.moments, self.importances)
        with self.run.enter("trace", len(self.units), "units") as count:
            return tuple(_counted(unit.trace(evidence, self.method), count) for unit in self.units)

    def rewrite(self, changes: Changes, merges: Sequence[MergeStep] = ()) -> Rewrite:
        """The passes from the dense model to one with these changes, without what is exact anyway."""
        return plan_rewrite(changes, merges=merges)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What changes, the one-shot plans behind it, and what the search says of itself.

    Attributes:
        merges: the tokens that merge.
        expected_loss: on the images that judge; of a refitted solution that of the one which the refit started from.
    """

    changes: Changes
    plans: tuple[UnitPlan, ...]
    kept_fraction: float | None = None
    notes: tuple[str, ...] = ()
    merges: tuple[MergeStep, ...] = ()
    expected_loss: float | None = None


def solve_widths(choices: tuple[Choice, ...], widths: Mapping[UnitKey, int]) -> tuple[UnitPlan, ...]:
    """The solution of every unit that does not stay whole; those of one site see each other in turn."""
    plans: list[UnitPlan] = []
    for choice in choices:
        site = choice.unit.site.key
        before: Change | None = gather_changes(plan for plan in plans if plan.unit.site.key == site).get(site)
        if widths[choice.key] < choice.width and not (before is not None and before.removes):
            plans.append(choice.solve(widths[choice.key], before))
    return tuple(plans)


def _counted(choice: Choice, count: Count) -> Choice:
    count(1)
    return choice
