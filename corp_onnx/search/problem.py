"""What the search looks at, and what it answers: values between the stages (prune.py) and the strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any, TypeAlias, TypeVar

import numpy as np

from corp_onnx.blocks import Blocks, SiteKey
from corp_onnx.findings import Findings
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.images import Images
from corp_onnx.latency.clock import Clock
from corp_onnx.metrics import OutputTask
from corp_onnx.moments import Moments
from corp_onnx.progress import Count, Run
from corp_onnx.results import TriedSize
from corp_onnx.rewrite import Rewrite, plan_rewrite
from corp_onnx.search.spending import Spending
from corp_onnx.settings import CONFIDENCE, Method
from corp_onnx.shelf import Shelf
from corp_onnx.threads import Crew, choose_size
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
    fold_scales,
    gather_changes,
)  # fmt: skip

T = TypeVar("T")

TRACED = 4 * 8
"""Bytes that an order of n channels takes, beside n^2."""

TRACE_BYTES = 640 << 20
"""What orders that are made side by side may take together: two of 3072 channels, one of more."""


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
        shelf: where images, streams and solutions lie that several stages need.
        room: bytes that running sums of folds may take; None is no limit.
        clock: how long widths take, under a budget of time.
        findings: what is known of the model on these images, and is not to be found out again.
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
    room: int | None = None
    clock: Clock | None = None
    findings: Findings = field(default_factory=Findings)

    @property
    def cost(self) -> Cost:
        """Of the model with every unit at full width, without the tokens that will not be computed."""
        if self.merge is not None:
            return self.merge.cost
        return self.graph.cost if self.trim is None else self.trim.cost

    @property
    def spending(self) -> Spending:
        """What widths cost in that model."""
        n_merges = len(self.merge.steps) if self.merge else 0
        times = self.clock.times if self.clock else None
        return Spending(self.graph, self.blocks, self.units, self.trim, self.cost, times, n_merges)

    @property
    def probe_key(self) -> dict[str, Any]:
        """What the answers to probes depend on besides the images: they are the same under every budget."""
        of_refit = ("widths", "refit", "weigh_tokens", "favour_late")
        method = {name: value for name, value in asdict(self.method).items() if name not in of_refit}
        units = [str(unit.key) for unit in self.units]
        return {"method": method, "units": units, "seed": self.seed, "tasks": repr(self.tasks)}

    @property
    def refits_again(self) -> bool:
        """Whether another refit on the same images may follow. Folds, which have images of their own, keep nothing."""
        return (self.method.promises or self.findings.is_shared) and not self.is_crossed

    def trace(self) -> tuple[Choice, ...]:
        """Every width of every unit, side by side; the OBS order costs 2 n^3 flops for an MLP, the rest is small."""
        return self.findings.hold("choices", self.probe_key, self._trace)

    def _trace(self) -> tuple[Choice, ...]:
        evidence = Evidence(self.graph, self.moments, self.importances, self.findings)
        with self.run.enter("trace", len(self.units), "units") as count:
            return map_units(lambda unit: unit.trace(evidence, self.method), self.units, count)

    def rewrite(self, changes: Changes, merges: Sequence[MergeStep] = ()) -> Rewrite:
        """The passes from the dense model to one with these changes, without what is exact anyway."""
        return plan_rewrite(changes, merges=merges)

    def finish(
        self, changes: Changes, merges: Sequence[MergeStep] = (), metadata: Mapping[str, str] | None = None
    ) -> Rewrite:
        """The passes to the model that is written: what is exact as well, in the target's form."""
        folded = fold_scales(self.blocks, changes) if self.method.for_target.folds_scale else changes
        return plan_rewrite(folded, self.trim, metadata, merges)


def map_units(function: Callable[[Unit], T], units: Sequence[Unit], progress: Count) -> tuple[T, ...]:
    """What the function gives for every unit, several side by side; it takes a few matrices of the unit's width."""
    widest = max((unit.width for unit in units if unit.n_heads is None), default=1)
    n_calls, one_at_a_time = max(1, min(choose_size(), TRACE_BYTES // (TRACED * widest**2))), Lock()

    def call(unit: Unit) -> T:
        found = function(unit)
        with one_at_a_time:
            progress(1)
        return found

    with Crew(n_calls) as crew:
        return tuple(crew.map(call, units))


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What changes, the one-shot plans behind it, and what the search says of itself.

    Attributes:
        merges: the tokens that merge.
        expected_loss: on the images that judge; of a refitted solution that of the one which the refit started from.
        expected_speedup: by the table of times, under a budget of time.
        probed: of units that were probed, the width at which each alone was, and the loss of that.
        tried: sizes that the search for a promise tried.
    """

    changes: Changes
    plans: tuple[UnitPlan, ...]
    kept_fraction: float | None = None
    notes: tuple[str, ...] = ()
    merges: tuple[MergeStep, ...] = ()
    expected_loss: float | None = None
    expected_speedup: float | None = None
    probed: Mapping[UnitKey, tuple[int, float]] = field(default_factory=dict)
    tried: tuple[TriedSize, ...] = ()


Plans: TypeAlias = Mapping[tuple[UnitKey, int], UnitPlan]
"""By unit and width."""


def solve_widths(
    choices: tuple[Choice, ...], widths: Mapping[UnitKey, int], known: Plans | None = None, shelf: Shelf | None = None
) -> tuple[UnitPlan, ...]:
    """The solution of every unit that does not stay whole; those of one site see each other in turn.

    Args:
        known: from `solve_first` or `list_first`.
        shelf: where large weights lie; None keeps all in memory.
    """
    shelf = shelf or Shelf()
    plans: list[UnitPlan] = []
    for choice in choices:
        site, width = choice.unit.site.key, widths[choice.key]
        before: Change | None = gather_changes(plan for plan in plans if plan.unit.site.key == site).get(site)
        if width < choice.width and not (before is not None and before.removes):
            found = known.get((choice.key, width)) if known and before is None else None
            plans.append(found or choice.solve(width, before).moved(shelf.aside))
    return tuple(plans)


def list_first(plans: Iterable[UnitPlan]) -> Plans:
    """Of some plans those that saw no other."""
    sites: dict[SiteKey, UnitPlan] = {}
    for plan in plans:
        sites.setdefault(plan.unit.site.key, plan)
    return {(plan.key, plan.width): plan for plan in sites.values()}


def solve_first(
    choices: tuple[Choice, ...], several: Sequence[Mapping[UnitKey, int]], crew: Crew, shelf: Shelf | None = None
) -> Plans:
    """Of several widths of all units the solutions that see no other: they have many in common."""
    wanted: dict[tuple[UnitKey, int], Choice] = {}
    shelf = shelf or Shelf()
    for widths in several:
        sites = set[SiteKey]()
        for choice in choices:
            if widths[choice.key] < choice.width and choice.unit.site.key not in sites:
                sites.add(choice.unit.site.key)
                wanted[choice.key, widths[choice.key]] = choice
    solve = crew.map(lambda item: item[1].solve(item[0][1]).moved(shelf.aside), wanted.items())
    return dict(zip(wanted, solve, strict=True))
