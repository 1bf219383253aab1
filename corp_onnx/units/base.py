"""What a unit kind owns, and the values that pass between a kind and the rest of the house.

A `Unit` is one prunable thing of a block: an MLP's hidden channels, the dimensions of its queries and keys. A kind says
all that is particular to it, in this order of a run:

    tap, start_sum, read      what calibration exposes, which sums it fills, and with what
    trace -> Choice           its error at every width; `Choice.solve` gives the solution at one of them
    spectra                   how many directions it really uses
    cut                       a width without a solution, to be timed
    Change                    what happens to the place in the graph: edit, the same at full width, expected products
    respond, measure          its own output before and after, and the error that a report states
    describe                  its width and cost, for `inspect` and for budgets

Everybody else handles units through this interface and never asks which kind one is. Kinds are registered in
`corp_onnx.units`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.blocks import Attention, Mlp, SiteKey, Skip
from corp_onnx.findings import Findings
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.moments import Moments
from corp_onnx.moments.gathered import GatheredSum
from corp_onnx.results import UnitFacts
from corp_onnx.run.reduced import SumPen
from corp_onnx.settings import Fractions, Method
from corp_onnx.solve.allocate import aligned_widths
from corp_onnx.units.change import Change
from corp_onnx.units.energy import Energy
from corp_onnx.units.taps import Taps

Site = Mlp | Attention
"""A place in the graph that units belong to: several units may change one site together."""

Values = tuple[np.ndarray, ...]
"""What a unit reads from one batch of exposed tensors."""


@dataclass(frozen=True, slots=True, order=True)
class UnitKey:
    """Identity of a unit: its site, and its kind. As text: `blocks.0.mlp`, `blocks.0.attn.qk`."""

    site: SiteKey
    kind: str

    def __str__(self) -> str:
        return str(self.site) if self.kind == self.site.part else f"{self.site}.{self.kind}"


@dataclass(frozen=True, slots=True, eq=False)
class UnitPlan:
    """One unit's solution: `solved` goes into the model, `drop` makes what only a comparison asks for."""

    unit: Unit
    width: int
    condition_number: float
    solved: Change
    drop: Callable[[], Change]

    @property
    def key(self) -> UnitKey:
        """Of the unit."""
        return self.unit.key

    def moved(self, place: Callable[[np.ndarray], np.ndarray]) -> UnitPlan:
        """The same with the arrays of its solution where `place` lays them."""
        return replace(self, solved=self.solved.moved(place))

    @property
    def dropped(self) -> Change:
        """The same width without compensation, made anew at every call."""
        return self.drop()


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What solutions are made from.

    Attributes:
        graph: of the dense model.
        moments: by the unit's key as text.
        importances: of an MLP's channels by the same, for the rank `taylor`.
        findings: what was traced before.
    """

    graph: Graph
    moments: Moments
    importances: Mapping[str, np.ndarray] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)


@dataclass(frozen=True, eq=False)
class Choice(ABC):
    """Every width of one unit: its closed-form error at 0..full, and the solution at any of them."""

    unit: Unit
    method: Method

    @cached_property
    def error_curve(self) -> Float[np.ndarray, " full+1"]:
        """Squared output error at every width, in a scale of the kind's own."""
        return self.trace_errors()

    @abstractmethod
    def trace_errors(self) -> Float[np.ndarray, " full+1"]:
        """The error curve, computed when first asked."""

    @abstractmethod
    def solve(self, width: int, before: Change | None = None) -> UnitPlan:
        """The solution at a width.

        Args:
            before: what units of the same site were given already, in the order of the registry.
        """

    @property
    def key(self) -> UnitKey:
        """Of the unit."""
        return self.unit.key

    @property
    def width(self) -> int:
        """Of the whole unit."""
        return self.unit.width

    def widths(self) -> Int[np.ndarray, " m"]:
        """The widths that the search may give, ascending; the whole unit is the last."""
        return self.unit.widths(self.method)


