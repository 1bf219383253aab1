"""Similar tokens become one: a graph -> the same graph with fewer tokens from some blocks on.

Behind the attention of a block and in front of its MLP, every image by itself, a fixed number of tokens is merged into
others (ToMe, Bolya et al. 2023). Special tokens apart, every other one is a source, the rest are targets; each source
looks for its nearest target, and the cheapest sources are merged:

    nearest_a = max_b cos(P'x_a, P'x_b)        x the block's normalised input, P from metric.py
    cost_a    = (1 - nearest_a) size_a importance_a,        log importance_a = u'x_a

A merged token is the mean of the tokens that it stands for. Their number, its size, is carried along, and every later
softmax over tokens adds log(size) to its logits, every mean over tokens counts sizes. Only standard operators of opset
13, no Scatter: shapes are static, any batch works. Numbers are float32 whatever the model's precision, because ties
decide and sizes multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float
from onnx import TensorProto

from corp_onnx.blocks import Block, Blocks
from corp_onnx.errors import CheckFailedError
from corp_onnx.graph import FLOAT_TYPES, Graph, Model, Node
from corp_onnx.graph.cost import Cost
from corp_onnx.graph.operators import RESHAPES, SOFTMAXES
from corp_onnx.graph.passes import Pass
from corp_onnx.graph.slots import Slot
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.results import CheckResult
from corp_onnx.run.comparison import TOLERANCE, relative_difference
from corp_onnx.run.sessions import open_tapped
from corp_onnx.tokens.flow import TokenFlow, Tokens, mask_slot, trace_tokens

MIN_OPSET = 13
"""Split and ReduceSum take their sizes and axes as inputs from here on."""

REDUCE_AXES_AS_INPUT = 18
"""Operator set from which on the other Reduce* do as well."""

PREFIX = "corp_onnx.merge"
"""Of the names of new tensors; the check and the refit ask for some of them (`MergeStep.tensor`)."""


@dataclass(frozen=True, slots=True, eq=False)
class MergeSite:
    """A block behind whose attention tokens can merge.

    Attributes:
        block: its number.
        stream: the residual stream behind its attention, [images, tokens, d_model].
        source: the block's normalised input, [images, tokens, d_model].
        position: of the node that makes the stream.
    """

    block: int
    stream: str
    source: str
    position: int


@dataclass(frozen=True, slots=True, eq=False)
class MergeSites:
    """Where tokens can merge, what the graph does with them, and why not where they can not (block, reason)."""

    sites: tuple[MergeSite, ...]
    flow: TokenFlow | None
    skipped: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class TokenMetric:
    """How the tokens of a block are compared: directions, a constant, and log importance along the source's channels.

    `offset` is None where there is no constant, `importance` where all tokens count alike.
    """

    directions: Float[np.ndarray, "d_model d"]
    offset: Float[np.ndarray, " d"] | None = None
    importance: Float[np.ndarray, " d_model"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MergeStep:
    """`n_merged` tokens fewer from a site on; 0 goes through the same surgery and merges none."""

    site: MergeSite
    n_merged: int
    metric: TokenMetric

    def tensor(self, what: str) -> str:
        """The name of a new tensor: `order` and `partner` (which merge), `tokens` and `sizes` (what comes of it)."""
        return f"{PREFIX}/{self.site.block}/{what}"


def list_assignments(steps: Sequence[MergeStep]) -> tuple[str, ...]:
    """The integer tensors that say which tokens merge with which; all else follows from them."""
    return tuple(step.tensor(what) for step in steps for what in ("order", "partner"))


@dataclass(frozen=True, slots=True, eq=False)
class MergePlan:
    """Tokens that will merge, and what the model then costs at full widths."""

    steps: tuple[MergeStep, ...]
    cost: Cost


def count_merge(step: MergeStep, n_tokens: int, n_special: int) -> int:
    """Multiply-accumulates of a step itself, with so many tokens in front of it."""
    sources, targets = part_tokens(n_tokens, n_special)
    d_model, n_directions = step.metric.directions.shape
    n_columns = n_directions + (step.metric.importance is not None)
    compared = n_tokens * d_model * n_columns + len(sources) * (len(targets) - n_special) * n_directions
    return compared + len(targets) * step.n_merged * (d_model + 1)


def find_merge_sites(graph: Graph, blocks: Blocks) -> MergeSites:
    """The blocks of a probed graph in which tokens can merge."""
    found: list[MergeSite] = []
    skipped: list[tuple[int, str]] = []
    for block in blocks.blocks:
        site = _find_site(graph, block)
        if isinstance(site, MergeSite):
            found.append(site)
        else:
            skipped.append((block.idx, site))
    if not found:
        return MergeSites((), None, tuple(skipped))
    flow = trace_tokens(graph, [site.stream for site in found])
    open_sites: list[MergeSite] = []
    for site in found:
        obstacle = flow.obstacle_behind(site.position)
        if obstacle is None and graph.dims(site.stream)[1] == flow.n_tokens:
            open_sites.append(site)
        else:
            reason = "it has another number of tokens than the first" if obstacle is None else obstacle.describe()
            skipped.append((site.block, reason))
    return MergeSites(tuple(open_sites), flow, tuple(sorted(skipped)))


def _find_site(graph: Graph, block: Block) -> MergeSite | str:
    """The site of a block, or why it has none."""
    attention = block.attention
    residual = None if attention is None else attention.residual
    if graph.model.opset < MIN_OPSET:
        return f"merging takes operators of opset {MIN_OPSET}, and this file is of {graph.model.opset}"
    if attention is None or "k" not in attention.operands:
        return "its attention or its keys were not recognised"
    if residual is None or residual.skip is None:
        return "the residual addition behind its attention is not an addition of the graph"
    dims = graph.dims(residual.stream)
    if len(dims) != 3 or dims[0] != graph.n_images:
        return f"its residual stream is not [images, tokens, d_model] but {list(dims)} for {graph.n_images} images"
    source = attention.operands["k"].linear.input
    while len(graph.dims(source)) != 3 and source in graph.producers and graph.producers[source].op in RESHAPES:
        source = graph.producers[source].inputs[0]
    if graph.dims(source)[:2] != dims[:2]:
        return "its keys are not made token by token from its input, as with windows"
    if any(graph.types.get(name) not in FLOAT_TYPES for name in (source, residual.stream)):
        return "its tensors are not floating-point numbers"
    return MergeSite(block.idx, residual.stream, source, graph.producers[residual.stream].position)


@dataclass(frozen=True, eq=False)
class MergeTokens(Pass):
    """Tokens merged at some blocks, in their order."""

    name = "merge"
    requires = "residual streams in front of nothing that knows tokens by their position"
    ensures = "tokens that are means of those that they stand for"

    steps: tuple[MergeStep, ...]

    @property
    def choices(self) -> tuple[str, ...]:
        """Which tokens merge with which."""
        return list_assignments(self.steps)

    def run(self, graph: Graph) -> onnx.ModelProto:
        """The graph with fewer tokens."""
        return merge_tokens(graph, self.steps)

    def whole(self, graph: Graph) -> MergeTokens:  # noqa: ARG002
        """Tokens in another order, each standing for itself."""
        return MergeTokens(tuple(replace(step, n_merged=0) for step in self.steps))

    def padded(self) -> MergeTokens:
        """The same: tokens have no width."""
        return self

    def check(
        self,
        graph: Graph,
        before: Model,  # noqa: ARG002
        after: Model,
        feeds: Mapping[str, np.ndarray],
        provider: str,
    ) -> CheckResult:
        """Every step in the finished model on a real batch, against NumPy on its own input."""
        n_special = trace_tokens(graph, [step.site.stream for step in self.steps]).n_special
        whats = ("order", "partner", "tokens", "sizes")
        taps = [t for s in self.steps for t in (s.site.stream, s.site.source, *(s.tensor(what) for what in whats))]
        arrays = open_tapped(after, taps, provider=provider).run(feeds)
        tolerance = TOLERANCE[graph.float_type]
        sizes: np.ndarray | None = None
        worst = 0.0
        for step in self.steps:
            x, h = arrays[step.site.source], arrays[step.site.stream]
            order, partner, found, new_sizes = (arrays[step.tensor(what)] for what in whats)
            sizes = np.ones((*h.shape[:2], 1)) if sizes is None else sizes
            replay = replay_merge(step, n_special, h, sizes, order, partner)
            fair = explain_choice(step, n_special, x, sizes, order, partner) <= max(tolerance, CHOICE_TOLERANCE)
            worst = max(worst, relative_difference(found, replay[0]), relative_difference(new_sizes, replay[1]))
            worst, sizes = worst if fair else float("inf"), new_sizes
        detail = f"{len(self.steps)} steps of the merged graph against NumPy: what merges, and what comes of it"
        return CheckResult(self.name, bool(worst <= tolerance), worst, tolerance, detail)


CHOICE_TOLERANCE = 2e-3
"""Of a cosine, by which a choice may be worse than NumPy's: near-ties fall either way, in 16 bits more than in 32."""


