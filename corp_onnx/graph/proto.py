"""Copies of an ONNX message that share or drop its weights: a skeleton to check, a float32 twin to run.

Enters a `ModelProto`, which is never changed; leaves a new one. Nothing here knows shapes or data flow
(see dataflow.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError, Message
from onnx import AttributeProto, TensorProto, external_data_helper, numpy_helper

from corp_onnx.graph.external import read_tensor
from corp_onnx.memory import require_memory

SMALL_ELEMENTS = 4096
"""Initializers up to this size stay inside a skeleton: shapes, scales and split sizes are all smaller."""

SERIALIZED = 3
"""Times the bytes of the weights that protobuf holds at once: its buffer doubles, and is then copied."""

ROOM = 2**25
"""For the rest of a message, in bytes."""

SHARED_TYPES = {kind: onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8,
    TensorProto.UINT8)}  # fmt: skip
"""Element types that NumPy and ONNX Runtime hold alike."""

INFERENCE_ERRORS = (onnx.shape_inference.InferenceError, RuntimeError, ValueError)
"""What onnx's shape inference raises for a message that it can not follow; ONNX Runtime may run it all the same."""

TYPE_ATTRIBUTES = frozenset({"to", "dtype", "stash_type", "softmax_precision", "output_datatype"})
"""Integer attributes that name an element type."""


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model whose large weights carry shapes but no bytes: for checks that only read the structure."""
    light = onnx.ModelProto()
    light.CopyFrom(without_weights(proto))
    light.graph.initializer.extend(map(outline, proto.graph.initializer))
    return light


def outline(tensor: TensorProto) -> TensorProto:
    """A stored tensor whose bytes are left out where they are many; a small one as it is."""
    if math.prod(tensor.dims) <= SMALL_ELEMENTS and not external_data_helper.uses_external_data(tensor):
        return tensor
    kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    kept.data_location = TensorProto.EXTERNAL
    kept.external_data.add(key="location", value="weights")
    return kept


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model with an empty initializer list; the weights are never copied on the way."""
    light = onnx.ModelProto()
    _copy_fields(proto, light, leave_out="graph")
    _copy_fields(proto.graph, light.graph, leave_out="initializer")
    return light


def without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What a model says besides its graph: versions, operator sets, metadata."""
    light = onnx.ModelProto()
    _copy_fields(proto, light, leave_out="graph")
    light.graph.name = proto.graph.name
    return light


def _copy_fields(source: Any, target: Any, leave_out: str) -> None:
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(target, field.name, value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def serialize(proto: onnx.ModelProto) -> bytes:
    """The bytes of a message.

    Raises:
        MemoryError: there is none left; protobuf says no more than that it failed.
        ValueError: the message is larger than any may be.
    """
    stored = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    require_memory(SERIALIZED * stored + ROOM)
    try:
        return proto.SerializeToString()
    except EncodeError as error:
        raise MemoryError from error


def detach_weights(
    proto: onnx.ModelProto, more: Iterable[TensorProto] = ()
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A message whose large weights lie outside of it, and these: so that a runtime can share them with us.

    Args:
        more: initializers that are to be in it besides its own.
    """
    light, arrays = without_weights(proto), dict[str, np.ndarray]()
    read = {name for node in proto.graph.node for name in (*node.input, *captured_names(node))}
    for tensor in (*proto.graph.initializer, *more):
        array = _share(tensor) if tensor.name in read else None  # ONNX Runtime drops others, and misses them then
        if array is None:
            light.graph.initializer.append(tensor)
            continue
        arrays[tensor.name] = array
        stub = light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="memory")
    return light, arrays


def _share(tensor: TensorProto) -> np.ndarray | None:
    """A large weight that is stored in the message as it is in memory; None for any other."""
    kind: Any = tensor.data_type
    dtype, n = SHARED_TYPES.get(kind), math.prod(tensor.dims)
    if dtype is None or n <= SMALL_ELEMENTS or not tensor.HasField("raw_data") or sys.byteorder != "little":
        return None
    data = tensor.raw_data
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims)) if len(data) == n * dtype.itemsize else None


def names_in_use(proto: onnx.ModelProto) -> set[str]:
    """Every tensor name of the main graph and of the graphs inside its nodes."""
    return {name for graph in [proto.graph, *_subgraphs(proto.graph)] for name in _tensor_names(graph)}


