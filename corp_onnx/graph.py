"""An ONNX file in and out: load it, look at it by data flow, open it, save it whole or not at all.

Enters a path; leaves a `Model` (the parsed file, never mutated) and a `Graph` (its nodes with producers, consumers,
constants, and the shapes that a real run gave). Weights that live in external files are read only when asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from corp_onnx.errors import ModelError

MAX_PROTO_BYTES = 2**31 - 2**20
"""A protobuf message stops at 2 GiB; a mebibyte is left for the nodes."""

SMALL_ELEMENTS = 4096
"""Initializers up to this size stay inside a skeleton: shapes, scales and split sizes are all smaller."""

FLOAT_TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
QUANTISED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QLinearMatMul",
        "QLinearConv",
        "MatMulNBits",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QAttention",
        "QGemm",
    }
)
CONSTANT_FOLDABLE = frozenset(
    {"Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Concat", "Slice", "Gather", "Mul", "Div"}
    | {"Add", "Sub", "Sqrt", "Neg", "Reciprocal", "Pow", "Split", "Expand", "CastLike", "Flatten", "Shape", "Range"}
)
"""Operators that exporters leave between a stored constant and its use."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A parsed ONNX file. `proto` is never mutated; external weights in it are references into `path.parent`."""

    proto: onnx.ModelProto
    path: Path
    sha256: str

    @property
    def folder(self) -> Path:
        """The folder that relative names of external data start from."""
        return self.path.parent

    @property
    def has_external_data(self) -> bool:
        """Whether any weight lives in another file."""
        return any(external_data_helper.uses_external_data(t) for t in self.proto.graph.initializer)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def metadata(self) -> dict[str, str]:
        """The file's metadata properties."""
        return {p.key: p.value for p in self.proto.metadata_props}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Node:
    """One operator of the graph; identity is its object, `position` its place in topological order."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    position: int
    proto: onnx.NodeProto

    @property
    def output(self) -> str:
        """Name of the first output."""
        return self.outputs[0]

    def __repr__(self) -> str:
        return f"{self.op} '{self.name or self.output}'"


@dataclass(frozen=True, eq=False)
class Graph:
    """The main graph of a model, seen by data flow. `shapes`, `values` and `types` are those of one run (see `probe.py`)."""

    model: Model
    nodes: tuple[Node, ...]
    producers: dict[str, Node]
    consumers: dict[str, tuple[tuple[Node, int], ...]]
    initializers: dict[str, TensorProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    n_images: int = 1
    _folded: dict[str, np.ndarray | None] = field(default_factory=dict)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is stored in the file, possibly behind Identity, Cast, Transpose and their like."""
        if name in self.inputs:
            return False
        if name in self.initializers:
            return True
        node = self.producers.get(name)
        if node is None:
            return False
        if node.op == "Constant":
            return True
        return (
            node.op in CONSTANT_FOLDABLE
            and bool(node.inputs)
            and all(not i or self.is_constant(i) for i in node.inputs)
        )

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a stored tensor, folded through what lies between; None when it is not one."""
        if name in self._folded:
            return self._folded[name]
        if not name or not self.is_constant(name):
            return None
        value = self._fold(name)
        if value is not None and value.size <= SMALL_ELEMENTS:
            self._folded[name] = value
        return value

    def _fold(self, name: str) -> np.ndarray | None:
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name], str(self.model.folder))
        node = self.producers[name]
        feeds = {i: self.constant(i) for i in node.inputs if i}
        return evaluate_node(node, feeds, self.model.opset)[node.outputs.index(name)]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor in the probe run; of a constant, its own."""
        if name in self.shapes:
            return self.shapes[name]
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        if self.is_constant(name):
            value = self.constant(name)
            return None if value is None else value.shape
        return None

    def dims(self, name: str) -> tuple[int, ...]:
        """As `shape`, and empty where it is not known."""
        shape = self.shape(name)
        return () if shape is None else shape

    def value(self, name: str) -> np.ndarray | None:
        """A constant, or what the probe run computed for a small integer or one-element tensor."""
        return self.values[name] if name in self.values else self.constant(name)

    def captured(self, node: Node) -> set[str]:
        """Tensors that the subgraphs of a node read from around it."""
        return _captured(node.proto)

    def users(self, name: str) -> tuple[tuple[Node, int], ...]:
        """(node, input index) of everything that reads a tensor."""
        return self.consumers.get(name, ())

    @property
    def fixed_batch(self) -> bool:
        """Whether the model takes a fixed number of images, `n_images`."""
        return batch_kind(self.model) is not None

    @cached_property
    def float_type(self) -> str:
        """The precision that holds most weight elements: float32, float16, bfloat16 or float64."""
        counts: dict[str, int] = defaultdict(int)
        for tensor in self.initializers.values():
            name = FLOAT_TYPES.get(tensor.data_type)  # type: ignore[arg-type]
            if name is not None:
                counts[name] += math.prod(tensor.dims)
        return max(counts, key=lambda k: counts[k], default="float32")