def replay_merge(
    step: MergeStep, n_special: int, h: np.ndarray, sizes: np.ndarray, order: np.ndarray, partner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, sizes) behind a step by NumPy, for what the graph chose to merge.

    Args:
        h: [B, n, d_model] in front of it.
        sizes: [B, n, 1].
        order: [B, n_sources, 1], sources by falling cost: the last `n_merged` merge.
        partner: [B, n_sources], the target of each, counted behind the special ones.
    """
    sources, targets = part_tokens(h.shape[1], n_special)
    tokens, new_sizes = [], []
    for row, size, by_cost, to in zip(
        h.astype(np.float64), sizes.astype(np.float64), order[..., 0].astype(int), partner.astype(int), strict=True
    ):
        n_kept = len(sources) - step.n_merged
        kept, gone = sources[by_cost[:n_kept]], by_cost[n_kept:]
        total, count = (row * size)[targets], size[targets]
        np.add.at(total, n_special + to[gone], (row * size)[sources[gone]])
        np.add.at(count, n_special + to[gone], size[sources[gone]])
        tokens.append(np.concatenate([total / count, row[kept]]))
        new_sizes.append(np.concatenate([count, size[kept]]))
    return np.stack(tokens), np.stack(new_sizes)


def explain_choice(
    step: MergeStep, n_special: int, x: np.ndarray, sizes: np.ndarray, order: np.ndarray, partner: np.ndarray
) -> float:
    """By how much a cosine or cost is worse than the best that NumPy finds; infinite where tokens are lost or doubled.

    Args:
        x: the source [B, n, d_model]; the others as for `replay_merge`.
    """
    sources, targets = part_tokens(x.shape[1], n_special)
    by_cost, to = order[..., 0].astype(int), partner.astype(int)
    if not np.array_equal(np.sort(by_cost, axis=1), np.broadcast_to(np.arange(len(sources)), by_cost.shape)):
        return float("inf")
    f = x.astype(np.float64) @ step.metric.directions
    f = f if step.metric.offset is None else f + step.metric.offset
    f /= np.maximum(np.linalg.norm(f, axis=-1, keepdims=True), 1e-12)
    cosine = f[:, sources] @ f[:, targets[n_special:]].swapaxes(1, 2)
    nearest = cosine.max(axis=2)
    short = nearest - np.take_along_axis(cosine, to[..., None], axis=2)[..., 0]
    weight = np.ones_like(nearest) if step.metric.importance is None else np.exp(x[:, sources] @ step.metric.importance)
    weight = weight * sizes[:, sources, 0]
    cost = np.take_along_axis((1 - nearest) * weight, by_cost, axis=1)
    n_kept = len(sources) - step.n_merged
    if not step.n_merged:
        return float(short.max())
    disorder = (cost[:, n_kept:].max(axis=1) - cost[:, :n_kept].min(axis=1)) / weight.mean(axis=1)
    return float(max(short.max(), disorder.max()))


def part_tokens(n_tokens: int, n_special: int) -> tuple[np.ndarray, np.ndarray]:
    """(sources, targets): every other token behind the special ones, and all the rest, special ones in front."""
    sources, others = np.arange(n_special, n_tokens, 2), np.arange(n_special + 1, n_tokens, 2)
    return sources, np.concatenate([np.arange(n_special), others])


def merge_tokens(graph: Graph, steps: Sequence[MergeStep]) -> onnx.ModelProto:
    """The model with tokens merged, special ones and targets in front of the sources that stay.

    Raises:
        CheckFailedError: something in this graph knows tokens by their position.
    """
    flow = trace_tokens(graph, [step.site.stream for step in steps])
    first = graph.producers[steps[0].site.stream].position
    obstacle = flow.obstacle_behind(first)
    if obstacle is not None:
        raise CheckFailedError(
            f"tokens can not be merged in this graph: {obstacle.describe()}. Nothing was written. This is a fault of "
            "corp-onnx on this graph: report it with the output of inspect, and use --no-merge."
        )
    surgeon = Surgeon(graph)
    n_tokens, sizes = flow.n_tokens, None
    levels: list[_Level] = []
    for step in steps:
        merged, sizes = _merge(surgeon, step, flow.n_special, n_tokens, sizes)
        for node, idx in graph.users(step.site.stream):
            surgeon.replace_input(Slot(node, idx), merged)
        n_tokens -= step.n_merged
        levels.append(_Level(graph.producers[step.site.stream], n_tokens, sizes))
    _follow(surgeon, flow, levels)
    return surgeon.finish({})


@dataclass(frozen=True, slots=True, eq=False)
class _Emitter:
    """New nodes in a row behind a node of the graph."""

    surgeon: Surgeon
    place: Node
    prefix: str

    def __call__(self, op: str, *inputs: Any, name: str = "", **attrs: Any) -> Any:
        return self.several(op, (name or op,), *inputs, **attrs)[0]

    def several(self, op: str, names: Sequence[str], *inputs: Any, **attrs: Any) -> list[Any]:
        """The outputs of a new node."""
        outputs = [self.surgeon.variable(f"{self.prefix}/{name}") for name in names]
        self.surgeon.insert(op, list(inputs), outputs, self.place, **attrs)
        return outputs

    def ints(self, *values: Any) -> Any:
        return self.surgeon.constant(f"{self.prefix}/idx", np.array(values, dtype=np.int64).reshape(-1))

    def floats(self, values: Any, like: str = "") -> Any:
        """A stored tensor in float32, or in the type of a tensor of the graph."""
        types = self.surgeon.graph.types
        kind = onnx.helper.tensor_dtype_to_np_dtype(types[like]) if like else np.dtype(np.float32)
        return self.surgeon.constant(f"{self.prefix}/number", np.asarray(values).astype(kind))

    def cast(self, tensor: Any, to: int, came: int) -> Any:
        """A tensor in another type; itself where it has that."""
        return tensor if to == came else self("Cast", tensor, to=to)

    def reduce_max(self, x: Any, axis: int) -> Any:
        if self.surgeon.graph.model.opset >= REDUCE_AXES_AS_INPUT:
            return self("ReduceMax", x, self.ints(axis), keepdims=1)
        return self("ReduceMax", x, axes=[axis], keepdims=1)


FLOAT32 = int(TensorProto.FLOAT)


def _merge(surgeon: Surgeon, step: MergeStep, n_special: int, n_tokens: int, sizes: Any) -> tuple[Any, Any]:
    """The tokens [B, n - n_merged, d_model] in the model's precision, and their sizes [B, n - n_merged, 1]."""
    graph, site = surgeon.graph, step.site
    emit = _Emitter(surgeon, graph.producers[site.stream], f"{PREFIX}/{site.block}")
    kind = graph.types[site.stream]
    sources, targets = part_tokens(n_tokens, n_special)
    n_kept = len(sources) - step.n_merged
    of_sources = emit.ints(*sources)
    partner, order = _choose(emit, step, of_sources, len(sources), targets[n_special:], sizes)
    h = emit.cast(surgeon.tensor(site.stream), FLOAT32, kind)
    if sizes is None:
        rows = emit("Pad", h, emit.ints(0, 0, 0, 0, 0, 1), emit.floats(1.0))  # [B, n, d_model + 1]
    else:
        rows = emit("Concat", emit("Mul", h, sizes), sizes, axis=2)
    source_rows = emit("Gather", rows, of_sources, axis=1)
    target_rows = emit("Gather", rows, emit.ints(*targets), axis=1)
    if step.n_merged:
        kept, gone = emit.several("Split", ("kept", "gone"), order, emit.ints(n_kept, step.n_merged), axis=1)
        gone_rows = emit("GatherND", source_rows, gone, batch_dims=1)
        to = emit("GatherND", partner, gone, batch_dims=1)  # [B, n_merged]
        to = emit("Add", to, emit.ints(n_special)) if n_special else to
        moved = emit("OneHot", to, emit.ints(len(targets)), emit.floats([0.0, 1.0]), axis=1)
        target_rows = emit("Add", target_rows, emit("MatMul", moved, gone_rows))
    else:
        kept = order
    kept_rows = emit("GatherND", source_rows, kept, batch_dims=1)
    joined = emit("Concat", target_rows, kept_rows, axis=1)
    d_model = graph.dims(site.stream)[2]
    total, sizes = emit.several("Split", ("total", "sizes"), joined, emit.ints(d_model, 1), axis=2)
    if kind == FLOAT32:
        return emit("Div", total, sizes, name="tokens"), sizes
    return emit("Cast", emit("Div", total, sizes), name="tokens", to=kind), sizes


