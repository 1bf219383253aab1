"""What a graph has to know behind a merge: sizes in softmaxes and means over tokens, new numbers in Reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from corp_onnx.graph import Node
from corp_onnx.graph.operators import SOFTMAXES
from corp_onnx.graph.slots import Slot
from corp_onnx.graph.surgeon import Surgeon
from corp_onnx.tokens.counted import Tokens
from corp_onnx.tokens.emit import FLOAT32, Emitter
from corp_onnx.tokens.flow import TokenFlow
from corp_onnx.tokens.forward import mask_slot
from corp_onnx.tokens.sites import PREFIX


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """What holds behind a step: from which node on, how many tokens there are, and the tensor of their sizes."""

    start: Node
    n_tokens: int
    sizes: Any


def follow_merges(surgeon: Surgeon, flow: TokenFlow, levels: Sequence[Level]) -> None:
    """Sizes into every later softmax and mean over tokens, and new numbers of tokens into Reshapes."""
    graph = surgeon.graph
    logs: dict[tuple[object, ...], Any] = {}

    def level_of(node: Node) -> Level | None:
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
    surgeon: Surgeon, node: Node, flow: TokenFlow, level: Level, logs: dict[tuple[object, ...], Any]
) -> None:
    """Add log(size) of every key: of a softmax to its input, of a fused operator as its mask.

    Args:
        logs: what was made for other softmaxes of the same level and shape, to be used again.
    """
    graph, data = surgeon.graph, node.inputs[0]
    kind, dims = graph.types[data], graph.dims(data)
    emit = Emitter(surgeon, level.start, f"{PREFIX}/log_sizes")
    if node.op in SOFTMAXES:
        n_folded = dims[0] // graph.n_images  # heads that are folded into the axis of images
        key = (level.start.position, kind, len(dims), n_folded)
        if key not in logs:
            log = emit("Reshape", emit("Log", level.sizes), emit.ints(-1, 1, level.n_tokens))
            log = emit("Concat", *[log] * n_folded, axis=1) if n_folded > 1 else log
            log = emit("Reshape", log, emit.ints(-1, *[1] * (len(dims) - 2), level.n_tokens))
            logs[key] = emit.cast(log, kind, FLOAT32)
        front = Emitter(surgeon, surgeon.before(node), f"{PREFIX}/logits")
        surgeon.replace_input(Slot(node, 0), front("Add", surgeon.tensor(data), logs[key]))
        return
    n_queries = level.n_tokens if flow.axes.get(data) else dims[-2]
    key = (level.start.position, kind, n_queries)
    if key not in logs:  # these operators want a row for every query
        log = emit("Reshape", emit("Log", level.sizes), emit.ints(-1, 1, 1, level.n_tokens))
        log = emit("Add", log, emit.floats(np.zeros((1, 1, n_queries, 1))))
        logs[key] = emit.cast(log, kind, FLOAT32)
    surgeon.add_input(node, mask_slot(node), logs[key])


def _weigh_mean(surgeon: Surgeon, node: Node, tokens: Tokens, level: Level, n_tokens: int) -> None:
    """Let a mean over tokens count sizes: sum of size * x over the number of tokens that there were."""
    graph, data = surgeon.graph, node.inputs[0]
    emit = Emitter(surgeon, surgeon.before(node), f"{PREFIX}/mean")
    share = (level.n_tokens - tokens.start) / (n_tokens - tokens.start)
    weights = emit("Mul", level.sizes, emit.floats([share]))
    if tokens.start:
        weights = emit("Slice", weights, emit.ints(tokens.start), emit.ints(level.n_tokens), emit.ints(1))
    weights = emit.cast(weights, graph.types[data], FLOAT32)
    surgeon.replace_input(Slot(node, 0), emit("Mul", surgeon.tensor(data), weights))
