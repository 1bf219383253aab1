"""What a model costs at every width of its units, in MACs, parameters or time: a `Spending` -> `Prices`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.graph.cost import Cost
from corp_onnx.latency.measure import choose_stand_ins
from corp_onnx.latency.table import Times
from corp_onnx.settings import CostKind
from corp_onnx.tokens.trim import TrimPlan
from corp_onnx.units import OWN_KINDS, Unit, UnitKey, list_units


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """What a model and its units cost, in one kind of cost.

    Attributes:
        dense: of the model as it is.
        whole: of every unit at full width, without the tokens that will not be computed or have merged.
        units: of every unit at the widths 0..full; only differences count.
    """

    dense: float
    whole: float
    units: Mapping[UnitKey, Float[np.ndarray, " full+1"]]


@dataclass(frozen=True, slots=True, eq=False)
class Spending:
    """What widths cost.

    Attributes:
        cost: of the whole model, without the tokens that will not be computed or have merged.
        times: how long widths take; without, nothing has a price in time.
        n_merges: steps that merge tokens.
    """

    graph: Graph
    blocks: Blocks
    units: tuple[Unit, ...]
    trim: TrimPlan | None
    cost: Cost
    times: Times | None = None
    n_merges: int = 0

    def price(self, kind: CostKind) -> Prices:
        """What the model and its units cost."""
        if kind == "time":
            return self._price_time()
        if kind == "params":
            facts = {unit: unit.describe(self.graph, self.cost) for unit in self.units}
            spent = {unit.key: of.n_parameters - unit.n_fixed_parameters for unit, of in facts.items()}
            dense = whole = self.graph.n_parameters
        else:
            spent, dense, whole = self._count_macs(self.trim or self, self.cost), self.graph.cost.total, self.cost.total
        return Prices(dense, whole, {u.key: spent[u.key] / u.width * np.arange(u.width + 1) for u in self.units})

    def _count_macs(self, at: TrimPlan | Spending, cost: Cost) -> dict[UnitKey, int]:
        """Of every unit, whether it is cut or not."""
        kinds = {unit.kind for unit in self.units} | {*OWN_KINDS}
        return {unit.key: unit.describe(at.graph, cost).macs for unit in list_units(at.blocks, kinds, skipped=True)}

    def _price_time(self) -> Prices:
        """By the table; with fewer tokens the time of a site falls with its MACs, by the part that the table says."""
        assert self.times is not None
        at = self.trim or self
        base = self.graph.cost if self.trim is None else self.trim.cost
        dense, before, now = (
            self._count_macs(where, cost) for where, cost in ((self, self.graph.cost), (at, base), (at, self.cost))
        )
        left = {key: macs - self.times.token_gain * (macs - now[key]) for key, macs in before.items()}
        units = {u.key: self.times.units[str(u.key)].trace() * (left[u.key] / dense[u.key]) for u in self.units}
        whole = self.times.whole + self.n_merges * self.times.merge
        for unit in choose_stand_ins(self.blocks, self.units):
            own = [key for key in dense if key.site == unit.key.site]
            share = sum(before[key] - left[key] for key in own) / sum(dense[key] for key in own)
            whole -= share * self.times.units[str(unit.key)].seconds[-1]
        return Prices(self.times.dense, whole, units)
