"""The hidden channels of an MLP, y = W x + b behind the nonlinearity.

    order    greedy OBS, or a rank that looks at each channel alone         solve/obs.py, solve/select.py
    solve    affine compensation (arXiv 2602.05243, eq. 8-11)               solve/mlp.py
    edit     columns of the second product, rows of the first, the vectors between

At width 0 the MLP becomes the addition of its mean output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.blocks import Mlp, SiteKey
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.slots import Slot, WidthSpelling
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.moments import ChannelMoments
from corp_onnx.moments.gathered import GatheredChannels
from corp_onnx.moments.sums import ChannelSum
from corp_onnx.results import UnitFacts
from corp_onnx.run.reduced import SumPen
from corp_onnx.settings import Method
from corp_onnx.solve.mlp import compensate_mlp
from corp_onnx.solve.obs import rank_obs
from corp_onnx.solve.select import (
    ChannelOrder,
    order_by_score,
    rank_energy,
    rank_magnitude,
    rank_weighted,
    trace_error_curve,
)
from corp_onnx.solve.spectrum import channel_spectrum
from corp_onnx.units.base import Change, Choice, Evidence, Site, Unit, UnitPlan, Values
from corp_onnx.units.edits import can_remove, remove_branch, set_bias, set_weight, shape_like
from corp_onnx.units.expected import Expected
from corp_onnx.units.facts import describe_unit
from corp_onnx.units.taps import Taps, read_tokens, write_channels


@dataclass(frozen=True, slots=True, eq=False)
class MlpChange(Change):
    """An MLP cut to `kept_idx`, with the weight [d_out, width] and bias [d_out] of its second product."""

    site: Mlp
    kept_idx: Int[np.ndarray, " width"]
    weight: Float[np.ndarray, "d_out width"]
    bias: Float[np.ndarray, " d_out"]

    @property
    def key(self) -> SiteKey:
        """Of the site."""
        return self.site.key

    @classmethod
    def none(cls, site: Mlp, graph: Graph) -> MlpChange:
        """The change that keeps every channel and number."""
        return cls(site, np.arange(site.d_hidden), *site.down.read_dense(graph))

    @property
    def removes(self) -> bool:
        """Whether no channel stays."""
        return len(self.kept_idx) == 0

    def edit(self, surgeon: Surgeon) -> None:
        """Slice the first product(s), the vectors between, and replace the second product."""
        unit, kept, width = self.site, self.kept_idx, len(self.kept_idx)
        if self.removes:
            remove_branch(surgeon, unit.down, self.bias)
            return
        biases: set[Slot] = set()
        for up in unit.ups:
            rows = up.channel_idx[:, kept].reshape(-1)
            set_weight(surgeon, up.linear, up.linear.read_weight(surgeon.graph)[rows])
            bias = up.linear.read_bias(surgeon.graph)
            if up.linear.bias is not None and bias is not None:
                surgeon.replace_stored(up.linear.bias, shape_like(surgeon.graph, up.linear.bias, bias[rows]))
                biases.add(up.linear.bias)
        for slot in unit.per_channel:
            if slot not in biases:
                value = surgeon.graph.stored(slot.name)
                surgeon.replace_stored(slot, np.take(value, kept, axis=-1))
        for node in unit.reshapes:
            shape = surgeon.graph.dims(node.output)
            surgeon.set_width(WidthSpelling(node, len(shape) - 1, n_folded=shape[-1] // unit.d_hidden), width)
        for node in unit.splits:
            _set_halves(surgeon, node, width)
        set_weight(surgeon, unit.down, self.weight)
        set_bias(surgeon, unit.down, self.bias)

    def join(self, other: MlpChange) -> MlpChange:
        """An MLP has one unit."""
        return other

    def whole(self, graph: Graph) -> MlpChange:
        """Every channel kept."""
        return MlpChange.none(self.site, graph)

    def padded(self) -> MlpChange:
        """Zero columns at the channels that go."""
        weight = np.zeros((len(self.bias), self.site.d_hidden))
        weight[:, self.kept_idx] = self.weight
        return replace(self, kept_idx=np.arange(self.site.d_hidden), weight=weight)

    def products(self, graph: Graph) -> Iterator[Expected]:
        """The first and the second product."""
        if self.removes:
            return
        for up in self.site.ups:
            rows = up.channel_idx[:, self.kept_idx].reshape(-1)
            bias = up.linear.read_bias(graph) if up.linear.output_has_bias else None
            weight = up.linear.read_weight(graph)[rows]
            yield Expected(self.site.key, up.linear, weight, None if bias is None else bias[rows])
        down = self.site.down
        late = down.bias is not None and not down.output_has_bias
        yield Expected(self.site.key, down, self.weight, None if late else self.bias)

    def last_product(self, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        """The second product."""
        return self.weight, self.bias

    def with_product(self, weight: np.ndarray, bias: np.ndarray) -> MlpChange:
        """Another second product over the same channels."""
        return replace(self, weight=weight, bias=bias)


def _set_halves(surgeon: Surgeon, node: Node, width: int) -> None:
    """New sizes for the Split, or new bounds for the Slice, that parts a packed gate and value."""
    gs_node = surgeon.at(node)
    if node.op == "Split":
        if "split" in node.attrs:
            gs_node.attrs["split"] = [width, width]
        elif len(node.inputs) > 1:
            sizes = surgeon.constant(f"{node.output}_sizes", np.array([width, width], dtype=np.int64))
            surgeon.replace_input(Slot(node, 1), sizes)
        return
    start = int(np.asarray(surgeon.graph.value(node.inputs[1])).reshape(-1)[0])
    offset = 0 if start == 0 else width
    for idx, bound in ((1, offset), (2, offset + width)):
        value = surgeon.constant(f"{node.output}_bound", np.array([bound], dtype=np.int64))
        surgeon.replace_input(Slot(node, idx), value)


@dataclass(frozen=True, eq=False)
class MlpChoice(Choice):
    """Every width of an MLP: one order of its channels, all widths nested. The weight is read where it is asked for."""

    unit: MlpUnit
    graph: Graph
    moments: ChannelMoments
    order: ChannelOrder

    def trace_errors(self) -> Float[np.ndarray, " full+1"]:
        """Mean squared output error per token after compensation."""
        if self.order.error_curve is not None:
            return self.order.error_curve
        weight, _ = self.unit.site.down.read_dense(self.graph)
        traced = trace_error_curve(self.order, weight, self.moments.covariance, self.method.ridge)
        assert traced.error_curve is not None
        return traced.error_curve

    def solve(self, width: int, before: Change | None = None) -> UnitPlan:
        """The channels of a width and the second product that goes with them; at 0 the mean output."""
        unit, kept_idx, solved, condition = self.unit, self.order.kept_idx(width), None, 1.0
        drop, (weight, bias) = partial(unit.drop, self.graph, kept_idx), unit.site.down.read_dense(self.graph)
        if self.method.compensate and width == 0:
            solved = replace(drop(), bias=weight @ self.moments.mean + bias)
        elif self.method.compensate:
            found = compensate_mlp(weight, bias, self.moments, kept_idx, self.method.ridge)
            solved, condition = MlpChange(unit.site, kept_idx, found.weight, found.bias), found.condition_number
        return UnitPlan(unit, width, condition, solved or drop(), drop)


@dataclass(frozen=True, eq=False)
class MlpUnit(Unit):
    """The hidden channels of one MLP."""

    kind = "mlp"
    part = "mlp"
    title = "MLP"
    noun = "MLP"
    fraction = "mlp"

    site: Mlp

    @classmethod
    def find(cls, graph: Graph, site: Site) -> MlpUnit:
        """The unit of an MLP."""
        assert isinstance(site, Mlp)
        return cls(site, can_remove(graph, site.down, site.residual))

    @property
    def width(self) -> int:
        """Hidden channels."""
        return self.site.d_hidden

    @property
    def n_fixed_parameters(self) -> int:
        """The bias of its last product."""
        return self.site.down.d_out if self.site.down.bias else 0

    @property
    def n_regressors(self) -> int:
        """Hidden channels."""
        return self.site.d_hidden

    @property
    def gradient_tensor(self) -> str:
        """What its second product reads."""
        return self.site.hidden

    def describe(self, graph: Graph, cost: Cost) -> UnitFacts:
        """Its products' parameters and MACs."""
        linears = [*(up.linear for up in self.site.ups), self.site.down]
        n_parameters = sum(li.d_in * li.d_out + (li.d_out if li.bias else 0) for li in linears)
        macs = sum(cost.by_node.get(li.node.output, 0) for li in linears)
        n_tokens = int(np.prod(graph.shapes[self.site.hidden][:-1])) // graph.n_images
        return describe_unit(self, graph, cost, n_tokens, n_parameters, macs)

    def list_nodes(self) -> tuple[Node, ...]:
        """Its products."""
        return tuple(linear.node for linear in self.site.linears)

    def tap(self, taps: Taps) -> None:
        """What its second product reads."""
        taps.tensors.append(self.site.hidden)

    def start_sum(self) -> ChannelSum:
        """Of the hidden channels over all tokens."""
        return ChannelSum(self.width, f"tensor '{self.site.hidden}' ({self.key})")

    def read(self, arrays: Mapping[str, np.ndarray], graph: Graph, n_real: int) -> Values:
        """The hidden channels, [tokens, n]."""
        return (read_tokens(arrays[self.site.hidden], graph, n_real),)

    def write_sum(self, pen: SumPen) -> GatheredChannels:
        """Of the hidden channels over all tokens."""
        write_channels(pen, str(self.key), self.site.hidden, self.width)
        return GatheredChannels(self.width, f"tensor '{self.site.hidden}' ({self.key})")

    def trace(self, evidence: Evidence, method: Method) -> MlpChoice:
        """One order of all channels; n^3 operations for OBS, the rest is small."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, ChannelMoments)
        weight, _ = self.site.down.read_dense(evidence.graph)
        if method.rank == "obs":
            key = {"ridge": method.ridge, **method.sampling}
            make = partial(_pack_order, moments, weight, method.ridge)
            order = ChannelOrder(**evidence.findings.recall(f"orders/{self.key}", key, make))
        elif method.rank == "taylor":
            order = order_by_score(evidence.importances[str(self.key)])
        elif method.rank == "weighted":
            order = rank_weighted(moments, weight, self._up_weight(evidence.graph))
        else:
            order = rank_energy(moments) if method.rank == "energy" else rank_magnitude(weight)
        return MlpChoice(self, method, evidence.graph, moments, order)

    def spectra(self, evidence: Evidence) -> Float[np.ndarray, "1 n"]:
        """Of the hidden channels."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, ChannelMoments)
        return channel_spectrum(moments)

    def drop(self, graph: Graph, kept_idx: Int[np.ndarray, " width"]) -> MlpChange:
        """Some hidden channels, without compensation."""
        weight, bias = self.site.down.read_dense(graph)
        return MlpChange(self.site, kept_idx, weight[:, kept_idx], bias)

    def cut(self, graph: Graph, width: int) -> MlpChange:
        """The first hidden channels."""
        return self.drop(graph, np.arange(width))

    def _up_weight(self, graph: Graph) -> Float[np.ndarray, "n k*d_in"]:
        """The rows of the first product(s) that make each channel, side by side."""
        rows = [up.linear.read_weight(graph)[up.channel_idx] for up in self.site.ups]  # [k, n, d_in] each
        return np.concatenate([r for group in rows for r in group], axis=1)

    def respond(self, graph: Graph, change: Change | None) -> Callable[..., np.ndarray]:
        """The second product on the dense model's hidden channels."""
        if change is None:
            return partial(_apply, *(a.astype(np.float32) for a in self.site.down.read_dense(graph)), None)
        assert isinstance(change, MlpChange)
        return partial(_apply, change.weight.astype(np.float32), change.bias.astype(np.float32), change.kept_idx)


def _pack_order(moments: ChannelMoments, weight: np.ndarray, ridge: float) -> dict[str, np.ndarray]:
    order = rank_obs(moments, weight, ridge)
    assert order.error_curve is not None
    return {"order_idx": order.order_idx, "error_curve": order.error_curve}


def _apply(weight: np.ndarray, bias: np.ndarray, kept_idx: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    return (x if kept_idx is None else x[:, kept_idx]) @ weight.T + bias
