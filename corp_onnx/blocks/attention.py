"""Attention units: softmax(scale * q k' + mask) v with its projections, in every spelling that exporters write.

The search starts at a Softmax (or a fused attention operator) and walks back: through masks and scales to the product
q k', from there along each operand to its projection. The layout of every operand is read off index tensors
(layout.py). A pair that something sits between (a rotary embedding, a q/k norm, a learned query) is skipped with the
node that is in the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks.layout import (
    Boundary,
    Step,
    find_boundary,
    passes,
    read_heads,
    scalar_operand,
    trace_path,
    width_spellings,
)
from corp_onnx.blocks.linear import Mismatch, is_product, match_linear, residual_after
from corp_onnx.blocks.units import AttentionOutput, AttentionUnit, Core, Linear, Operand, Skip, Slot
from corp_onnx.graph import Graph, Node

MAX_PATH = 24
"""Operators between a projection and the product; the longest seen has eleven."""


@dataclass(frozen=True, slots=True, eq=False)
class CoreMatch:
    """The attention product itself: which tensors it multiplies and how it sees them.

    `views` turn the index tensor of q, k and v into [lead..., tokens, d_head]; `output` is P @ V.
    """

    core: Core
    node: Node
    q: str
    k: str
    v: str
    views: tuple[str, str, str]
    n_heads: int | None
    output: str
    scale: float
    slots: tuple[Slot, ...]
    tags: tuple[str, ...]


def match_attention(graph: Graph, node: Node) -> AttentionUnit | Mismatch | None:
    """The attention whose Softmax, or whose fused operator, is `node`; None when a Softmax is no attention."""
    if node.op == "Softmax":
        found = _softmax_core(graph, node)
    elif node.op == "Attention" and node.domain == "com.microsoft":
        from corp_onnx.blocks.fused import match_packed_attention

        return match_packed_attention(graph, node)
    else:
        found = _operator_core(graph, node)
    if not isinstance(found, CoreMatch):
        return found
    q, k, v = (
        _match_operand(graph, tensor, view, found, letter)
        for tensor, view, letter in zip((found.q, found.k, found.v), found.views, "qkv", strict=True)
    )
    return _assemble(graph, found, q, k, v)


def _softmax_core(graph: Graph, softmax: Node) -> CoreMatch | Mismatch | None:
    logits = _walk_logits(graph, softmax.inputs[0])
    if logits is None:
        return None
    product, scale, slots, tags = logits
    values = _follow_probabilities(graph, softmax)
    if isinstance(values, Mismatch):
        return values
    rank = len(graph.dims(softmax.output))
    if softmax.attrs.get("axis", -1) not in (-1, rank - 1):
        return Mismatch(f"expected a softmax over the last axis, found axis {softmax.attrs.get('axis')}", softmax)
    views = ("rows", "columns", "rows")
    if product.op == "FusedMatMul":
        scale *= product.attrs.get("alpha", 1.0)
        views = ("rows", "rows" if product.attrs.get("transB") else "columns", "rows")
    q, k = product.inputs
    return CoreMatch("softmax", product, q, k, values.inputs[1], views, None, values.output, scale, slots, tags)


def _walk_logits(
    graph: Graph, tensor: str, depth: int = 0
) -> tuple[Node, float, tuple[Slot, ...], tuple[str, ...]] | None:
    """From the input of a softmax back to q k'; (product, scale, computed scales, what was added)."""
    node = graph.producers.get(tensor)
    if node is None or depth > MAX_PATH or graph.is_constant(tensor):
        return None
    if node.op in ("MatMul", "FusedMatMul"):
        stored = any(graph.is_constant(i) for i in node.inputs)
        return None if stored or is_product(graph, node) else (node, 1.0, (), ())
    if scaled := scalar_operand(graph, node):
        data, factor = scaled
        if found := _walk_logits(graph, node.inputs[data], depth + 1):
            product, scale, slots, tags = found
            return product, scale * factor, slots + _computed(graph, node, 1 - data), (*tags, "scaled logits")
        return None
    if node.op in ("Add", "Where", "Max", "Min", "Sub"):
        hits = [(i, _walk_logits(graph, name, depth + 1)) for i, name in enumerate(node.inputs) if name]
        found = [hit for _, hit in hits if hit]
        if len(found) == 1:
            product, scale, slots, tags = found[0]
            return (
                product,
                scale,
                slots,
                (*tags, {"Add": "mask or bias", "Where": "mask"}.get(node.op, node.op.lower())),
            )
        return None
    if passes(node) or node.op in ("Expand", "Clip"):
        return _walk_logits(graph, node.inputs[0], depth + 1)
    return None