def load_model(path: Path | str) -> Model:
    """Parse an ONNX file.

    Returns:
        The model; weights in external files are left where they are. Local functions are inlined.

    Raises:
        ModelError: the file is missing, is not ONNX, is quantised, or misses its external data.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give the path of an .onnx file.")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{path}: not a readable ONNX file ({str(error).splitlines()[0]}).") from error
    if not proto.graph.node:
        raise ModelError(f"{path}: parsed, but it has no graph with nodes; is it really an ONNX file?")
    _refuse_quantised(proto, path)
    for tensor in proto.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            info = external_data_helper.ExternalDataInfo(tensor)
            if not (path.parent / info.location).is_file():
                raise ModelError(
                    f"{path}: weight '{tensor.name}' is stored in '{info.location}', which is not beside the model. "
                    f"Copy that file to {path.parent}."
                )
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    return Model(proto=proto, path=path, sha256=hash_file(path))


def _refuse_quantised(proto: onnx.ModelProto, path: Path) -> None:
    found = sorted({n.op_type for n in proto.graph.node if n.op_type in QUANTISED_OPS})
    if found:
        raise ModelError(
            f"{path}: the model is already quantised (it has {', '.join(found)}). Prune the float model first, "
            "then quantise the result."
        )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal (external data is not part of it)."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_graph(model: Model) -> Graph:
    """The main graph of a model by data flow, without shapes (see `probe.probe_graph` for those)."""
    nodes = tuple(_nodes(model.proto.graph))
    consumers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
    for node in nodes:
        for idx, name in enumerate(node.inputs):
            if name:
                consumers[name].append((node, idx))
        for outer in _captured(node.proto):
            consumers[outer].append((node, -1))
    return Graph(
        model=model,
        nodes=nodes,
        producers={out: node for node in nodes for out in node.outputs if out},
        consumers={name: tuple(users) for name, users in consumers.items()},
        initializers={t.name: t for t in model.proto.graph.initializer},
        inputs=tuple(i.name for i in model.proto.graph.input),
        outputs=tuple(o.name for o in model.proto.graph.output),
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[Node]:
    for position, proto in enumerate(graph.node):
        yield Node(
            op=proto.op_type,
            domain=proto.domain if proto.domain != "ai.onnx" else "",
            name=proto.name,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            attrs={a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute if not a.ref_attr_name},
            position=position,
            proto=proto,
        )


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of an If, Loop or Scan read from around them."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            inner = {o for n in graph.node for o in n.output} | {i.name for i in graph.initializer}
            reads = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
            names |= (
                (reads | {c for n in graph.node for c in _captured(n)}) - inner - {i.name for i in graph.input} - {""}
            )
    return names


def evaluate_node(node: Node, feeds: dict[str, Any], opset: int) -> list[np.ndarray]:
    """The outputs of one node of the default domain, by the ONNX reference implementation."""
    if node.op == "Constant":
        return [_constant_value(node)]
    return ReferenceEvaluator(node.proto, opsets={"": opset}).run(None, feeds)  # type: ignore[return-value]


def _constant_value(node: Node) -> np.ndarray:
    name, value = next(iter(node.attrs.items()))
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value, dtype=np.float32 if "float" in name else np.int64 if "int" in name else None)


def count_parameters(graph: Graph) -> int:
    """Elements of the stored floating-point tensors with a dimension; scalars are settings and not parameters."""
    stored = [t for t in graph.initializers.values() if t.data_type in FLOAT_TYPES and len(t.dims) > 0]
    inline = [n.attrs["value"] for n in graph.nodes if n.op == "Constant" and "value" in n.attrs]
    stored += [t for t in inline if t.data_type in FLOAT_TYPES and math.prod(t.dims) > 1]
    return sum(math.prod(t.dims) for t in stored)


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model whose large weights carry shapes but no bytes: for checks that only read the structure."""
    light = onnx.ModelProto()
    light.CopyFrom(without_weights(proto))
    for tensor in proto.graph.initializer:
        kept = light.graph.initializer.add()
        if math.prod(tensor.dims) <= SMALL_ELEMENTS and not external_data_helper.uses_external_data(tensor):
            kept.CopyFrom(tensor)
        else:
            kept.name, kept.data_type, kept.data_location = tensor.name, tensor.data_type, TensorProto.EXTERNAL
            kept.dims.extend(tensor.dims)
            kept.external_data.add(key="location", value="weights")
    return light


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model with an empty initializer list; the weights are never copied on the way."""
    light = onnx.ModelProto()
    for model_field, value in proto.ListFields():
        if model_field.name == "graph":
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(light, model_field.name, value)
        elif model_field.message_type and not hasattr(value, "append"):
            getattr(light, model_field.name).CopyFrom(value)
        else:
            getattr(light, model_field.name).extend(value)
    source, graph = proto.graph, light.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.quantization_annotation.extend(source.quantization_annotation)
    graph.metadata_props.extend(source.metadata_props)
    return light


def input_dims(model: Model) -> dict[str, tuple[int | None, ...]]:
    """The declared dimensions of every real input; None where they are dynamic."""
    stored = {t.name for t in model.proto.graph.initializer}
    dims: dict[str, tuple[int | None, ...]] = {}
    for value in model.proto.graph.input:
        if value.name not in stored:
            shape = value.type.tensor_type.shape.dim
            dims[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in shape
            )
    return dims


def batch_kind(model: Model) -> int | None:
    """The fixed batch size of the model, or None when its batch is dynamic."""
    return next(iter(input_dims(model).values()))[0]


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata properties of an ONNX file, weights untouched."""
    return load_model(path).metadata


def file_size(model: Model) -> int:
    """Bytes on disk of the file and of the external files it names."""
    tensors = [t for t in model.proto.graph.initializer if external_data_helper.uses_external_data(t)]
    beside = {external_data_helper.ExternalDataInfo(t).location for t in tensors}
    return model.path.stat().st_size + sum((model.folder / name).stat().st_size for name in beside)


def names_in_use(proto: onnx.ModelProto) -> set[str]:
    """Every tensor name of the main graph."""
    graph = proto.graph
    named: Sequence[Any] = [*graph.input, *graph.output, *graph.initializer]
    return {v.name for v in named} | {n for node in graph.node for n in [*node.input, *node.output]}
