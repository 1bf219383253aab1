"""What every pruned unit loses, measured on the dense model's own activations.

Enters the dense graph and plans of units, then batches of what `tap_units` gives; leaves (relative error, the same
without compensation) by unit. Reading values and measuring on them are two steps, since several pruned models may be
measured on the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from corp_onnx.calibrate.draw import TokenDraw
from corp_onnx.graph import Graph
from corp_onnx.memory import forget_pages
from corp_onnx.threads import Crew
from corp_onnx.units import Unit, UnitKey, UnitPlan
from corp_onnx.units.base import Values
from corp_onnx.units.energy import Energy

UNIT_TOKENS = 48
"""Of an image, that errors of units are measured on: of 197 tokens an error of DeiT-Tiny differs by 0.5 % with 48."""


class UnitErrors:
    """What planned units lose, batch by batch.

    Args:
        units: whose values are read, the planned ones among them; None are these alone.
    """

    def __init__(self, graph: Graph, plans: Sequence[UnitPlan], units: Sequence[Unit] | None = None) -> None:
        self.planned = [plan.unit for plan in plans]
        self.units = self.planned if units is None else units
        self._graph = graph
        self._measures = [plan.unit.measure(graph, plan) for plan in plans]
        self._energies = [Energy() for _ in plans]
        for array in (array for plan in plans for array in plan.solved.arrays().values()):
            forget_pages(array)  # it is in float32 by now

    def read(self, arrays: Mapping[str, np.ndarray], n_real: int, first: int) -> dict[UnitKey, Values]:
        """Of every unit what errors are measured on, in one batch of what `tap_units` gives.

        Args:
            first: place of its first image.
        """
        draw = TokenDraw(UNIT_TOKENS)
        return {unit.key: draw.take(unit.read(arrays, self._graph, n_real), n_real, first) for unit in self.units}

    def measure(self, values: Mapping[UnitKey, Values], crew: Crew) -> list[Energy]:
        """Of every planned unit; nothing is counted yet, so any thread may ask."""
        pairs = zip(self.planned, self._measures, strict=True) if values else ()
        return crew.map(lambda pair: pair[1](*values[pair[0].key]), pairs)

    def add(self, energies: Sequence[Energy]) -> None:
        """Count a batch; one on which units were not measured has none."""
        if not energies:
            return
        self._energies = [one + other for one, other in zip(self._energies, energies, strict=True)]

    def result(self) -> dict[UnitKey, tuple[float, float]]:
        """(relative error, the same without compensation) of every unit (see `results.UnitResult`)."""
        return {unit.key: e.relative() for unit, e in zip(self.planned, self._energies, strict=True)}
