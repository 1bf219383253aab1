"""Half precision: ONNX Runtime's float16 converter, given what it needs to be safe on every exporter's graph.

Enters a probed `Graph` in float32 or bfloat16; leaves a `HalfModel`. Softmax and normalisations stay in float32, also
where an exporter wrote them as a chain (LayerNormalization is an operator from opset 17 on)

    mean = ReduceMean(x);  c = x - mean;  y = c / Sqrt(ReduceMean(c ^ 2) + epsilon)

because c^2 leaves the range of float16 and epsilon falls below it. Inside such a chain no tensor is cast: the
converter casts where it knows a tensor to be float16, and it is told of none that only kept operators see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.errors import CheckFailedError
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.external import load_tensors, read_tensor
from corp_onnx.graph.inner_shapes import refresh_value_info
from corp_onnx.graph.operators import NORMALISATIONS, SOFTMAXES, SUMS_OF_SQUARES
from corp_onnx.graph.order import drop_unread, replace_nodes, sort_nodes
from corp_onnx.graph.proto import names_in_use
from corp_onnx.graph.write import writing
from corp_onnx.precision.aside import Aside, put_back, set_aside
from corp_onnx.precision.editable import copy_named, fresh_name
from corp_onnx.precision.gemm import part_half_gemms
from corp_onnx.run.runtime import first_sentence, import_runtime

KEPT_OPS = SOFTMAXES | NORMALISATIONS | SUMS_OF_SQUARES | {"Resize"}  # whose scales are float32 in every opset
"""Left in float32 besides what the converter itself leaves (Range, CumSum, TopK, Min, Max, ...)."""

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)

MASK_OUTPUT = ("EmbedLayerNormalization", 1)
"""An integer tensor that has no type in the file: onnx infers none behind operators of other domains."""

HALVES = "float16.data"
"""Of the weights that lay outside."""

WIDE_TYPES = frozenset({TensorProto.FLOAT, TensorProto.BFLOAT16})


@dataclass(frozen=True, slots=True, eq=False)
class HalfModel:
    """A float16 graph and what became of its numbers.

    Attributes:
        proto: the model; of its weights those that lay outside are in a file of the folder that was given for them.
        kept: number of operators left in float32, by type.
        n_clipped: stored finite numbers beyond ±65504 that are ±65504 now; masks are made of such.
        n_subnormal: stored numbers below 6.1e-5 that keep fewer than 11 bits, zeros not counted.
        n_stored: stored numbers that are float16 now.
        later: float32 weights that lie outside, of which the model has none of the numbers yet.
    """

    proto: onnx.ModelProto
    kept: dict[str, int]
    n_clipped: int
    n_subnormal: int
    n_stored: int
    later: Aside = field(default_factory=dict)


def convert_to_fp16(
    graph: Graph, *, keep_io: bool = True, wide: Collection[int] = (), folder: Path | None = None,
    later: Collection[str] = (),
) -> HalfModel:  # fmt: skip
    """The model in float16.

    Args:
        graph: as `probe_graph` gives it, so that every tensor has its type, behind foreign operators too.
        keep_io: leave inputs and outputs in float32, with a Cast behind and before them.
        wide: positions of nodes that stay in float32 as well; not counted among the kept.
        folder: for the halves of weights that lie outside; None brings all into the model.
        later: weights which, where they lie outside and stay float32, are brought in by the caller (`aside.restore`).

    Raises:
        MissingExtraError: no onnxruntime.
        CheckFailedError: ONNX Runtime's converter fails on this graph.
        OutputError: the halves can not be written.
    """
    import_runtime()
    from onnxruntime.transformers import float16

    source = graph.model.folder
    proto = copy_named(graph)
    kept = find_kept(graph, KEPT_OPS | set(float16.DEFAULT_OP_BLOCK_LIST))
    positions = {node.position for node in kept} | set(wide)
    names = [proto.graph.node[position].name for position in sorted(positions)]
    _set_softmax_precision(proto)
    _separate_constants(graph, proto, positions)
    _declare_types(graph, proto, positions)
    counts = _count(_halved(graph, proto, positions), source)
    drop_unread(proto)
    aside = {} if folder is None else set_aside(proto)
    waiting = {name: aside[name] for name in later if name in aside}
    load_tensors(proto, source)
    try:
        half = float16.convert_float_to_float16(
            proto, keep_io_types=keep_io, disable_shape_infer=True, op_block_list=[], node_block_list=names
        )
    except Exception as error:  # the converter raises whatever it meets
        raise CheckFailedError(
            f"{graph.model.path}: ONNX Runtime's float16 converter fails on it ({first_sentence(error)}). The model "
            "itself is as it was; --int8 may do instead."
        ) from error
    if folder is not None:
        with writing(folder / HALVES):
            put_back(
                half, aside, source, folder / HALVES, lambda tensor: _halve(aside.get(tensor.name), source), waiting
            )
    replace_nodes(half, sort_nodes(list(_merge_casts(half.graph.node))))
    part_half_gemms(half, folder or source)
    refresh_value_info(half)
    return HalfModel(half, dict(Counter(node.op for node in kept)), *counts, waiting)


def _halve(weight: onnx.TensorProto | None, folder: Path) -> np.ndarray | None:
    from onnxruntime.transformers import float16

    return None if weight is None else np.asarray(float16.convert_np_to_float16(read_tensor(weight, folder)))


def find_kept(graph: Graph, ops: Iterable[str]) -> list[Node]:
    """The nodes that stay in float32: those of the given types, and every normalisation written as a chain."""
    kept = {node.position: node for node in graph.nodes if node.op in set(ops)}
    for root in (node for node in graph.nodes if node.op in ("Sqrt", "Pow")):
        kept |= {node.position: node for node in _match_norm(graph, root)}
    return [kept[position] for position in sorted(kept)]


def _match_norm(graph: Graph, root: Node) -> list[Node]:
    """The chain of a normalisation around its square root; empty where the root takes that of something else."""
    chain = [root]
    for ops in (("Add",), ("ReduceMean",), ("Pow", "Mul")):
        found = _producer(graph, chain[-1].inputs, ops)
        if found is None and ops != ("Add",):
            return []
        chain += [found] if found is not None else []
    centre = _producer(graph, chain[-1].inputs[:1], ("Sub",))
    mean = _producer(graph, centre.inputs[1:], ("ReduceMean",)) if centre is not None else None
    chain += [node for node in (centre, mean) if node is not None]
    for node in (root, *(n for n, _ in graph.users(root.output) if n.op == "Reciprocal")):
        chain += [n for n, _ in graph.users(node.output) if n.op in ("Div", "Reciprocal", "Mul")]
    return chain


def _producer(graph: Graph, names: Iterable[str], ops: Iterable[str]) -> Node | None:
    """The first node of one of these types behind one of these tensors."""
    nodes = (graph.producers.get(name) for name in names)
    return next((node for node in nodes if node is not None and node.op in ops), None)


def _set_softmax_precision(proto: onnx.ModelProto) -> None:
    """The softmax inside an Attention operator of opset 23 takes the type of its inputs unless it is told."""
    for node in proto.graph.node:
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            others = [a for a in node.attribute if a.name != "softmax_precision"]
            del node.attribute[:]
            node.attribute.extend([*others, helper.make_attribute("softmax_precision", int(TensorProto.FLOAT))])


def _separate_constants(graph: Graph, proto: onnx.ModelProto, kept: set[int]) -> None:
    """Give kept nodes float32 constants of their own: an epsilon shared with a float16 node would be rounded."""
    taken, copies = names_in_use(proto), dict[str, str]()
    for position in sorted(kept):
        for idx, name in enumerate(proto.graph.node[position].input):
            own = name in graph.initializers and all(user.position in kept for user, _ in graph.users(name))
            if own or not graph.is_constant(name) or (value := graph.constant(name)) is None:
                continue
            if value.dtype.kind not in "fV":
                continue
            if name not in copies:
                copies[name] = fresh_name(f"{name}.float32", taken)
                wide = value.astype(np.float32, order="C")
                proto.graph.initializer.append(numpy_helper.from_array(wide, copies[name]))
            proto.graph.node[position].input[idx] = copies[name]


def _declare_types(graph: Graph, proto: onnx.ModelProto, kept: set[int]) -> None:
    """Tell the converter which tensors to make float16: every float one but those that only kept nodes see."""
    del proto.graph.value_info[:]
    for node in graph.nodes:
        for name in (n for n in node.outputs if graph.types.get(n) in WIDE_TYPES and n not in graph.outputs):
            inside = node.position in kept and all(user.position in kept for user, _ in graph.users(name))
            is_mask = (node.op, node.outputs.index(name)) == MASK_OUTPUT
            if not inside and not is_mask:
                value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                proto.graph.value_info.append(value)


def _halved(graph: Graph, proto: onnx.ModelProto, kept: set[int]) -> Iterator[onnx.TensorProto]:
    """The stored float32 tensors that some node reads in float16."""
    halves = {
        name for node in graph.nodes if node.position not in kept for name in proto.graph.node[node.position].input
    }
    stored = [t for t in proto.graph.initializer if t.name in halves]
    stored += [
        a.t for node in proto.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    ]
    yield from (t for t in stored if t.data_type == TensorProto.FLOAT)


def _count(tensors: Iterable[onnx.TensorProto], folder: Path) -> tuple[int, int, int]:
    """(clipped, subnormal, all) among the numbers of float32 tensors, inside or outside."""
    n_clipped = n_subnormal = n_all = 0
    for tensor in tensors:
        size = np.abs(read_tensor(tensor, folder))
        n_clipped += int(((size > LARGEST) & np.isfinite(size)).sum())
        n_subnormal += int(((size < SMALLEST_NORMAL) & (size > 0)).sum())
        n_all += size.size
    return n_clipped, n_subnormal, n_all


def _merge_casts(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Every node, and of several that give the same output the first: the converter adds a Cast for each reader."""
    seen: set[str] = set()
    for node in nodes:
        if node.output[0] not in seen:
            yield node
        seen.add(node.output[0])
