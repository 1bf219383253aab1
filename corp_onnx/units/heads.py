"""Whole heads of an attention: their queries, keys, values and columns of the output projection go together.

    order    backward elimination of the head whose loss, after the others are refitted, raises the output error least
    solve    ridge over the heads that stay, towards the output of all                                     solve/vo.py
    edit     rows of the projections, columns of the output projection, and the number of heads wherever it is spelled

Heads stay of one width, as fused attention kernels want. At width 0 the attention becomes the addition of its mean.
Queries, keys and values may become narrower besides: units of a site are solved in turn, and share what a head costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.blocks import Attention, Operand, QkPair, Skip, VoPair
from corp_onnx.blocks.layout import Step, Traced, trace_path
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.blocks.readers import find_reader
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.operators import ELEMENTWISE, FLOAT_MATMULS, PASS_THROUGH, SOFTMAXES
from corp_onnx.graph.slots import Slot
from corp_onnx.moments import ChannelMoments
from corp_onnx.results import UnitFacts
from corp_onnx.settings import Method
from corp_onnx.solve.heads import rank_heads
from corp_onnx.solve.vo import compensate_vo
from corp_onnx.units.attention import AttentionChange, count_tokens
from corp_onnx.units.base import Change, Choice, Evidence, Site, UnitPlan
from corp_onnx.units.edits import can_remove
from corp_onnx.units.facts import describe_unit
from corp_onnx.units.projections import HeadCounts
from corp_onnx.units.qk import QkUnit
from corp_onnx.units.vo import VoUnit

INSIDE = ELEMENTWISE | PASS_THROUGH | FLOAT_MATMULS | SOFTMAXES
"""Operators between q k' and P v that treat every head alike."""


@dataclass(frozen=True, eq=False)
class HeadsChoice(Choice):
    """Every number of heads; a smaller one is part of a larger."""

    unit: HeadsUnit
    graph: Graph
    moments: ChannelMoments
    order_idx: Int[np.ndarray, " h"]
    errors: Float[np.ndarray, " h+1"]

    def trace_errors(self) -> Float[np.ndarray, " full+1"]:
        """Mean squared output error per token after the refit over the heads that stay."""
        return self.errors

    def solve(self, width: int, before: Change | None = None) -> UnitPlan:
        """The heads that stay and the output projection that goes with them."""
        unit, n_heads, d_head = self.unit, self.unit.width, self.unit.site.d_v
        kept = np.sort(self.order_idx[:width])
        weight, bias = unit.pair.out.linear.read_dense(self.graph)
        drop, solved, condition = partial(unit.drop, self.graph, kept), None, 1.0
        if self.method.compensate and width == 0:
            solved = unit.change(kept, weight[:, :0].copy(), weight @ self.moments.mean + bias)
        elif self.method.compensate:
            found = compensate_vo(weight, bias, self.moments, n_heads, d_head, self.method.ridge, kept)
            solved, condition = unit.change(kept, found.weight, found.bias), found.condition_number
        return UnitPlan(unit, width, condition, solved or drop(), drop)


