"""What a strategy looks at, and what it answers: values between the stages (prune.py) and the search (strategy.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import Units
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost, count_macs
from corp_onnx.images import Images
from corp_onnx.inspect import describe_units
from corp_onnx.moments.values import Moments
from corp_onnx.results import UnitFacts
from corp_onnx.rewrite import AttentionChange, MlpChange
from corp_onnx.search.plan import UnitPlan
from corp_onnx.tokens.trim import TrimPlan

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Situation:
    """Everything that a strategy may look at."""

    graph: Graph
    blocks: Blocks
    units: Units
    moments: Moments
    calibration: Images
    held_out: Images
    batch_size: int
    provider: str
    seed: int
    progress: Progress | None = None
    importances: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of every MLP's channels, by unit key; for the rank `taylor` only."""
    trim: TrimPlan | None = None
    """The tokens that the pruned model will not compute."""

    @property
    def cost(self) -> Cost:
        """Of the model with every unit at full width, without the tokens that will not be computed."""
        return count_macs(self.graph) if self.trim is None else self.trim.cost

    @property
    def unit_facts(self) -> tuple[UnitFacts, ...]:
        """Every unit at full width and what it costs in that model."""
        at = self.trim or self
        return describe_units(at.graph, at.blocks, self.cost)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What changes, the one-shot solutions behind it, and what the search says of itself."""

    changes: dict[str, MlpChange | AttentionChange]
    plans: tuple[UnitPlan, ...]
    kept_fraction: float | None = None
    notes: tuple[str, ...] = ()
