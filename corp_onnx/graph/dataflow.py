"""A model by data flow: nodes with producers and consumers, constants folded through what exporters leave between.

Enters a `Model`; leaves a `Graph`. The shapes and computed values in it are those of a real run (see probe.py);
external weights are read only when asked for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from corp_onnx.errors import ModelError
from corp_onnx.graph.cost import Cost, sum_macs
from corp_onnx.graph.external import read_tensor
from corp_onnx.graph.model import FLOAT_TYPES, Model, batch_kind
from corp_onnx.graph.operators import FOLDABLE
from corp_onnx.graph.proto import SMALL_ELEMENTS, captured_names


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
    """The main graph of a model by data flow. `shapes`, `values` and `types` are those of one run (see probe.py)."""

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
    _folded: dict[str, np.ndarray] = field(default_factory=dict)
    _constant: dict[str, bool] = field(default_factory=dict)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is stored in the file, possibly behind Identity, Cast, Transpose and their like."""
        todo = [name]  # a stack of our own: a chain may be longer than Python's
        while todo:
            found = self._find_constant(todo[-1])
            waiting = [] if isinstance(found, bool) else [i for i in found if i not in self._constant]
            if waiting:
                todo += waiting
            else:
                known = found if isinstance(found, bool) else all(self._constant[i] for i in found)
                self._constant[todo.pop()] = known
        return self._constant[name]

    def _find_constant(self, name: str) -> bool | list[str]:
        """Whether a tensor is constant, or the tensors that decide it."""
        if name in self._constant:
            return self._constant[name]
        if name in self.inputs:
            return False
        if name in self.initializers:
            return True
        node = self.producers.get(name)
        if node is None:
            return False
        if node.op == "Constant":
            return True
        sources = [i for i in node.inputs if i]
        return sources if node.op in FOLDABLE and sources else False

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a stored tensor, folded through what lies between; None when it is not one."""
        if name in self._folded:
            return self._folded[name]
        if not name or not self.is_constant(name):
            return None
        return self._fold(name)

    def _fold(self, name: str) -> np.ndarray:
        makers = self._list_makers(name)
        last = {i: node for node in makers for i in node.inputs}  # reader; what none reads any more is let go
        values: dict[str, np.ndarray] = {}
        for node in makers:
            feeds = {i: values[i] if i in values else self._read(i) for i in node.inputs if i}
            try:
                outputs = evaluate_node(node, feeds, self.model.opset, self.model.folder)
            except ModelError:
                raise
            except Exception as error:  # the reference implementation raises whatever a node makes it meet
                what = f"{node} of stored numbers can not be computed ({error})"
                raise ModelError(f"{self.model.path}: {what}.") from error
            made = {k: v for k, v in zip(node.outputs, outputs, strict=False) if k}
            self._folded.update({k: v for k, v in made.items() if v.size <= SMALL_ELEMENTS})
            values |= {k: v for k, v in made.items() if k in last or k == name}
            for i in [i for i in feeds if last[i] is node]:
                values.pop(i, None)
        return values[name] if makers else self._read(name)

    def _list_makers(self, name: str) -> list[Node]:
        """The nodes that a constant is folded through, in their order."""
        found: dict[int, Node] = {}
        todo = [name]
        while todo:
            tensor = todo.pop()
            if tensor in self.initializers or tensor in self._folded:
                continue
            node = self.producers[tensor]
            if node.position not in found:
                found[node.position] = node
                todo += filter(None, node.inputs)
        return [found[position] for position in sorted(found)]

    def _read(self, name: str) -> np.ndarray:
        """A stored tensor, or one that is folded already."""
        known = self._folded.get(name)
        return read_tensor(self.initializers[name], self.model.folder) if known is None else known

    def stored(self, name: str) -> np.ndarray:
        """The value of a tensor that is known to be stored."""
        value = self.constant(name)
        if value is None:
            raise ValueError(f"'{name}' is not stored in the file")
        return value

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
        return captured_names(node.proto)

    def users(self, name: str) -> tuple[tuple[Node, int], ...]:
        """(node, input index) of everything that reads a tensor."""
        return self.consumers.get(name, ())

    def list_sources(self, names: Iterable[str]) -> frozenset[Node]:
        """Every operator that one of these tensors depends on."""
        found: set[Node] = set()
        todo = list(names)
        while todo:
            node = self.producers.get(todo.pop())
            if node is not None and node not in found:
                found.add(node)
                todo += [*filter(None, node.inputs), *self.captured(node)]
        return frozenset(found)

    @property
    def fixed_batch(self) -> bool:
        """Whether the model takes a fixed number of images, `n_images`."""
        return batch_kind(self.model) is not None

    @cached_property
    def float_type(self) -> str:
        """The precision that holds most weight elements: float32, float16, bfloat16 or float64."""
        counts: dict[str, int] = defaultdict(int)
        for tensor in stored_floats(self):
            counts[FLOAT_TYPES[tensor.data_type]] += math.prod(tensor.dims)  # type: ignore[index]
        return max(counts, key=lambda k: counts[k], default="float32")

    @cached_property
    def cost(self) -> Cost:
        """Multiply-accumulates of one image, by node and in all; needs the shapes of a probe run."""
        return sum_macs(self)

    @cached_property
    def n_stored(self) -> int:
        """Elements of all stored tensors, whatever they are of."""
        return sum(math.prod(tensor.dims) for tensor in self.initializers.values())

    @cached_property
    def n_parameters(self) -> int:
        """Elements of the stored floating-point tensors of more than one; a single number is a setting, as a scale."""
        return sum(math.prod(t.dims) for t in stored_floats(self) if math.prod(t.dims) > 1)


def read_graph(model: Model) -> Graph:
    """The main graph of a model by data flow, without shapes (see `probe.probe_graph` for those)."""
    nodes = tuple(_nodes(model.proto.graph))
    consumers: dict[str, list[tuple[Node, int]]] = defaultdict(list)
    for node in nodes:
        for idx, name in enumerate(node.inputs):
            if name:
                consumers[name].append((node, idx))
        for outer in captured_names(node.proto):
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


def evaluate_node(node: Node, feeds: dict[str, Any], opset: int, folder: Path | None = None) -> list[np.ndarray]:
    """The outputs of one node of the default domain, by the ONNX reference implementation.

    Args:
        folder: where external data of a Constant lies.
    """
    if node.op == "Constant":
        return [_constant_value(node, folder or Path())]
    return ReferenceEvaluator(node.proto, opsets={"": opset}).run(None, feeds)  # type: ignore[return-value]


def _constant_value(node: Node, folder: Path) -> np.ndarray:
    name, value = next(iter(node.attrs.items()))
    if isinstance(value, TensorProto):
        return read_tensor(value, folder)
    return np.asarray(value, dtype=np.float32 if "float" in name else np.int64 if "int" in name else None)


def stored_floats(graph: Graph) -> list[TensorProto]:
    """The stored floating-point tensors, in initializers and Constant nodes; a scalar Constant is a setting."""
    inline = [n.attrs["value"] for n in graph.nodes if n.op == "Constant" and "value" in n.attrs]
    stored = [*graph.initializers.values(), *(t for t in inline if math.prod(t.dims) > 1)]
    return [t for t in stored if t.data_type in FLOAT_TYPES]
