"""Attention units: softmax(scale * q k' + mask) v with its projections, in every spelling that exporters write.

core.py finds the product, operand.py follows q, k and v back to their projections, output.py goes on to the output
projection; here they become one unit. A pair that can not change width (a rotary embedding or a norm in between, a
reader outside) is skipped with the node that is in the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from corp_onnx.blocks.core import CoreMatch, match_core
from corp_onnx.blocks.found import UNPLACED, Attention, QkPair, Skip, VoPair
from corp_onnx.blocks.fused import match_packed_attention
from corp_onnx.blocks.layout import is_plain
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.blocks.operand import Found, find_rest, match_operand
from corp_onnx.blocks.output import match_output
from corp_onnx.blocks.products import AttentionOutput, Operand
from corp_onnx.blocks.readers import find_reader
from corp_onnx.graph import Graph, Node
from corp_onnx.graph.slots import Slot


def match_attention(graph: Graph, node: Node) -> Attention | Mismatch | None:
    """The attention whose Softmax, or whose fused operator, is `node`; None when a Softmax is no attention."""
    if node.op == "Attention" and node.domain == "com.microsoft":
        return match_packed_attention(graph, node)
    core = match_core(graph, node)
    if not isinstance(core, CoreMatch):
        return core
    q = match_operand(graph, core.q, core.views[0], core, "q")
    k = match_operand(graph, core.k, core.views[1], core, "k")
    v = match_operand(graph, core.v, core.views[2], core, "v")
    found = [f for f in (q, k, v) if isinstance(f, Found)]
    if not found and isinstance(q, Mismatch):
        return q
    return _assemble(graph, core, q, k, v, _collect_rest(graph, core, found))


def _collect_rest(graph: Graph, core: CoreMatch, found: Sequence[Found]) -> tuple[Operand, ...] | Mismatch:
    """What the fused projections hold besides q, k and v."""
    rest: tuple[Operand, ...] = ()
    for linear in dict.fromkeys(f.operand.linear.node for f in found if f.operand.is_fused):
        more = find_rest(graph, [f for f in found if f.operand.linear.node is linear], core.node)
        if isinstance(more, Mismatch):
            return more
        rest += more
    return rest


def _assemble(
    graph: Graph,
    core: CoreMatch,
    q: Found | Mismatch,
    k: Found | Mismatch,
    v: Found | Mismatch,
    rest: tuple[Operand, ...] | Mismatch,
) -> Attention:
    """One unit from what was found; pairs that do not hold are turned into skips."""
    operands = [f.operand for f in (q, k, v) if isinstance(f, Found)]
    out = match_output(graph, core, v) if isinstance(v, Found) else v
    pinned = core.slots + tuple(s for f in (q, k) if isinstance(f, Found) for s in f.slots)
    together = _operator_problem(graph, core, (q, k, v)) or _fused_problem(rest, operands)
    inside = _inside(graph, core, [*operands, *(rest if isinstance(rest, tuple) else ())])
    gone = {Slot(n, 1) for f in (q, k, v) if isinstance(f, Found) for n in f.dropped()} | {
        Slot(o.leading.node, 1) for o in (rest if isinstance(rest, tuple) else ()) if o.leading is not None
    }
    gone |= set(pinned)
    qk_problem = _pair_problem(core, q, k) or together or _reader(graph, (q, k), inside, gone)
    respelled = {Slot(s.node, 1) for s in out.spellings} if isinstance(out, AttentionOutput) else set()
    vo_problem = together or _reader(graph, (v,), inside, gone | respelled)
    letters = {letter: f.operand for letter, f in zip("qkv", (q, k, v), strict=True) if isinstance(f, Found)}
    beside = {f"rest{idx}": operand for idx, operand in enumerate(rest)} if isinstance(rest, tuple) else {}
    sizes = letters.get("v", operands[0])
    scaled = [f for f in (q, k) if isinstance(f, Found)]
    return Attention(
        key=UNPLACED,
        position=core.node.position,
        core=core.core,
        node=core.node,
        n_heads=sizes.n_heads,
        d_qk=(letters.get("q") or letters.get("k") or sizes).d_head,
        d_v=sizes.d_head,
        operands=letters | beside,
        out=out if isinstance(out, AttentionOutput) else None,
        qk=_skip("qk", qk_problem) if qk_problem else QkPair(letters["q"], letters["k"]),
        vo=_vo_pair(letters, out, vo_problem),
        scale=core.scale * float(np.prod([f.scale for f in scaled])),
        scale_slots=pinned,
        spelling=_spell(core, operands, scaled),
    )


def _spell(core: CoreMatch, operands: Sequence[Operand], scaled: Sequence[Found]) -> str:
    tags = ["fused qkv" if any(o.is_fused for o in operands) else "separate q, k, v", core.core, *core.tags]
    tags += ["scaled q, k"] if sum(f.scale != 1.0 for f in scaled) == 2 else []
    return ", ".join(tags)


def _vo_pair(
    letters: Mapping[str, Operand], out: AttentionOutput | Mismatch, problem: Mismatch | None
) -> VoPair | Skip:
    if isinstance(out, Mismatch):
        return _skip("vo", out)
    return _skip("vo", problem) if problem else VoPair(letters["v"], out)


def _skip(kind: str, problem: Mismatch) -> Skip:
    return Skip(kind, problem.node.position, str(problem.node), problem.reason, problem.depth)


def _pair_problem(core: CoreMatch, q: Found | Mismatch, k: Found | Mismatch) -> Mismatch | None:
    """Why q and k can not be pruned together, if so."""
    if isinstance(q, Mismatch):
        return q
    if isinstance(k, Mismatch):
        return k
    if q.operand.n_heads != k.operand.n_heads or not np.array_equal(q.head_of_lead, k.head_of_lead):
        heads = f"{q.operand.n_heads} and {k.operand.n_heads}"
        return Mismatch(f"expected one key head for each query head, found {heads}", core.node, 2)
    if (
        q.operand.linear.node is k.operand.linear.node
        and np.intersect1d(q.operand.channel_idx, k.operand.channel_idx).size
    ):
        return Mismatch("q and k share columns of one projection", core.node, 2)
    return None


def _fused_problem(rest: tuple[Operand, ...] | Mismatch, operands: Sequence[Operand]) -> Mismatch | None:
    """Why nothing that shares a fused projection can change width."""
    if isinstance(rest, Mismatch) and any(o.is_fused for o in operands):
        return Mismatch(f"the fused projection can not be taken apart: {rest.reason}", rest.node, 2)
    return None


def _operator_problem(graph: Graph, core: CoreMatch, found: Iterable[Found | Mismatch]) -> Mismatch | None:
    """What MultiHeadAttention asks of its operands together."""
    q, k, v = found
    if core.core != "MultiHeadAttention":
        return None
    mismatch = next((f for f in (q, k, v) if isinstance(f, Mismatch)), None)
    if mismatch is not None and len(core.node.inputs) > 3 and core.node.inputs[3]:
        return Mismatch("its operator holds the bias of q, k and v in one tensor", core.node, 2)
    if len(graph.dims(core.k)) == 4:  # such keys and values must be of one width: they are wired in as [B, N, H*d]
        for f in (k, v):
            if isinstance(f, Mismatch) or f.operand.token_major or len(graph.dims(f.operand.projection)) != 3:
                return Mismatch("its operator wants keys and values of one width", core.node, 2)
            if not f.operand.is_fused and not is_plain(f.operand.channel_idx, f.operand.linear.d_out):
                return Mismatch("its operator wants heads side by side", core.node, 2)
    return None


def _inside(graph: Graph, core: CoreMatch, operands: Iterable[Operand]) -> set[Node]:
    """The nodes between the projections and the products of the core, which the rewrite takes along."""
    inside = {core.node, *(node for node, _ in graph.users(core.v) if node.output == core.output)}
    for operand in operands:
        bias = operand.linear.bias
        inside |= {*operand.path, *operand.linear.reshapes, *([bias.node] if bias is not None else [])}
    return inside


def _reader(
    graph: Graph, changed: Iterable[Found | Mismatch], inside: set[Node], replaced: set[Slot]
) -> Mismatch | None:
    """A reader outside the attention of a tensor whose width would change."""
    found = [f for f in changed if isinstance(f, Found)]
    respelled = {Slot(s.node, 1) for f in found for s in f.operand.spellings}
    respelled |= {Slot(node, 1) for f in found for node in f.operand.linear.reshapes}
    for f in found:
        product = f.operand.linear.node.output
        for tensor, axes in [(product, [len(graph.dims(product)) - 1]), *f.resized()]:
            if problem := find_reader(graph, tensor, axes, inside, replaced | respelled):
                return problem
    return None
