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

from corp_onnx.errors import CheckFailedError
from corp_onnx.graph import Graph, Model
from corp_onnx.graph.passes import Pass
from corp_onnx.graph.slots import Slot
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.results import CheckResult
from corp_onnx.run.comparison import TOLERANCE, relative_difference
from corp_onnx.run.tapped import open_tapped
from corp_onnx.tokens.emit import FLOAT32, Emitter
from corp_onnx.tokens.flow import trace_tokens
from corp_onnx.tokens.follow import Level, follow_merges
from corp_onnx.tokens.replay import CHOICE_TOLERANCE, explain_choice, replay_merge
from corp_onnx.tokens.sites import PREFIX, MergeStep, list_assignments, part_tokens


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
        arrays = open_tapped(after, taps, provider=provider, once=True).run(feeds)
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
    levels: list[Level] = []
    for step in steps:
        merged, sizes = _merge(surgeon, step, flow.n_special, n_tokens, sizes)
        for node, idx in graph.users(step.site.stream):
            surgeon.replace_input(Slot(node, idx), merged)
        n_tokens -= step.n_merged
        levels.append(Level(graph.producers[step.site.stream], n_tokens, sizes))
    follow_merges(surgeon, flow, levels)
    return surgeon.finish({})


def _merge(surgeon: Surgeon, step: MergeStep, n_special: int, n_tokens: int, sizes: Any) -> tuple[Any, Any]:
    """The tokens [B, n - n_merged, d_model] in the model's precision, and their sizes [B, n - n_merged, 1]."""
    graph, site = surgeon.graph, step.site
    emit = Emitter(surgeon, graph.producers[site.stream], f"{PREFIX}/{site.block}")
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
        moved = emit("OneHot", to, emit.count(len(targets)), emit.floats([0.0, 1.0]), axis=1)
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
    emit: Emitter, step: MergeStep, of_sources: Any, n_sources: int, targets: np.ndarray, sizes: Any
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
