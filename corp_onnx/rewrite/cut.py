"""The pass that gives sites other widths: the changes of every unit, made in the graph and replayed in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from corp_onnx.blocks import Linear, SiteKey
from corp_onnx.graph import Graph, Model, Node, read_graph
from corp_onnx.graph.passes import Pass
from corp_onnx.results import CheckResult
from corp_onnx.run.comparison import TOLERANCE, relative_difference
from corp_onnx.run.tapped import open_tapped
from corp_onnx.units import Change, Changes, apply_changes


@dataclass(frozen=True, eq=False)
class CutWidths(Pass):
    """Every change in one graph.

    Args:
        changes: by site, solved on the graph that comes in.
        metadata: properties to store in the result.
    """

    name = "replay"
    requires = "the graph that the changes were solved on"
    ensures = "every product that changed computes what NumPy computes from the solved weights"

    changes: Changes
    metadata: Mapping[str, str] = field(default_factory=dict)

    def run(self, graph: Graph) -> onnx.ModelProto:
        """The graph with every change in it."""
        return apply_changes(graph, self.changes, self.metadata)

    def whole(self, graph: Graph) -> CutWidths:
        """Every width as it was, through the same surgery."""
        return CutWidths(_Derived(self.changes, lambda change: change.whole(graph)))

    def padded(self) -> CutWidths:
        """The same solutions, zeros where something was removed."""
        return CutWidths(_Derived(self.changes, lambda change: change.padded()))

    def check(
        self,
        graph: Graph,
        before: Model,  # noqa: ARG002
        after: Model,
        feeds: Mapping[str, np.ndarray],
        provider: str,
    ) -> CheckResult:
        """Every product that the pass touched, in the new graph on a real batch, against NumPy on its own input.

        Operands inside a fused attention operator can not be seen, nor queries that got a product of their own; the
        checks of the whole file (checks/verify.py) cover those.
        """
        expected = [p for change in self.changes.values() for p in change.products(graph)]
        expected = [p for p in expected if p.linear.output is not None]
        inputs = _find_inputs(after, [p.linear for p in expected])
        taps = [*inputs, *(p.linear.output or "" for p in expected)]
        arrays = open_tapped(after, taps, provider=provider, once=True).run(feeds)
        worst, where = 0.0, ""
        for product, name in zip(expected, inputs, strict=True):
            x, found = arrays[name], arrays[product.linear.output or ""]
            difference = relative_difference(found, product.apply(x, found.shape))
            if difference >= worst:
                worst, where = difference, str(product.key)
        tolerance = TOLERANCE[graph.float_type]
        detail = f"{len(expected)} products of the pruned graph against NumPy, worst {where}"
        return CheckResult(self.name, bool(worst <= tolerance), worst, tolerance, detail)


@dataclass(frozen=True, slots=True, eq=False)
class _Derived(Mapping[SiteKey, Change]):
    """Changes made of others when they are asked for, and not kept: together they hold every weight in float64."""

    changes: Changes
    make: Callable[[Change], Change]

    def __getitem__(self, key: SiteKey) -> Change:
        return self.make(self.changes[key])

    def __iter__(self) -> Iterator[SiteKey]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


def _find_inputs(after: Model, linears: Sequence[Linear]) -> list[str]:
    """What every product reads in the new graph: another tensor than before where tokens are selected for it."""
    makers = read_graph(after).producers
    return [_find_input(makers, linear) for linear in linears]


def _find_input(makers: Mapping[str, Node], linear: Linear) -> str:
    product = linear.node
    last = makers.get(product.output)
    if last is None or linear.input not in product.inputs:
        return linear.input
    # a bias that is new stands behind the product and has taken its name
    nodes = [last, *(makers[name] for name in last.inputs if name in makers)]
    now = next((node for node in nodes if node.op == product.op), None)
    return linear.input if now is None else now.inputs[product.inputs.index(linear.input)]