def _computed(graph: Graph, node: Node, idx: int) -> tuple[Slot, ...]:
    return () if graph.is_constant(node.inputs[idx]) else (Slot(node, idx),)


def _follow_probabilities(graph: Graph, softmax: Node) -> Node | Mismatch:
    """From the softmax forward to the product with the values, through dropout, casts and an IsNaN guard."""
    tensor = softmax.output
    for _ in range(MAX_PATH):
        users = [(n, i) for n, i in graph.users(tensor) if n.op not in ("IsNaN", "Shape")]
        if len(users) != 1:
            return Mismatch(f"expected one reader of the attention weights, found {len(users)}", softmax, 1)
        node, idx = users[0]
        if node.op == "MatMul" and idx == 0 and not graph.is_constant(node.inputs[1]):
            return node
        if not (passes(node) or node.op == "Where" or (scalar_operand(graph, node) is not None)):
            return Mismatch("expected the attention weights to meet the values in a MatMul", node, 1)
        tensor = node.output
    return Mismatch("no product with the values found", softmax, 1)


def _operator_core(graph: Graph, node: Node) -> CoreMatch | Mismatch:
    """The `Attention` operator of opset 23, or com.microsoft's MultiHeadAttention."""
    q, k, v = ([*node.inputs, "", ""])[:3]
    core: Core = "Attention" if node.op == "Attention" else "MultiHeadAttention"
    shape = graph.dims(q)
    n_heads = int(node.attrs.get("q_num_heads", node.attrs.get("num_heads", shape[1] if len(shape) > 2 else 1)))
    if core == "Attention" and node.attrs.get("softcap"):
        return Mismatch("expected no soft cap on the logits", node, 1)
    if any(node.inputs[i] for i in ((4, 5) if core == "Attention" else (6, 7)) if i < len(node.inputs)):
        return Mismatch("expected no cached keys (this is an encoder tool)", node, 1)
    if len(shape) == 5:  # com.microsoft: query holds q, k and v as [B, N, H, 3, d]
        return CoreMatch(
            core, node, q, q, q, ("packed0/3", "packed1/3", "packed2/3"), n_heads, node.output,
            float(node.attrs.get("scale", 0) or shape[-1] ** -0.5), (), ("packed qkv",),
        )  # fmt: skip
    k_shape = graph.dims(k)
    width = graph.dims(q)[-1]
    d_qk = width if len(shape) == 4 else width // n_heads
    scale = float(node.attrs.get("scale", 0) or d_qk**-0.5)
    if len(k_shape) == 5:
        views = (f"heads{n_heads}", "packed0/2", "packed1/2")
        return CoreMatch(core, node, q, k, k, views, n_heads, node.output, scale, (), ("packed kv",))
    views = tuple("rows" if len(graph.dims(t)) == 4 else f"heads{n_heads}" for t in (q, k, v))
    return CoreMatch(core, node, q, k, v, views, n_heads, node.output, scale, (), ())  # type: ignore[arg-type]


def view_operand(array: np.ndarray, view: str) -> np.ndarray:
    """An operand as [lead..., tokens, d_head], whatever its attention operator reads.

    Views: `rows` [.., N, d]; `columns` [.., d, N]; `heads<H>` [B, N, H*d]; `packed<i>/<n>` [B, N, H, n, d].
    """
    if view == "rows":
        return array
    if view == "columns":
        return np.swapaxes(array, -1, -2)
    if view.startswith("heads"):
        n_heads = int(view[5:])
        return array.reshape(*array.shape[:-1], n_heads, -1).swapaxes(-2, -3)
    return array[..., int(view[6]), :].swapaxes(-2, -3)


