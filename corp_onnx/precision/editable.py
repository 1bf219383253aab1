"""A copy of a model that a converter may change: every node named, outputs typed, float32 throughout.

Enters a probed `Graph`; leaves a `ModelProto` that shares nothing with it. ONNX Runtime's converters choose nodes by
name and weights by being initializers, and exporters keep neither promise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from corp_onnx.graph import Graph
from corp_onnx.graph.proto import has_bfloat16, names_in_use, to_float32

STORED_SUFFIX = ".stored"
"""Of the name of a constant that was computed from stored ones."""


def copy_named(graph: Graph) -> onnx.ModelProto:
    """The model with bfloat16 widened and a name for every node, in their order; what lies outside stays there."""
    model = graph.model
    if has_bfloat16(model.proto):
        proto = to_float32(model.proto, model.folder)
    else:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
    for node, name in zip(proto.graph.node, node_names(proto), strict=True):
        node.name = name
    _declare_outputs(graph, proto)
    return proto


def node_names(proto: onnx.ModelProto) -> list[str]:
    """A name for every node of the main graph, by position: its own where it has one that no node before it has."""
    names: list[str] = []
    taken: set[str] = set()
    for position, node in enumerate(proto.graph.node):
        is_own = node.name and node.name not in taken
        names.append(node.name if is_own else f"{node.op_type}_{position}_{node.output[0]}")
        taken.add(names[-1])
    return names


def _declare_outputs(graph: Graph, proto: onnx.ModelProto) -> None:
    """Say the type of outputs that have none: ONNX Runtime finds it, its converters and the onnx checker do not."""
    for value in proto.graph.output:
        if not value.HasField("type") and value.name in graph.types:
            wide = graph.types[value.name] == TensorProto.BFLOAT16
            value.type.tensor_type.elem_type = TensorProto.FLOAT if wide else graph.types[value.name]


def store_constants(graph: Graph, proto: onnx.ModelProto, slots: Iterable[tuple[int, int]]) -> None:
    """Make initializers of constants that are Constant nodes, or lie behind a Transpose, Cast or Identity.

    Args:
        proto: a copy of the graph with the same node positions.
        slots: (position of a node, index of its input); what is stored already stays as it is.
    """
    taken, made = names_in_use(proto), dict[str, str]()
    for position, idx in slots:
        old = proto.graph.node[position].input[idx]
        if old not in made and old not in graph.initializers:
            value = graph.stored(old)
            made[old] = fresh_name(f"{old}{STORED_SUFFIX}", taken)
            wide = value.astype(np.float32) if value.dtype.kind in "fV" else value
            proto.graph.initializer.append(numpy_helper.from_array(np.array(wide, order="C"), made[old]))
        proto.graph.node[position].input[idx] = made.get(old, old)


def fresh_name(hint: str, taken: set[str]) -> str:
    """A name that is not taken, and is from now on."""
    name, count = hint, 1
    while name in taken:
        name, count = f"{hint}_{count}", count + 1
    taken.add(name)
    return name
