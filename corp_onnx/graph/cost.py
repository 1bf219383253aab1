"""What a graph costs: multiply-accumulates by node and in all, from the shapes of the probe run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from corp_onnx.graph.operators import CONVOLUTIONS, GEMMS, MATMULS, OPERATORS, SPREADING


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one image, by node output name, and their sum."""

    by_node: dict[str, int]

    @property
    def total(self) -> int:
        """MACs of the whole model for one image."""
        return sum(self.by_node.values())


class Probed(Protocol):
    """What is asked of a `Graph`, which asks this module for its cost."""

    @property
    def nodes(self) -> Sequence[Any]:
        """Its operators."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the probe run."""
        ...

    @property
    def n_images(self) -> int:
        """Images of the probe run."""
        ...

    def dims(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, empty where it is not known."""
        ...


def sum_macs(graph: Probed) -> Cost:
    """Multiply-accumulates of convolutions, matrix products and attention operators, per image.

    Source: the shapes of the probe run. Element-wise work, normalisations and softmax are not counted, as is usual.
    """
    macs: Counter[str] = Counter()
    for node in graph.nodes:
        if count := _node_macs(graph, node.op, node.inputs, node.output, node.attrs):
            macs[node.output] = count // graph.n_images
    return Cost(dict(macs))


def _node_macs(graph: Probed, op: str, inputs: tuple[str, ...], output: str, attrs: dict[str, object]) -> int:
    if op in MATMULS:
        depth = graph.dims(inputs[0])[-2 if attrs.get("transA") else -1]
        return int(np.prod(graph.shapes[output])) * depth
    if op in GEMMS:
        rows, cols = graph.dims(inputs[0])
        return int(np.prod(graph.shapes[output])) * (rows if attrs.get("transA") else cols)
    if op in CONVOLUTIONS:
        weight = graph.dims(inputs[OPERATORS[op].factor])
        numbers = graph.dims(inputs[0]) if op in SPREADING else graph.shapes[output]
        return int(np.prod(numbers)) * int(np.prod(weight[1:]))
    if op in ("Attention", "QAttention"):
        return _attention_macs(graph, inputs, attrs)
    if op == "MultiHeadAttention":
        return _multi_head_macs(graph, inputs)
    return 0


def _attention_macs(graph: Probed, inputs: tuple[str, ...], attrs: dict[str, object]) -> int:
    """The opset-23 operator on [B, H, N, d] or [B, N, H*d], or com.microsoft's two, which hold the projections too."""
    first, second = graph.dims(inputs[0]), graph.dims(inputs[1])
    if len(second) == 2:  # com.microsoft.Attention and QAttention(x [B, N, d_model], weight [d_model, q + k + v])
        batch, n_tokens, d_model = first
        widths = attrs.get("qkv_hidden_sizes") or [second[1] // 3] * 3
        d_q, _, d_v = widths  # type: ignore[misc]
        return batch * n_tokens * (d_model * second[1] + n_tokens * (d_q + d_v))
    third = graph.dims(inputs[2])
    if len(first) == 4:
        batch, n_heads, n_q, d_qk = first
        return batch * n_heads * n_q * second[2] * (d_qk + third[3])
    return first[0] * first[1] * second[1] * (first[2] + third[2])


def _multi_head_macs(graph: Probed, inputs: tuple[str, ...]) -> int:
    query = graph.dims(inputs[0])
    if len(query) == 5:  # packed [B, N, H, 3, d]
        batch, n_q, n_heads, _, d_head = query
        return 2 * batch * n_heads * n_q * n_q * d_head
    key, value = graph.dims(inputs[1]), graph.dims(inputs[2])
    if len(key) == 5:  # packed key and value [B, M, H, 2, d]
        return 2 * query[0] * query[1] * key[1] * key[2] * key[4]
    if len(key) == 4:  # [B, H, M, d]
        return query[0] * key[1] * query[1] * key[2] * (key[3] + value[3])
    return query[0] * query[1] * key[1] * (query[2] + value[2])