def _walk_operand(graph: Graph, tensor: str) -> tuple[Linear, list[Step], float, tuple[Slot, ...]] | Mismatch:
    """From an operand back to its projection: (projection, steps in forward order, scale, computed scales)."""
    steps: list[Step] = []
    scale, slots = 1.0, ()
    for _ in range(MAX_PATH):
        node = graph.producers.get(tensor)
        if node is None or graph.is_constant(tensor):
            reader = steps[-1].node if steps else graph.users(tensor)[0][0]
            return Mismatch("is stored or fed and not projected from the tokens (a learned query?)", reader, 2)
        if is_product(graph, node) or _is_bias_add(graph, node):
            product = node if is_product(graph, node) else graph.producers[node.inputs[_data_input(graph, node)]]
            linear = match_linear(graph, product)
            if isinstance(linear, Mismatch):
                return linear
            if linear.output != tensor:
                return Mismatch("leaves its projection before the bias", node, 2)
            return linear, steps[::-1], scale, slots
        if scaled := scalar_operand(graph, node):
            data, factor = scaled
            scale, slots = scale * factor, slots + _computed(graph, node, 1 - data)
        elif passes(node):
            data = 0
        else:
            return Mismatch(f"is changed by {node.op} between its projection and the logits", node, 2)
        steps.append(Step(node, tensor))
        tensor = node.inputs[data]
    return Mismatch(f"has no projection within {MAX_PATH} operators", steps[-1].node, 1)


def _data_input(graph: Graph, node: Node) -> int:
    return 1 if graph.is_constant(node.inputs[0]) else 0


def _is_bias_add(graph: Graph, node: Node) -> bool:
    if node.op != "Add" or not any(graph.is_constant(i) for i in node.inputs):
        return False
    return is_product(graph, graph.producers.get(node.inputs[_data_input(graph, node)]))


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """An operand with what only the assembly needs."""

    operand: Operand
    head_of_lead: np.ndarray
    scale: float
    slots: tuple[Slot, ...]


def _match_operand(graph: Graph, tensor: str, view: str, core: CoreMatch, letter: str) -> _Found | Mismatch:
    walked = _walk_operand(graph, tensor)
    if isinstance(walked, Mismatch):
        return Mismatch(f"{letter} {walked.reason}", walked.node, walked.depth)
    linear, steps, scale, slots = walked
    source = linear.output or ""
    traced = trace_path(graph, source, steps)
    if isinstance(traced, Mismatch):
        return traced
    seen = view_operand(traced.arrays[tensor], view)
    heads = read_heads(traced, seen, core.node)
    if isinstance(heads, Mismatch):
        return heads
    tensors = [source, *(s.tensor for s in steps)]
    boundary = Boundary(tensor, None, splits_tokens=False)
    if not view.startswith("packed"):
        found = find_boundary(traced, tensors, heads.channel_idx, seen.shape[-2])
        if found is None:
            return Mismatch(f"{letter}: the way it is cut out of the fused projection is not understood", core.node, 2)
        boundary = found
    after = steps[tensors.index(boundary.tensor) :]
    dimension_of = {int(c): d for row in heads.channel_idx for d, c in enumerate(row)}
    spellings = width_spellings(traced, after, dimension_of, heads.channel_idx.shape[1])
    if isinstance(spellings, Mismatch):
        return spellings
    linear = _with_operator_bias(graph, linear, core, letter)
    operand = Operand(
        linear, heads.channel_idx, heads.token_major, seen.shape[-2], tensor, boundary.tensor, boundary.perm,
        boundary.splits_tokens, spellings, tuple(s.node for s in steps),
    )  # fmt: skip
    return _Found(operand, heads.head_of_lead, scale, slots)


