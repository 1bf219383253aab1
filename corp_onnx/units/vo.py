"""Values of an attention: dimensions of their heads, and the output projection behind them.

solve    the best rank of every head, then one ridge over the kept coordinates of all heads      solve/vo.py
edit     the map folded into the value projection, another output projection (attention.py)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import Attention, Skip, VoPair
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.moments import ChannelMoments
from corp_onnx.moments.gathered import GatheredChannels
from corp_onnx.moments.sums import ChannelSum
from corp_onnx.results import UnitFacts
from corp_onnx.run.reduced import SumPen
from corp_onnx.settings import Method
from corp_onnx.solve.spectrum import value_spectrum
from corp_onnx.solve.vo import VoSolution, compensate_vo, drop_vo, trace_value_curve
from corp_onnx.units.attention import AttentionChange, core_macs, count_tokens, first_dimensions
from corp_onnx.units.base import Change, Choice, Evidence, Unit, UnitPlan, Values
from corp_onnx.units.facts import describe_unit, projection_cost
from corp_onnx.units.taps import Taps, read_tokens, write_channels


@dataclass(frozen=True, eq=False)
class VoChoice(Choice):
    """Every width of a value/output pair; the bases of all widths are nested. The weight is read where it is asked
    for."""

    unit: VoUnit
    graph: Graph
    moments: ChannelMoments

    def trace_errors(self) -> Float[np.ndarray, " full+1"]:
        """Mean squared output error per token after the refit over all heads."""
        weight, _ = self.unit.pair.out.linear.read_dense(self.graph)
        return trace_value_curve(weight, self.moments, self.unit.site.n_heads, self.method.ridge)

    def solve(self, width: int, before: Change | None = None) -> UnitPlan:
        """The map of every head and the output projection that goes with it, over the heads that stay."""
        site, heads = self.unit.site, before.heads_idx if isinstance(before, AttentionChange) else None

        def change(solution: VoSolution) -> AttentionChange:
            return AttentionChange(
                site, v_map=solution.v_map, out_weight=solution.weight, out_bias=solution.bias, heads_idx=heads
            )

        def drop() -> AttentionChange:
            product = self.unit.pair.out.linear.read_dense(self.graph)
            return change(drop_vo(*product, self.moments, site.n_heads, width, heads))

        product = self.unit.pair.out.linear.read_dense(self.graph)
        solved = compensate_vo(*product, self.moments, site.n_heads, width, self.method.ridge, heads)
        chosen = change(solved) if self.method.compensate else drop()
        return UnitPlan(self.unit, width, solved.condition_number, chosen, drop)


@dataclass(frozen=True, eq=False)
class VoUnit(Unit):
    """The head dimensions of the values of one attention."""

    kind = "vo"
    part = "attn"
    title = "VO"
    noun = "value/output pair"

    site: Attention

    @property
    def width(self) -> int:
        """Dimensions of a head."""
        return self.site.d_v

    @property
    def n_heads(self) -> int | None:
        """Heads."""
        return self.site.n_heads

    @property
    def n_fixed_parameters(self) -> int:
        """The bias of its last product."""
        return self.pair.out.linear.d_out if self.pair.out.linear.bias else 0

    @property
    def n_regressors(self) -> int:
        """Dimensions of all heads."""
        return self.site.n_heads * self.site.d_v

    @property
    def skip(self) -> Skip | None:
        """Why values can not change width."""
        return self.site.vo if isinstance(self.site.vo, Skip) else None

    @property
    def pair(self) -> VoPair:
        """Values and output projection of a unit that can change width."""
        assert isinstance(self.site.vo, VoPair), self.key
        return self.site.vo

    def describe(self, graph: Graph, cost: Cost) -> UnitFacts:
        """Both projections, and P v."""
        n_parameters, macs = 0, core_macs(graph, cost, self.site)[1]
        if "v" in self.site.operands:
            n_parameters, spent = projection_cost(graph, cost, self.site.operands["v"])
            macs += spent
        if self.site.out is not None:
            linear = self.site.out.linear
            n_parameters += linear.d_in * linear.d_out + (linear.d_out if linear.bias else 0)
            macs += cost.by_node.get(linear.node.output, 0)
        return describe_unit(self, graph, cost, count_tokens(self.site), n_parameters, macs)

    def list_nodes(self) -> tuple[Node, ...]:
        """Both projections."""
        value = (self.site.operands["v"].linear.node,) if "v" in self.site.operands else ()
        return value if self.site.out is None else (*value, self.site.out.linear.node)

    def tap(self, taps: Taps) -> None:
        """What the output projection reads."""
        taps.tensors.append(self.pair.out.linear.input)

    def start_sum(self) -> ChannelSum:
        """Of the heads' outputs side by side, over all tokens."""
        linear = self.pair.out.linear
        return ChannelSum(linear.d_in, f"tensor '{linear.input}' ({self.key})")

    def read(self, arrays: Mapping[str, np.ndarray], graph: Graph, n_real: int) -> Values:
        """The heads' outputs side by side, [tokens, H * d]."""
        pair = self.pair
        return (read_tokens(arrays[pair.out.linear.input], graph, n_real, token_major=pair.v.token_major),)

    def write_sum(self, pen: SumPen) -> GatheredChannels:
        """Of the heads' outputs side by side, over all tokens."""
        linear = self.pair.out.linear
        write_channels(pen, str(self.key), linear.input, linear.d_in, token_major=self.pair.v.token_major)
        return GatheredChannels(linear.d_in, f"tensor '{linear.input}' ({self.key})")

    def trace(self, evidence: Evidence, method: Method) -> Choice:
        """One SVD a head."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, ChannelMoments)
        return VoChoice(self, method, evidence.graph, moments)

    def spectra(self, evidence: Evidence) -> Float[np.ndarray, "h d"]:
        """Of what every head writes through the output projection."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, ChannelMoments)
        weight, _ = self.pair.out.linear.read_dense(evidence.graph)
        return value_spectrum(weight, moments, self.site.n_heads)

    def cut(self, graph: Graph, width: int) -> AttentionChange:
        """The first dimensions of every head."""
        n_heads, d_head = self.site.n_heads, self.site.d_v
        weight, bias = self.pair.out.linear.read_dense(graph)
        heads = weight.reshape(len(weight), n_heads, d_head)[:, :, :width]
        return AttentionChange(
            self.site, v_map=first_dimensions(n_heads, d_head, width), out_weight=heads.reshape(len(weight), -1),
            out_bias=bias,
        )  # fmt: skip

    def respond(self, graph: Graph, change: Change | None) -> Callable[..., np.ndarray]:
        """The output projection on the dense model's head outputs."""
        known = AttentionChange(self.site) if change is None else change
        assert isinstance(known, AttentionChange)
        weight, bias = known.last_product(graph)
        return partial(project_heads, known, weight.astype(np.float32), bias.astype(np.float32))


def project_heads(change: AttentionChange, weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What an output projection makes of the dense heads' outputs x [tokens, H * d], in float32."""
    if change.v_map is not None or change.heads_idx is not None:
        heads = x.reshape(len(x), change.site.n_heads, -1)  # [tokens, H, d]
        if change.v_map is not None:
            heads = np.einsum("thd,hrd->thr", heads, change.v_map.astype(np.float32), optimize=True)
        x = (heads if change.heads_idx is None else heads[:, change.heads_idx]).reshape(len(x), -1)
    return x @ weight.T + bias