def _choose(
    emit: _Emitter, step: MergeStep, of_sources: Any, n_sources: int, targets: np.ndarray, sizes: Any
) -> tuple[Any, Any]:
    """(partner [B, n_sources], order [B, n_sources, 1] by falling cost)."""
    graph, metric, source = emit.surgeon.graph, step.metric, step.site.source
    n_directions = metric.directions.shape[1]
    columns = metric.directions if metric.importance is None else np.c_[metric.directions, metric.importance]
    z = emit("MatMul", emit.surgeon.tensor(source), emit.floats(columns, like=source))
    z = emit.cast(z, FLOAT32, graph.types[source])
    f, importance = z, None
    if metric.importance is not None:
        f, importance = emit.several("Split", ("directions", "importance"), z, emit.ints(n_directions, 1), axis=2)
    if metric.offset is not None:
        f = emit("Add", f, emit.floats(metric.offset))
    f = emit("LpNormalization", f, axis=2, p=2)
    f_sources, f_targets = (emit("Gather", f, idx, axis=1) for idx in (of_sources, emit.ints(*targets)))
    cosine = emit("MatMul", f_sources, emit("Transpose", f_targets, perm=[0, 2, 1]))  # [B, n_sources, n_targets]
    partner = emit("ArgMax", cosine, axis=2, keepdims=0, name="partner")
    cost = emit("Sub", emit.floats([1.0]), emit.reduce_max(cosine, 2))
    if importance is not None:
        cost = emit("Mul", cost, emit("Exp", emit("Gather", importance, of_sources, axis=1)))
    if sizes is not None:
        cost = emit("Mul", cost, emit("Gather", sizes, of_sources, axis=1))
    return partner, emit.several("TopK", ("costs", "order"), cost, emit.ints(n_sources), axis=1)[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """What holds behind a step: from which node on, how many tokens there are, and the tensor of their sizes."""

    start: Node
    n_tokens: int
    sizes: Any


def _follow(surgeon: Surgeon, flow: TokenFlow, levels: Sequence[_Level]) -> None:
    """Sizes into every later softmax and mean over tokens, and new numbers of tokens into Reshapes."""
    graph = surgeon.graph
    logs: dict[tuple[object, ...], Any] = {}

    def level_of(node: Node) -> _Level | None:
        return next((level for level in reversed(levels) if level.start.position < node.position), None)

    for node in flow.softmaxes:
        if (level := level_of(node)) is not None:
            _weigh_logits(surgeon, node, flow, level, logs)
    for node, tokens in flow.means:
        if (level := level_of(node)) is not None:
            _weigh_mean(surgeon, node, tokens, level, flow.n_tokens)
    for node, tokens in flow.spelled:
        if (level := level_of(node)) is not None:
            plain = tokens.is_plain(graph.dims(node.output))
            n_tokens = level.n_tokens - tokens.start
            surgeon.respell(node, {tokens.axis: n_tokens if plain else -1})


def _weigh_logits(
    surgeon: Surgeon, node: Node, flow: TokenFlow, level: _Level, logs: dict[tuple[object, ...], Any]
) -> None:
    """Add log(size) of every key: of a softmax to its input, of a fused operator as its mask.

    Args:
        logs: what was made for other softmaxes of the same level and shape, to be used again.
    """
    graph, data = surgeon.graph, node.inputs[0]
    kind, dims = graph.types[data], graph.dims(data)
    emit = _Emitter(surgeon, level.start, f"{PREFIX}/log_sizes")
    if node.op in SOFTMAXES:
        n_folded = dims[0] // graph.n_images  # heads that are folded into the axis of images
        key = (level.start.position, kind, len(dims), n_folded)
        if key not in logs:
            log = emit("Reshape", emit("Log", level.sizes), emit.ints(-1, 1, level.n_tokens))
            log = emit("Concat", *[log] * n_folded, axis=1) if n_folded > 1 else log
            log = emit("Reshape", log, emit.ints(-1, *[1] * (len(dims) - 2), level.n_tokens))
            logs[key] = emit.cast(log, kind, FLOAT32)
        front = _Emitter(surgeon, surgeon.before(node), f"{PREFIX}/logits")
        surgeon.replace_input(Slot(node, 0), front("Add", surgeon.tensor(data), logs[key]))
        return
    n_queries = level.n_tokens if flow.axes.get(data) else dims[-2]
    key = (level.start.position, kind, n_queries)
    if key not in logs:  # these operators want a row for every query
        log = emit("Reshape", emit("Log", level.sizes), emit.ints(-1, 1, 1, level.n_tokens))
        log = emit("Add", log, emit.floats(np.zeros((1, 1, n_queries, 1))))
        logs[key] = emit.cast(log, kind, FLOAT32)
    surgeon.add_input(node, mask_slot(node), logs[key])


def _weigh_mean(surgeon: Surgeon, node: Node, tokens: Tokens, level: _Level, n_tokens: int) -> None:
    """Let a mean over tokens count sizes: sum of size * x over the number of tokens that there were."""
    graph, data = surgeon.graph, node.inputs[0]
    emit = _Emitter(surgeon, surgeon.before(node), f"{PREFIX}/mean")
    share = (level.n_tokens - tokens.start) / (n_tokens - tokens.start)
    weights = emit("Mul", level.sizes, emit.floats([share]))
    if tokens.start:
        weights = emit("Slice", weights, emit.ints(tokens.start), emit.ints(level.n_tokens), emit.ints(1))
    weights = emit.cast(weights, graph.types[data], FLOAT32)
    surgeon.replace_input(Slot(node, 0), emit("Mul", surgeon.tensor(data), weights))
