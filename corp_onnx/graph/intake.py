"""What a parsed message becomes before anything reads it: one spelling for what ONNX Runtime runs in several.

Enters the message of a file, which nobody else has seen yet; leaves it in the form that every other room relies on:

    local functions          inlined
    overridable weights      no longer inputs: a weight that can change from outside has no width
    sparse weights           dense
    weights                  stored once, and whole, whatever piece they say to be
    nodes                    in topological order, each tensor made once; nodes that give nothing are gone
    attributes               what they hold, whatever function they also refer to
    metadata                 every key once, with the value that ONNX Runtime reads
    com.microsoft            imported where it is used

or an error, where ONNX Runtime could not run it either or would have to guess what it means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.external import iterate_tensors, read_tensor
from corp_onnx.graph.order import sort_graph
from corp_onnx.graph.proto import node_graphs

MICROSOFT = "com.microsoft"
"""ONNX Runtime's own domain; it has one version, and a file may use it without saying so."""

MAX_INLINED = 1_000_000
"""Nodes that functions may grow to: each of forty that calls the next twice makes a million million of one."""

MAX_CALLS = 100
"""Functions that may call each other in a row; the inliner goes into each on the stack of the process."""

MAX_SPARSE = 2**28
"""Elements of a sparse weight, a gibibyte as float32: thirty bytes of a file can name any shape."""

NO_VALUE = frozenset({"name", "ref_attr_name", "type", "doc_string"})
"""Fields of an attribute that say nothing of its value."""

MIN_IR_OVERRIDABLE = 4
"""Intermediate representation from which on an initializer need not be an input as well."""


