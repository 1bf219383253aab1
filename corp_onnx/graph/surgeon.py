"""The tools of the rewrite: nodes of a graph in onnx-graphsurgeon, and the way back that loses nothing.

Enters a `Graph`, leaves a `ModelProto`. graphsurgeon drops node metadata and some value_info, and copies what it is
given, so only nodes that are touched go through it; every other node, the inputs, outputs, opsets and metadata are
those of the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from corp_onnx.graph import Graph, Node
from corp_onnx.graph.inner_shapes import refresh_value_info
from corp_onnx.graph.order import find_read, replace_nodes
from corp_onnx.graph.proto import names_in_use, outline, without_weights
from corp_onnx.graph.slots import Parting, Slot, WidthSpelling

G_LOGGER.severity = G_LOGGER.ERROR

SPLIT_SIZES_AS_INPUT = 13
"""Operator set from which on Split takes its sizes as an input."""


class Surgeon:
    """A graph being rewritten. Stored tensors are never changed in place: a new one takes their place at one slot,
    so what other nodes share stays as it was."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._names = names_in_use(graph.model.proto)
        self._touched: dict[int, gs.Node] = {}  # by position in the original
        self._inserted: dict[int, list[gs.Node]] = defaultdict(list)  # by the node that they stand behind
        self._stored: dict[str, TensorProto] = {}
        self._tensors: dict[str, Any] = {}

    def at(self, node: Node) -> Any:
        """The graphsurgeon node of a node of the graph; counts as touched."""
        if node.position not in self._touched:
            self._touched[node.position] = self._import(self.graph.model.proto.graph.node[node.position])
        return self._touched[node.position]

    def tensor(self, name: str) -> Any:
        """The graphsurgeon tensor of a name; what is left out has none."""
        if not name:
            return gs.Variable.empty()
        if name not in self._tensors:
            self._tensors[name] = gs.Variable(name)
        return self._tensors[name]

    def fresh_name(self, hint: str) -> str:
        """A name that no tensor or node of the graph has."""
        name, count = hint, 1
        while name in self._names:
            name, count = f"{hint}_{count}", count + 1
        self._names.add(name)
        return name

    def constant(self, hint: str, values: np.ndarray) -> gs.Constant:
        """A new stored tensor, of whatever element type the array has (bfloat16 included)."""
        name = self.fresh_name(hint)
        self._stored[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return gs.Constant(name, LazyValues(outline(self._stored[name])))  # its export copies what it holds

    def variable(self, hint: str) -> gs.Variable:
        """A new computed tensor."""
        return gs.Variable(self.fresh_name(hint))

    def replace_stored(self, slot: Slot, values: np.ndarray) -> None:
        """Put a new stored tensor at one input of one node. It takes the old name where nothing else reads that.

        What was stored in fewer bytes behind a Cast is so again.
        """
        old = slot.name
        cast = self.graph.producers.get(old)
        if cast is not None and cast.op == "Cast":
            stored = self.graph.stored(cast.inputs[0])
            widened = self.variable(f"{old}_pruned")
            narrow = self.constant(f"{cast.inputs[0]}_pruned", values.astype(stored.dtype))
            self.insert("Cast", [narrow], [widened], cast, to=cast.attrs["to"])
            self.replace_input(slot, widened)
            return
        alone = old in self.graph.initializers and len(self.graph.users(old)) == 1 and old not in self.graph.outputs
        node = self.at(slot.node)
        if alone:
            self._names.discard(old)
            fresh = self.constant(old, values)
        else:
            fresh = self.constant(f"{old}_pruned", values)
        node.inputs[slot.idx] = fresh

    def replace_input(self, slot: Slot, tensor: Any) -> None:
        """Let one input of one node read another tensor."""
        self.at(slot.node).inputs[slot.idx] = tensor

    def add_input(self, node: Node, idx: int, tensor: Any) -> None:
        """Let a node read a tensor at an optional input that it does not have yet."""
        inputs = self.at(node).inputs
        while len(inputs) <= idx:
            inputs.append(gs.Variable.empty())
        inputs[idx] = tensor

    def insert(self, op: str, inputs: list[Any], outputs: list[Any], after: Node, **attrs: object) -> None:
        """A new node right behind one of the original."""
        node = gs.Node(op, self.fresh_name(f"corp_onnx/{op}/{outputs[0].name}"), attrs, inputs, outputs)
        self._inserted[after.position].append(node)

    def set_width(self, spelling: WidthSpelling, width: int) -> None:
        """Let a Reshape's target spell a new size of something: a head, hidden channels, tokens."""
        self.respell(spelling.node, {spelling.axis: spelling.n_folded * width})

    def respell(self, node: Node, sizes: Mapping[int, int]) -> None:
        """Let a Reshape's target spell new sizes, by axis.

        A stored target gets a new constant; of a computed one only these entries are replaced.
        """
        graph, target = self.graph, node.inputs[1]
        known, stored = graph.value(target), graph.constant(target)
        if stored is not None:
            changed, spelled = stored.copy(), [axis for axis in sizes if stored[axis] > 0]
            for axis in spelled:
                changed[axis] = sizes[axis]
            if spelled:
                self.replace_input(Slot(node, 1), self.constant(f"{node.output}_shape", changed))
            return
        assert known is not None, node
        hint = f"{node.output}_width"
        entries = {axis: self.constant(hint, np.array([sizes[axis]], dtype=np.int64)) for axis in sorted(sizes)}
        parts: list[Any] = []
        producer = graph.producers[target]
        if producer.op == "Concat" and len(producer.inputs) == known.size:
            parts = [entries.get(axis, self.tensor(name)) for axis, name in enumerate(producer.inputs)]
        else:
            start = 0
            for axis, entry in entries.items():
                parts += [*self._slice_shape(node, target, start, axis), entry]
                start = axis + 1
            parts += self._slice_shape(node, target, start, known.size)
        shape = self.variable(f"{node.output}_shape")
        self.insert("Concat", parts, [shape], self.before(node), axis=0)
        self.replace_input(Slot(node, 1), shape)

    def leading_shape(self, parting: Parting, tail: list[int]) -> Any:
        """The two entries of a Reshape's target that part a leading axis, and `tail` behind them."""
        node, start, stop = parting.node, parting.axis, parting.axis + 2
        stored = self.graph.constant(node.inputs[1])
        behind = np.array(tail, dtype=np.int64)
        if stored is not None:
            return self.constant(f"{node.output}_shape", np.concatenate([stored[start:stop], behind]))
        parts = [*self._slice_shape(node, node.inputs[1], start, stop), self.constant(f"{node.output}_width", behind)]
        shape = self.variable(f"{node.output}_shape")
        self.insert("Concat", parts, [shape], self.before(node), axis=0)
        return shape

    def split(self, tensor: Any, sizes: list[int], outputs: list[Any], after: Node) -> None:
        """Cut a tensor along its last axis."""
        if self.graph.model.opset < SPLIT_SIZES_AS_INPUT:
            self.insert("Split", [tensor], outputs, after, axis=-1, split=sizes)
            return
        stored = self.constant(f"{tensor.name}_sizes", np.array(sizes, dtype=np.int64))
        self.insert("Split", [tensor, stored], outputs, after, axis=-1)

    def _slice_shape(self, node: Node, target: str, start: int, stop: int) -> list[Any]:
        if start == stop:
            return []
        part = self.variable(f"{node.output}_shape_part")
        bounds = [self.constant(f"{node.output}_bound", np.array([b], dtype=np.int64)) for b in (start, stop)]
        self.insert("Slice", [self.tensor(target), *bounds], [part], self.before(node))
        return [part]

    def before(self, node: Node) -> Node:
        """The node behind which something that `node` reads can stand: the one just in front of it."""
        return self.graph.nodes[node.position - 1]

    def drop_producer(self, name: str) -> Any:
        """Take a tensor from the node that makes it, so that a new node can."""
        tensor = self.tensor(name)
        if name in self.graph.producers:
            self.at(self.graph.producers[name])
        tensor.inputs.clear()
        return tensor

    def finish(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """The rewritten model; nodes and weights that nothing needs any more are gone. The last thing to ask for.

        Args:
            metadata: properties to add to those of the file.
        """
        source = self.graph.model.proto
        result, read = without_weights(source), {o.name for o in source.graph.output}
        replace_nodes(result, find_read(self._export(), read))
        self._keep_weights(result, read)
        if source.graph.value_info:
            refresh_value_info(result)
        for key, value in metadata.items():
            _set_property(result, key, value)
        return result

    def _import(self, proto: onnx.NodeProto) -> Any:
        """A node by itself, between the tensors of the others; a copy, since an export renames in place."""
        alone = onnx.ModelProto(graph=onnx.GraphProto(node=[proto]), opset_import=self.graph.model.proto.opset_import)
        node: Any = gs.import_onnx(alone).nodes[0]
        node.inputs, node.outputs = ([self.tensor(name) for name in names] for names in (proto.input, proto.output))
        return node

    def _export(self) -> list[onnx.NodeProto]:
        """All nodes in their order: those that were not touched as the file has them."""
        original = self.graph.model.proto
        placed: list[onnx.NodeProto | gs.Node] = []
        for at, proto in enumerate(original.graph.node):
            placed += [self._touched.get(at, proto), *self._inserted.get(at, ())]
        changed = [node for node in placed if isinstance(node, gs.Node)]
        part = gs.Graph(changed, opset=self.graph.model.opset, import_domains=list(original.opset_import))
        exported = iter(gs.export_onnx(part, do_type_check=False).graph.node)
        places = {id(node): at for at, node in self._touched.items()}
        found: list[onnx.NodeProto] = []
        for one in placed:
            if isinstance(one, onnx.NodeProto):
                found.append(one)
                continue
            node = next(exported)
            if id(one) in places:
                before = original.graph.node[places[id(one)]]
                node.metadata_props.extend(before.metadata_props)
                node.doc_string = before.doc_string
            found.append(node)
        return found

    def _keep_weights(self, result: onnx.ModelProto, read: Set[str]) -> None:
        """The stored tensors that are still read: the file's own where they were not replaced."""
        for name in dict.fromkeys([*self.graph.initializers, *self._stored]):
            tensor = self._stored.pop(name, None) or self.graph.initializers[name]  # a copy is enough of each
            if name in read:
                result.graph.initializer.append(tensor)


def _set_property(model: onnx.ModelProto, key: str, value: str) -> None:
    for prop in model.metadata_props:
        if prop.key == key:
            prop.value = value
            return
    model.metadata_props.add(key=key, value=value)