def _tensor_names(graph: onnx.GraphProto) -> Iterator[str]:
    named: Sequence[Any] = [*graph.input, *graph.output, *graph.initializer]
    yield from (value.name for value in named)
    yield from (name for node in graph.node for name in [*node.input, *node.output])


def node_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside an If, Loop or Scan."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:  # of every node of every graph that is read
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of an If, Loop or Scan read from around them."""
    names: set[str] = set()
    for graph in node_graphs(node):
        inner = {o for n in graph.node for o in n.output} | {i.name for i in (*graph.initializer, *graph.input)}
        reads = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
        reads |= {c for n in graph.node for c in captured_names(n)}
        names |= reads - inner - {""}
    return names


def reach_back(
    graph: onnx.GraphProto, fed: Collection[str], read: Iterable[str], given: Collection[str] = ()
) -> tuple[set[int], set[str]]:
    """(positions of the nodes, inputs or tensors given) that the tensors read depend on, stopping at those fed."""
    made = ((name, position) for position, node in enumerate(graph.node) for name in node.output)
    makers = {name: position for name, position in made if name and name not in given}
    inputs = {i.name for i in graph.input} | {*given}
    needed: set[int] = set()
    sources: set[str] = set()
    todo = [name for name in read if name not in fed]
    while todo:
        name = todo.pop()
        if name not in makers:
            if name in inputs:
                sources.add(name)
            continue
        if makers[name] in needed:
            continue
        needed.add(makers[name])
        node = graph.node[makers[name]]
        todo += [i for i in (*node.input, *captured_names(node)) if i and i not in fed]
    return needed, sources


def find_broken_text(message: Message) -> bytes | None:
    """A string of a message that is not UTF-8; None where there is none. protobuf gives it as bytes, or raises."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            texts = [value] if isinstance(value, (str, bytes)) else value
            broken = next((text for text in texts if isinstance(text, bytes)), None)
        elif field.type == field.TYPE_MESSAGE:
            inner = [value] if isinstance(value, Message) else value
            broken = next((text for one in inner if (text := find_broken_text(one)) is not None), None)
        else:
            continue
        if broken is not None:
            return broken
    return None


def _subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for inner in node_graphs(node):
            yield inner
            yield from _subgraphs(inner)


def uses_operator(proto: onnx.ModelProto, op: str) -> bool:
    """Whether a node of the main graph, or of the graphs inside its nodes, is of this type."""
    return any(node.op_type == op for graph in [proto.graph, *_subgraphs(proto.graph)] for node in graph.node)


def has_bfloat16(proto: onnx.ModelProto) -> bool:
    """Whether a weight or an input is bfloat16."""
    stored = any(t.data_type == TensorProto.BFLOAT16 for t in proto.graph.initializer)
    return stored or any(v.type.tensor_type.elem_type == TensorProto.BFLOAT16 for v in proto.graph.input)


def feed_dtype(element_type: int) -> np.dtype[Any]:
    """NumPy's type for feeding a tensor: its own, and float32 for bfloat16 (see `to_float32`)."""
    if element_type == TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    return onnx.helper.tensor_dtype_to_np_dtype(element_type)


def to_float32(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """A copy in which every bfloat16 is float32: NumPy has no bfloat16 to feed, ONNX Runtime no CPU kernels for it.

    Every bfloat16 number is a float32 number, so the weights are the same; activations are rounded later.

    Args:
        folder: where names of external data start from.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(without_weights(proto))
    for tensor in proto.graph.initializer:
        twin.graph.initializer.append(_widen(tensor, folder) if tensor.data_type == TensorProto.BFLOAT16 else tensor)
    for graph in [twin.graph, *_subgraphs(twin.graph)]:
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.BFLOAT16:  # those of an inner graph
                tensor.CopyFrom(_widen(tensor, folder))
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for attribute in (a for node in graph.node for a in node.attribute):
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.BFLOAT16:
                attribute.t.CopyFrom(_widen(attribute.t, folder))
            elif attribute.name in TYPE_ATTRIBUTES and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    return twin


def _widen(tensor: TensorProto, folder: Path) -> TensorProto:
    return numpy_helper.from_array(read_tensor(tensor, folder).astype(np.float32), tensor.name)