def settle_message(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The message in the form above; it may be another one than came in, and is changed in place where it is not.

    Args:
        path: of the file, for errors and for sparse weights that lie outside.

    Raises:
        ModelError: no outputs, no operator set, functions that call themselves, an attribute of a function outside of
            any, a circle, a sparse weight that is none.
    """
    if not proto.graph.output:
        raise ModelError(f"{path}: has no output; expected a model from images to answers.")
    for value in proto.graph.output:
        if value.HasField("type") and value.type.WhichOneof("value") is None:
            value.ClearField("type")  # there, and of no kind: it says nothing
    if proto.functions:
        proto = _inline_functions(proto, path)
    _require_opset(proto, path)
    _require_values(proto, path)
    _drop_overridable(proto)
    _drop_segments(proto)
    _make_dense(proto, path)
    _drop_copies(proto.graph, path)
    _sort_nodes(proto.graph, path)
    _drop_repeated_keys(proto)
    return proto


def _inline_functions(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    _require_finite_functions(proto, path)
    try:
        return onnx.inliner.inline_local_functions(proto)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).splitlines()[0].rstrip(".").rsplit(": ", 1)[-1]  # behind a line of the inliner's source
        raise ModelError(f"{path}: its functions can not be inlined ({reason}). Export the model without.") from error


def _require_finite_functions(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call themselves, and those that would grow beyond memory: the inliner would try."""
    bodies = {(f.domain, f.name, f.overload): list(_walk_nodes(f.node)) for f in proto.functions}
    calls = {key: Counter(c for n in nodes if (c := _callee(n)) in bodies) for key, nodes in bodies.items()}
    sizes: dict[tuple[str, str, str], int] = {}
    depths: dict[tuple[str, str, str], int] = {}
    left = dict(calls)
    while ready := [key for key, called in left.items() if all(c in sizes for c in called)]:
        for key in ready:
            called = left.pop(key)
            sizes[key] = len(bodies[key]) + sum(count * sizes[c] for c, count in called.items())
            depths[key] = 1 + max((depths[c] for c in called), default=0)
    if left:
        raise ModelError(f"{path}: function '{next(iter(left))[1]}' calls itself, so it never ends. Export it again.")
    total = sum(sizes.get(_callee(node), 1) for node in _walk_nodes(proto.graph.node))
    depth = max(depths.values(), default=0)
    if total > MAX_INLINED or depth > MAX_CALLS:
        raise ModelError(
            f"{path}: its functions grow to {total} nodes, {depth} calls deep, and at most {MAX_INLINED} "
            f"and {MAX_CALLS} are read. Export the model without functions."
        )


def _callee(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _walk_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in node_graphs(node):
            yield from _walk_nodes(graph.node)


def _require_opset(proto: onnx.ModelProto, path: Path) -> None:
    """ONNX Runtime takes its newest version where a file names none; what a Softmax means is then a guess."""
    imported = {o.domain or "ai.onnx" for o in proto.opset_import}
    if "ai.onnx" not in imported:
        raise ModelError(
            f"{path}: does not say which version of ONNX's operators it is written in (it imports "
            f"{', '.join(sorted(imported)) or 'none'}). Export it again, or add the version to its opset_import."
        )
    if MICROSOFT not in imported and any(n.domain == MICROSOFT for n in _walk_nodes(proto.graph.node)):
        proto.opset_import.add(domain=MICROSOFT, version=1)


def _require_values(proto: onnx.ModelProto, path: Path) -> None:
    """Let attributes be what they hold and not those of a function around the node: there is none any more."""
    for node in _walk_nodes(proto.graph.node):
        for attribute in (a for a in node.attribute if a.ref_attr_name):
            if not {field.name for field, _ in attribute.ListFields()} - NO_VALUE:
                raise ModelError(
                    f"{path}: {node.op_type} '{node.name}' takes its {attribute.name} from attribute "
                    f"'{attribute.ref_attr_name}' of a function, and is in none. Export the model again."
                )
            attribute.ClearField("ref_attr_name")


def _drop_overridable(proto: onnx.ModelProto) -> None:
    """Leave out the inputs that repeat an initializer, as old exporters write them."""
    stored = {t.name for t in proto.graph.initializer} | {t.values.name for t in proto.graph.sparse_initializer}
    real = [i for i in proto.graph.input if i.name not in stored]
    if len(real) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(real)
        proto.ir_version = max(proto.ir_version, MIN_IR_OVERRIDABLE)


def _drop_segments(proto: onnx.ModelProto) -> None:
    """Leave out that a tensor is a piece of a larger one, which ONNX Runtime does not read and onnx refuses."""
    for tensor in iterate_tensors(proto):
        if tensor.HasField("segment"):  # else an attribute that holds none would begin to
            tensor.ClearField("segment")


def _make_dense(proto: onnx.ModelProto, path: Path) -> None:
    graph = proto.graph
    inline = {n.output[0]: a.sparse_tensor for n in graph.node for a in n.attribute if a.name == "sparse_value"}
    found = [(t.values.name, t) for t in graph.sparse_initializer] + list(inline.items())
    if not found:
        return
    graph.initializer.extend([numpy_helper.from_array(_read_sparse(t, name, path), name) for name, t in found])
    kept = [node for node in graph.node if not any(name in inline for name in node.output)]
    del graph.sparse_initializer[:], graph.node[:]
    graph.node.extend(kept)


def _drop_copies(graph: onnx.GraphProto, path: Path) -> None:
    """Leave out weights that are stored a second time."""
    stored: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        if stored.setdefault(tensor.name, tensor) != tensor:
            raise ModelError(f"{path}: has two weights named '{tensor.name}', with other numbers. Export it again.")
    if len(stored) < len(graph.initializer):
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in stored.values()]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _drop_repeated_keys(proto: onnx.ModelProto) -> None:
    """Leave out metadata that a later entry of the same key replaces: the onnx checker would refuse what we write."""
    last = {entry.key: entry.value for entry in proto.metadata_props}
    if len(last) < len(proto.metadata_props):
        onnx.helper.set_model_props(proto, last)


def _read_sparse(sparse: onnx.SparseTensorProto, name: str, path: Path) -> np.ndarray:
    """The dense array of a sparse tensor, whose indices are [n] into the flat array or [n, rank]."""
    dims = tuple(sparse.dims)
    if not name or not dims or min(dims) < 1 or math.prod(dims) > MAX_SPARSE:
        raise ModelError(
            f"{path}: sparse weight '{name}' has shape {list(dims)}; expected a name and up to {MAX_SPARSE} elements."
        )
    values, idx = read_tensor(sparse.values, path.parent), read_tensor(sparse.indices, path.parent)
    if idx.ndim == 2 and idx.shape[1] == len(dims) and idx.dtype.kind == "i":
        inside = bool(((idx >= 0) & (idx < dims)).all())
        idx = np.asarray(np.ravel_multi_index(tuple(idx.T), dims)) if inside else idx
    if values.ndim != 1 or idx.shape != values.shape or idx.dtype.kind != "i" or not _lies_in(idx, math.prod(dims)):
        raise ModelError(
            f"{path}: sparse weight '{name}' of shape {list(dims)} has {values.size} values at places "
            f"{list(idx.shape)} that do not lie in it. Export the model again."
        )
    dense = np.zeros(math.prod(dims), values.dtype)
    dense[idx] = values
    return dense.reshape(dims)


def _lies_in(idx: np.ndarray, size: int) -> bool:
    return not idx.size or bool(idx.min() >= 0 and idx.max() < size)


def _sort_nodes(graph: onnx.GraphProto, path: Path) -> None:
    """Put nodes in topological order, and leave out those that give nothing."""
    nodes = [node for node in graph.node if any(node.output)]
    makers: dict[str, int] = {}
    for position, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in makers:
                raise ModelError(f"{path}: tensor '{name}' is made by two nodes; expected one. Export the model again.")
            makers[name] = position
    if len(nodes) < len(graph.node):
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    try:
        sort_graph(graph)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