@dataclass(frozen=True, eq=False)
class Unit(ABC):
    """One prunable thing of a site.

    Class attributes of a kind:
        kind: its name in settings, reports and keys.
        part: of a block, whose sites have such a unit.
        title: its name in tables.
        noun: its name in sentences.
        fraction: the field of `Fractions` that cuts it; empty where none does.
        shares_site: whether its width divides what the other units of the site cost (whole heads).
    """

    kind: ClassVar[str]
    part: ClassVar[str]
    title: ClassVar[str]
    noun: ClassVar[str]
    fraction: ClassVar[str] = ""
    shares_site: ClassVar[bool] = False

    site: Site
    removable: bool = False
    """Whether width 0 is possible: the unit becomes the addition of its mean."""

    @classmethod
    def find(cls, graph: Graph, site: Site) -> Unit:
        """The unit of a site, whether its width can change or not (`skip`)."""
        return cls(site)

    @property
    def key(self) -> UnitKey:
        """Its identity."""
        return UnitKey(self.site.key, self.kind)

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels, dimensions of a head, or heads."""

    @property
    def n_heads(self) -> int | None:
        """Heads that have this width each; None where there are none."""
        return None

    @property
    def n_regressors(self) -> int:
        """Channels that its solution is regressed on: fewer tokens than that leave it to the ridge."""
        return 0

    @property
    def n_fixed_parameters(self) -> int:
        """Of the parameters that are counted to it, those that no width changes."""
        return 0

    @property
    def gradient_tensor(self) -> str:
        """The tensor whose channels a rank by gradients looks at; empty where there is none."""
        return ""

    @property
    def skip(self) -> Skip | None:
        """Why its width can not change; None where it can."""
        return None

    def step(self, method: Method) -> int:
        """Widths are multiples of this."""
        return method.align

    def widths(self, method: Method) -> Int[np.ndarray, " m"]:
        """The widths that the search may give, ascending; the whole unit is the last."""
        step = self.step(method)
        least = max(step, method.for_target.min_head if self.n_heads is not None else 1)
        allowed = aligned_widths(self.width, step, smallest=min(least, self.width))
        return np.append(0, allowed) if method.remove and self.removable else allowed

    def removed(self, fractions: Fractions) -> float:
        """The fraction of it that goes; 0 for a kind that no fraction cuts."""
        return getattr(fractions, self.fraction) if self.fraction else 0.0

    @abstractmethod
    def describe(self, graph: Graph, cost: Cost) -> UnitFacts:
        """Width and cost, with its share of the model."""

    @abstractmethod
    def list_nodes(self) -> tuple[Node, ...]:
        """The nodes whose width is its own, for who paints a graph; some may be those of other units, too."""

    @abstractmethod
    def tap(self, taps: Taps) -> None:
        """Ask for the tensors that its sums are made of."""

    @abstractmethod
    def start_sum(self) -> Any:
        """Empty running sums: `update(*values)`, then `result()`."""

    @abstractmethod
    def read(self, arrays: Mapping[str, np.ndarray], graph: Graph, n_real: int) -> Values:
        """Its own values from the exposed tensors of one batch."""

    @abstractmethod
    def write_sum(self, pen: SumPen) -> GatheredSum:
        """The same sums made inside the graph: adds up everything in `GatheredSum.shapes` under names that begin with
        the unit's key, and says the shapes that are counted."""

    @abstractmethod
    def trace(self, evidence: Evidence, method: Method) -> Choice:
        """Every width of it, from the moments."""

    def spectra(self, evidence: Evidence) -> Float[np.ndarray, "m n"]:
        """How its energy spreads over directions (solve/spectrum.py): a row a head, one, or none."""
        return np.zeros((0, self.width))

    @abstractmethod
    def cut(self, graph: Graph, width: int) -> Change:
        """Only its first channels, whatever that loses: how long a width takes does not depend on numbers."""

    @abstractmethod
    def respond(self, graph: Graph, change: Change | None) -> Callable[..., np.ndarray]:
        """A function from its values to its output [..., channels]; None is the dense unit."""

    def measure(self, graph: Graph, plan: UnitPlan) -> Callable[..., Energy]:
        """A function from its values of one batch to what a solution loses of them."""
        responses = [self.respond(graph, change) for change in (None, plan.solved, plan.dropped)]
        return lambda *values: Energy.of(*(respond(*values) for respond in responses))