@dataclass(frozen=True, eq=False)
class HeadsUnit(VoUnit):
    """The heads of one attention; it reads and answers what its values do."""

    kind = "heads"
    title = "heads"
    noun = "head group"
    shares_site = True

    problem: Skip | None = None
    head_counts: HeadCounts = field(default_factory=dict)

    @classmethod
    def find(cls, graph: Graph, site: Site) -> HeadsUnit:
        """The unit of an attention, with the places that spell its number of heads."""
        assert isinstance(site, Attention)
        found = find_head_counts(graph, site)
        if isinstance(found, Skip):
            return cls(site, problem=found)
        return cls(site, site.last is not None and can_remove(graph, site.last, site.residual), head_counts=found)

    def drop(self, graph: Graph, kept: Int[np.ndarray, " k"]) -> AttentionChange:
        """Some heads, without compensation."""
        weight, bias = self.pair.out.linear.read_dense(graph)
        d_head = self.site.d_v
        columns = (kept[:, None] * d_head + np.arange(d_head)).reshape(-1)
        return self.change(kept, weight[:, columns], bias)

    def change(self, kept: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> AttentionChange:
        """The change that keeps some heads."""
        return AttentionChange(
            self.site, out_weight=weight, out_bias=bias, heads_idx=kept, head_counts=self.head_counts
        )

    @property
    def width(self) -> int:
        """Heads."""
        return self.site.n_heads

    @property
    def n_heads(self) -> None:
        """Its width counts heads, and belongs to none."""

    @property
    def skip(self) -> Skip | None:
        """Why heads can not go."""
        return self.problem

    def step(self, method: Method) -> int:
        """Heads are counted one by one."""
        return 1

    def describe(self, graph: Graph, cost: Cost) -> UnitFacts:
        """What queries, keys, values and the output projection cost together."""
        parts = [kind(self.site).describe(graph, cost) for kind in (QkUnit, VoUnit)]
        n_parameters, macs = sum(p.n_parameters for p in parts), sum(p.macs for p in parts)
        return describe_unit(self, graph, cost, count_tokens(self.site), n_parameters, macs)

    def list_nodes(self) -> tuple[Node, ...]:
        """Those of queries, keys and values."""
        return tuple(node for kind in (QkUnit, VoUnit) for node in kind(self.site).list_nodes())

    def trace(self, evidence: Evidence, method: Method) -> HeadsChoice:
        """One order of all heads."""
        moments = evidence.moments[str(self.key)]
        assert isinstance(moments, ChannelMoments)
        weight, _ = self.pair.out.linear.read_dense(evidence.graph)
        order_idx, errors = rank_heads(weight, moments.covariance, self.width, method.ridge)
        return HeadsChoice(self, method, evidence.graph, moments, order_idx, errors)

    def cut(self, graph: Graph, width: int) -> AttentionChange:
        """The first heads."""
        weight, bias = self.pair.out.linear.read_dense(graph)
        return self.change(np.arange(width), weight[:, : width * self.site.d_v], bias)


@dataclass
class _StopError(Exception):
    """Why heads can not go, and at which node."""

    node: Node
    reason: str


def find_head_counts(graph: Graph, site: Attention) -> HeadCounts | Skip:
    """Where the number of heads is spelled, or why whole heads can not go."""
    if not isinstance(site.qk, QkPair) or not isinstance(site.vo, VoPair):
        return replace(site.skips[0], kind="heads", reason=f"a head goes whole, and {site.skips[0].reason}")
    try:
        if site.core == "com.microsoft.Attention":
            return _check_operator(graph, site.node)
        ways = [*(_find_path(graph, operand) for operand in (site.qk.q, site.qk.k, site.vo.v)),
                _find_inner(graph, site, site.vo)]  # fmt: skip
        _require_no_reader(graph, ways, site.vo.out.linear.node)
    except _StopError as stop:
        return Skip("heads", site.position, str(stop.node), stop.reason, 2)
    return {node: axes for way in ways for node, axes in way.counts.items()}


def _check_operator(graph: Graph, node: Node) -> HeadCounts:
    """com.microsoft.Attention spells its heads as an attribute."""
    if any(len(graph.dims(name)) == 4 and graph.dims(name)[1] > 1 for name in node.inputs[3:] if name):
        raise _StopError(node, "every head has a bias of its own")
    return {}


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A stretch of an attention: (tensor, axis of its heads), Reshapes that spell them alone, every node."""

    tensors: Sequence[tuple[str, int]]
    counts: HeadCounts
    nodes: Sequence[Node]


def _require_no_reader(graph: Graph, ways: Sequence[_Way], last: Node) -> None:
    """Nobody outside the attention reads a tensor whose number of heads changes."""
    inside = {last, *(node for way in ways for node in way.nodes)}
    pinned = {Slot(node, 1) for node in inside if node.op == "Reshape"}
    for tensor, axis in (pair for way in ways for pair in way.tensors):
        reader = find_reader(graph, tensor, [axis], inside, pinned)
        if reader is not None:
            raise _StopError(reader.node, f"{reader.reason.split(',')[0]}, so its heads can not go")


def _find_path(graph: Graph, operand: Operand) -> _Way:
    """From a projection to the attention product."""
    source = operand.linear.output or ""
    steps = _name_steps(operand.path, operand.tensor)
    names = [source, *(step.tensor for step in steps)]
    behind = steps[names.index(operand.boundary) :] if operand.boundary in names else []
    heads = np.zeros(operand.linear.d_out, dtype=np.int64)
    heads[operand.channel_idx] = np.arange(operand.n_heads)[:, None]
    way = _read_way(graph, _trace(graph, source, steps), behind, heads, operand.n_heads, operand.d_head)
    return replace(way, nodes=operand.path)


def _trace(graph: Graph, source: str, steps: list[Step]) -> Traced:
    traced = trace_path(graph, source, steps)
    if isinstance(traced, Mismatch):
        raise _StopError(traced.node, traced.reason)
    return traced


def _name_steps(path: Sequence[Node], last: str) -> list[Step]:
    """The nodes of a path with the tensor of each that the path goes on with."""
    named = zip(path, [*(node.inputs for node in path[1:]), (last,)], strict=False)
    return [Step(node, next(name for name in node.outputs if name in read)) for node, read in named]


def _is_inferred(graph: Graph, node: Node, axis: int) -> bool:
    """Whether a Reshape's target leaves a size open (-1), or keeps its input's (0)."""
    stored = graph.constant(node.inputs[1])
    return stored is not None and bool(stored[axis] <= 0)


def _read_way(
    graph: Graph, traced: Traced, steps: Sequence[Step], heads: np.ndarray, n_heads: int, d_head: int
) -> _Way:
    """The axis of the heads in every tensor of a stretch, and the Reshapes that spell their number alone."""
    tensors: list[tuple[str, int]] = []
    counts: dict[Node, tuple[int, ...]] = {}
    for step in steps if n_heads > 1 else ():
        axes = traced.width_axes(step.tensor, heads)
        if len(axes) != 1:
            raise _StopError(step.node, "its heads are spread over several axes")
        size = traced.arrays[step.tensor].shape[axes[0]]
        tensors.append((step.tensor, axes[0]))
        if step.node.op == "Reshape" and size == n_heads:
            counts[step.node] = (axes[0],)
        elif step.node.op == "Reshape" and size != n_heads * d_head and not _is_inferred(graph, step.node, axes[0]):
            raise _StopError(step.node, "its target spells the heads folded into another axis")
    return _Way(tensors, counts, ())


def _find_inner(graph: Graph, site: Attention, pair: VoPair) -> _Way:
    """From q k' to what the output projection reads."""
    product = site.node
    if site.core == "softmax":
        product = next((n for n, i in graph.users(pair.v.tensor) if n.op == "MatMul" and i == 1), product)
    dims = graph.dims(product.output)
    if site.core == "MultiHeadAttention" or len(dims) != 4 or dims[1] != site.n_heads:
        raise _StopError(product, "its heads have no axis of their own")
    between = _nodes_between(graph, site.node, product)
    made = {name for node in between for name in node.outputs} | {o.tensor for o in site.operands.values()}
    for reader in between:
        for name in (name for name in reader.inputs if name not in made):
            if len(graph.dims(name)) > 2 and graph.dims(name)[-3] > 1:
                raise _StopError(reader, "every head has a bias of its own")
    path = _nodes_back(graph, pair.out.linear.input, product)
    steps = _name_steps(path, pair.out.linear.input)
    heads = np.broadcast_to(np.arange(dims[1])[:, None, None], dims).reshape(-1)  # of [B, H, N, d]
    traced = Traced(_trace(graph, product.output, steps).arrays, heads.size)  # every number is a column of its own
    way = _read_way(graph, traced, steps, heads, site.n_heads, site.d_v)
    inner = [(name, 1) for node in between for name in node.outputs if len(graph.dims(name)) == 4]
    return replace(way, tensors=[*inner, *way.tensors], nodes=[*between, *path])


def _nodes_between(graph: Graph, first: Node, last: Node) -> list[Node]:
    """The nodes that lead from one to another, both with them."""
    found, todo = {first: None}, [first] if first is not last else []
    while todo:
        for user, _ in graph.users(todo.pop().output):
            if user.op == "Shape" or user in found:
                continue
            if user.op not in INSIDE and user is not last:
                raise _StopError(user, f"{user.op} stands between its logits and its values")
            found[user] = None
            todo += [user] if user is not last else []
    return list(found)


def _nodes_back(graph: Graph, tensor: str, last: Node) -> list[Node]:
    """The nodes from behind `last` to the one that makes a tensor, by their first inputs."""
    path: list[Node] = []
    while (node := graph.producers.get(tensor)) is not last:
        if node is None:
            raise _StopError(last, "the way to its output projection is not understood")
        path.append(node)
        tensor = node.inputs[0]
    return path[::-1]