def _with_operator_bias(graph: Graph, linear: Linear, core: CoreMatch, letter: str) -> Linear:
    """MultiHeadAttention carries the bias of all three projections as its input 3."""
    node = core.node
    if core.core != "MultiHeadAttention" or len(node.inputs) < 4 or not node.inputs[3] or linear.bias is not None:
        return linear
    total = int(np.prod(graph.dims(node.inputs[3])))
    n_qk = core.n_heads * (linear.d_out // core.n_heads) if core.n_heads else linear.d_out
    offset = {"q": 0, "k": n_qk, "v": total - linear.d_out}[letter] if linear.d_out < total else 0
    return Linear(
        linear.input, linear.output, linear.weight, linear.transposed, Slot(node, 3), offset, False,
        linear.d_in, linear.d_out,
    )  # fmt: skip


def _assemble(
    graph: Graph, core: CoreMatch, q: _Found | Mismatch, k: _Found | Mismatch, v: _Found | Mismatch
) -> AttentionUnit | Mismatch:
    """One unit from what was found; pairs that do not hold are turned into skips."""
    position = core.node.position
    qk_problem = _pair_problem(graph, core, q, k, v)
    out = _match_output(graph, core, v)
    vo_problem = v if isinstance(v, Mismatch) else out if isinstance(out, Mismatch) else None
    if vo_problem is None and isinstance(v, _Found) and v.operand.is_fused and qk_problem is not None:
        vo_problem = Mismatch(
            "v shares a fused projection with q and k, which can not be taken apart here", core.node, 2
        )
    if vo_problem is None and isinstance(v, _Found):
        vo_problem = _escape(graph, core, [f.operand for f in (q, k, v) if not isinstance(f, Mismatch)], [v.operand])
    q_op, k_op, v_op = (None if isinstance(f, Mismatch) else f.operand for f in (q, k, v))
    sizes = [o for o in (v_op, q_op, k_op) if o is not None]
    if not sizes:
        return qk_problem or Mismatch("no operand of the attention was recognised", core.node, 1)
    tags = [_projection_tag(sizes), core.core, *core.tags]
    scaled = [f for f in (q, k) if not isinstance(f, Mismatch)]
    tags += ["scaled q, k"] if sum(f.scale != 1.0 for f in scaled) == 2 else []
    return AttentionUnit(
        key="",
        position=position,
        core=core.core,
        node=core.node,
        n_heads=sizes[0].n_heads,
        d_qk=(q_op or k_op or sizes[0]).d_head,
        d_v=sizes[0].d_head,
        q=q_op,
        k=k_op,
        v=v_op,
        out=None if isinstance(out, Mismatch) else out,
        scale=core.scale * float(np.prod([f.scale for f in scaled])),
        scale_slots=core.slots + tuple(s for f in scaled for s in f.slots),
        qk_skip=_skip("qk", qk_problem),
        vo_skip=_skip("vo", vo_problem),
        spelling=", ".join(tags),
    )


def _skip(kind, problem: Mismatch | None) -> Skip | None:
    return (
        None if problem is None else Skip(kind, problem.node.position, str(problem.node), problem.reason, problem.depth)
    )


def _projection_tag(operands: list[Operand]) -> str:
    return "fused qkv" if any(o.is_fused for o in operands) else "separate q, k, v"


def _pair_problem(graph: Graph, core: CoreMatch, q, k, v) -> Mismatch | None:
    """Why q and k can not be pruned together, if so."""
    for found in (q, k):
        if isinstance(found, Mismatch):
            return found
    if q.operand.n_heads != k.operand.n_heads or not np.array_equal(q.head_of_lead, k.head_of_lead):
        return Mismatch(
            f"expected one key head for each query head, found {q.operand.n_heads} and {k.operand.n_heads}",
            core.node,
            2,
        )
    if q.operand.is_fused or k.operand.is_fused:
        sharing = [f for f in (q, k, v) if not isinstance(f, Mismatch)]
        held = sum(f.operand.channel_idx.size for f in sharing if f.operand.linear.node is q.operand.linear.node)
        if held != q.operand.linear.d_out:
            return Mismatch("expected q, k and v to be all that the fused projection holds", core.node, 2)
    operands = [f.operand for f in (q, k, v) if not isinstance(f, Mismatch)]
    return _escape(graph, core, operands, operands[:2] if not q.operand.is_fused else operands)


def _escape(graph: Graph, core: CoreMatch, inside_of: list[Operand], operands: list[Operand]) -> Mismatch | None:
    """A reader outside the attention of a tensor whose width would change."""
    inside = {core.node, *(n for o in inside_of for n in o.path)}
    inside |= {o.linear.node for o in inside_of} | {o.linear.bias.node for o in inside_of if o.linear.bias}
    inside |= {n for n, _ in graph.users(core.v) if n.output == core.output}
    for operand in operands:
        for tensor in [operand.linear.output or "", *(t for n in operand.path for t in n.outputs)]:
            for node, _ in graph.users(tensor):
                if node not in inside and node.op != "Shape":
                    return Mismatch(f"{node} reads '{tensor}' as well, so its width can not change", node, 2)
            if tensor in graph.outputs:
                return Mismatch(f"'{tensor}' is an output of the graph", core.node, 2)
    return None


def _match_output(graph: Graph, core: CoreMatch, v: _Found | Mismatch) -> AttentionOutput | Mismatch:
    """From P @ V forward to the output projection."""
    if isinstance(v, Mismatch):
        return v
    tensor, steps = core.output, []
    for _ in range(MAX_PATH):
        users = [u for u in graph.users(tensor) if u[0].op != "Shape"]
        if len(users) != 1:
            return Mismatch(f"expected one reader of the attention output, found {len(users)}", core.node, 1)
        node, idx = users[0]
        if is_product(graph, node) and idx == 0:
            break
        if not passes(node) or idx != 0:
            return Mismatch(f"{node.op} sits between the values and the output projection", node, 2)
        tensor = node.output
        steps.append(Step(node, tensor))
    else:
        return Mismatch("no output projection found", core.node, 1)
    linear = match_linear(graph, node)
    if isinstance(linear, Mismatch):
        return linear
    channel_idx = _output_columns(graph, core, v, tensor, steps)
    if isinstance(channel_idx, Mismatch):
        return channel_idx
    traced = trace_path(graph, core.output, steps)
    if isinstance(traced, Mismatch):
        return traced
    d_head = channel_idx.shape[1]
    flat_heads = traced.n_columns // d_head
    dimension_of = {h * d_head + d: d for h in range(flat_heads) for d in range(d_head)}
    spellings = width_spellings(traced, steps, dimension_of, d_head)
    if isinstance(spellings, Mismatch):
        return spellings
    residual = residual_after(graph, linear.output or "", linear.d_out)
    return AttentionOutput(linear, channel_idx, spellings, residual)


def _output_columns(graph: Graph, core: CoreMatch, v: _Found, tensor: str, steps: list[Step]) -> np.ndarray | Mismatch:
    """Input columns of the output projection by head and dimension."""
    traced = trace_path(graph, core.output, steps)
    if isinstance(traced, Mismatch):
        return traced
    shape, d_head = graph.shapes[core.output], v.operand.d_head
    order = np.arange(int(np.prod(shape))).reshape(shape)
    seen = order if traced.n_columns == d_head else view_operand(order, f"heads{v.operand.n_heads}")
    lead = int(np.prod(seen.shape[:-2]))
    if lead != len(v.head_of_lead):
        return Mismatch("expected the attention output in the layout of the values", core.node, 1)
    heads = np.broadcast_to(v.head_of_lead.reshape(*seen.shape[:-2], 1, 1), seen.shape)
    dims = np.broadcast_to(np.arange(d_head), seen.shape)
    label = np.empty(order.size, dtype=np.int64)
    label[seen.reshape(-1)] = (heads * d_head + dims).reshape(-1)
    arrived = label[traced.arrays[tensor]]
    arrived = arrived.reshape(-1, arrived.shape[-1])
    if np.any(arrived != arrived[:1]) or len(np.unique(arrived[0])) != v.operand.channel_idx.size:
        return Mismatch("expected one column of the output projection for each dimension of a head", core.node, 1)
    return np.argsort(arrived[0]).reshape(v.operand.n_heads, d_head)


def is_core(node: Node) -> bool:
    """Whether a node can be the heart of an attention."""
    if node.op in ("MultiHeadAttention", "Attention"):
        return node.domain in ("", "com.microsoft")
    return node.op == "Softmax"
