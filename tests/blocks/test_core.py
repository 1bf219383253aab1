"""The product of an attention: what is found around a softmax, what a fused operator says, and what is no attention."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from drawn import draw, floats, node_of, sketch

from corp_onnx.blocks.core import OPERATORS, CoreMatch, computed_slot, is_core, match_core, view_operand
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.graph import Graph
from corp_onnx.graph.operators import ATTENTIONS

INPUTS = "float[batch,2,5,6] q, float[batch,2,5,6] k, float[batch,2,5,6] v"
PRODUCT = "t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t)"
STORED = {
    "half": np.float32(0.5), "three": floats(1, 1, 1, 1) * 0 + 3, "mask": floats(5, 5), "no": floats(1) * 0 - 9,
    "bools": np.eye(5, dtype=bool), "last": np.array([3]), "low": np.float32(-50), "table": floats(2, 5, 6),
    "weight": floats(6, 6), "sizes": np.array([1, 1]),
}  # fmt: skip


def draw_core(logits: str, values: str = "y = MatMul(p, v)", axis: int = -1) -> str:
    """A body: the product as `l`, what makes `m` of it, its softmax `p`, and what becomes of that."""
    return f"{PRODUCT} {logits} p = Softmax<axis={axis}>(m) {values}"


def core_of(graph: Graph) -> CoreMatch | Mismatch | None:
    (node,) = [n for n in graph.nodes if is_core(n)]
    return match_core(graph, node)


def match(folder: Path, body: str, outputs: tuple[str, ...] = ()) -> CoreMatch:
    found = core_of(draw(body, folder, INPUTS, outputs, **STORED))
    assert isinstance(found, CoreMatch), found
    return found


def mismatch(folder: Path, body: str, outputs: tuple[str, ...] = ()) -> Mismatch:
    found = core_of(draw(body, folder, INPUTS, outputs, **STORED))
    assert isinstance(found, Mismatch), found
    return found


WAYS = {
    "m = Identity(l)": (1.0, 0, ()),
    "m = Mul(l, half)": (0.5, 0, ("scaled logits",)),
    "m = Mul(half, l)": (0.5, 0, ("scaled logits",)),
    "m = Div(l, three)": (1 / 3, 0, ("scaled logits",)),
    "a = Div(l, three) m = Mul(a, half)": (1 / 6, 0, ("scaled logits",) * 2),
    "m = Add(l, mask)": (1.0, 0, ("mask or bias",)),
    "m = Add(mask, l)": (1.0, 0, ("mask or bias",)),
    "m = Sub(l, mask)": (1.0, 0, ("mask",)),
    "m = Where(bools, l, no)": (1.0, 0, ("mask",)),
    "m = Where(bools, no, l)": (1.0, 0, ("mask",)),
    "m = Max(l, low)": (1.0, 0, ("guard",)),
    "m = Clip(l, low)": (1.0, 0, ()),
    "a = Mul(l, half) m = Add(a, mask)": (0.5, 0, ("scaled logits", "mask or bias")),
    "a = Add(l, mask) m = Mul(a, half)": (0.5, 0, ("mask or bias", "scaled logits")),
    "c = Cast<to=1>(l) m = Dropout(c)": (1.0, 0, ()),
    "s = Shape(q) d = Gather(s, last) f = Cast<to=1>(d) r = Sqrt(f) m = Div(l, r)": (6**-0.5, 1, ("scaled logits",)),
}
"""What stands between product and softmax: scale, slots of it that are computed, tags."""


class TestSoftmax:
    @pytest.mark.parametrize("way", WAYS)
    def test_way_of_the_logits(self, way: str, tmp_path: Path) -> None:
        """Traps 1 and 6: the scale is one number, whatever adds up beside it."""
        found = match(tmp_path, draw_core(way))
        scale, n_slots, tags = WAYS[way]
        assert found.scale == pytest.approx(scale, rel=1e-6)
        assert len(found.slots) == n_slots
        assert found.tags == tags
        assert (found.core, found.node.output, found.n_heads) == ("softmax", "l", None)
        assert (found.q, found.k, found.v, found.output) == ("q", "t", "v", "y")
        assert found.views == ("rows", "columns", "rows")

    def test_computed_scale_is_a_slot_and_a_stored_one_is_not(self, tmp_path: Path) -> None:
        body = draw_core("s = Shape(q) d = Gather(s, last) f = Cast<to=1>(d) a = Mul(f, l) m = Mul(a, half)")
        graph = draw(body, tmp_path, INPUTS, **STORED)
        assert [(s.name, s.idx) for s in computed_slot(graph, node_of(graph, "a"), 0)] == [("f", 0)]
        assert computed_slot(graph, node_of(graph, "m"), 1) == ()
        found = core_of(graph)
        assert isinstance(found, CoreMatch)
        assert [s.node.output for s in found.slots] == ["a"]
        assert found.scale == pytest.approx(3.0)  # 6 / 2

    @pytest.mark.parametrize(
        ("product", "q", "views"),
        [
            ("l = com.microsoft.FusedMatMul<transB=1,alpha=0.25>(q, k)", "q", ("rows", "rows", "rows")),
            ("a = Transpose<perm=[0,1,3,2]>(q) l = com.microsoft.FusedMatMul<transA=1,transB=1,alpha=0.25>(a, k)",
             "a", ("columns", "rows", "rows")),
        ],
    )  # fmt: skip
    def test_product_with_its_own_scale_and_turns(
        self, product: str, q: str, views: tuple[str, str, str], tmp_path: Path
    ) -> None:
        found = match(tmp_path, f"{product} m = Mul(l, half) p = Softmax(m) y = MatMul(p, v)")
        assert (found.q, found.k, found.views) == (q, "k", views)
        assert found.scale == pytest.approx(0.125)

    @pytest.mark.parametrize(
        "values",
        [
            "c = Cast<to=1>(p) d = Dropout(c) y = MatMul(d, v)",
            "n = IsNaN(p) g = Where(n, low, p) y = MatMul(g, v)",
            "g = Mul(p, half) y = MatMul(g, v)",
            "s = Shape(p) y = MatMul(p, v)",
        ],
    )
    def test_way_of_the_weights(self, values: str, tmp_path: Path) -> None:
        """Trap 6: casts, dropout and the guard against a row that is masked altogether."""
        found = match(tmp_path, draw_core("m = Identity(l)", values))
        assert (found.v, found.output) == ("v", "y")

    def test_last_axis_by_its_number(self, tmp_path: Path) -> None:
        assert match(tmp_path, draw_core("m = Identity(l)", axis=3)).output == "y"

    @pytest.mark.parametrize("axis", [2, 1, -2])
    def test_softmax_over_another_axis(self, axis: int, tmp_path: Path) -> None:
        found = mismatch(tmp_path, draw_core("m = Identity(l)", axis=axis))
        assert found.reason == f"expected a softmax over the last axis, found axis {axis}"
        assert found.node.op == "Softmax"

    def test_default_axis_of_old_opsets(self, tmp_path: Path) -> None:
        """Before opset 13 it is 1, and everything behind is flattened: heads and queries share one softmax."""
        body = f"{PRODUCT} p = Softmax(l) y = MatMul(p, v)"
        assert isinstance(core_of(draw(body, tmp_path, INPUTS, opset=11, **STORED)), Mismatch)

    def test_stored_queries_are_an_attention(self, tmp_path: Path) -> None:
        """A learned query meets computed keys; that it is no projection is for the operand to say."""
        body = "t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(table, t) p = Softmax(l) y = MatMul(p, v)"
        assert match(tmp_path, body).q == "table"

    @pytest.mark.parametrize(
        "body",
        [
            "l = MatMul(q, weight) y = Softmax(l)",  # a classifier
            "m = Tanh(q) p = Softmax(m) y = MatMul(p, weight)",  # a gate in front of a projection
            "y = Softmax(q)",
            f"{PRODUCT} m = Tanh(l) y = Softmax(m)",
        ],
    )
    def test_softmax_that_is_no_attention(self, body: str, tmp_path: Path) -> None:
        assert core_of(draw(body, tmp_path, INPUTS, **STORED)) is None

    @pytest.mark.parametrize(
        ("body", "outputs", "reason", "at"),
        [
            (draw_core("m = Tanh(l)"), (),
             "expected a product of queries and keys behind the softmax, found none", "p"),
            (draw_core("m = Add(l, l)"), (), "expected a product of queries and keys", "p"),  # both sides are logits
            ("m = Sub(v, v) p = Softmax(m) x = Transpose<perm=[0,1,3,2]>(v) y = MatMul(p, x)", (),
             "expected a product of queries and keys", "p"),
            (draw_core("a = Sub(mask, l) m = Identity(a)"), (), "expected a product of queries and keys", "p"),
            ('l = Einsum<equation="bhnd,bhmd->bhnm">(q, k) m = Mul(l, half) p = Softmax(m) y = MatMul(p, v)', (),
             "expected queries and keys to meet in a MatMul, found an Einsum", "l"),
            ('l = Einsum<equation="bhnd,bhmd->bhnm">(q, k) m = Add(l, mask) p = Softmax(m) y = MatMul(p, v)', (),
             "expected queries and keys to meet in a MatMul, found an Einsum", "l"),
            (draw_core("m = Identity(l)", "y = MatMul(p, v) z = Relu(p)"), ("y", "z"),
             "expected one reader of the attention weights, found 2", "p"),
            (draw_core("m = Identity(l)", "y = Identity(p)"), (),
             "expected one reader of the attention weights, found 0", "p"),
            (draw_core("m = Identity(l)", "g = Relu(p) y = MatMul(g, v)"), (),
             "expected the attention weights to meet the values in a MatMul", "g"),
            (draw_core("m = Identity(l)", "x = Transpose<perm=[0,1,3,2]>(v) y = MatMul(x, p)"), (),
             "expected the attention weights to meet the values in a MatMul", "y"),
            (draw_core("m = Identity(l)", "y = MatMul(p, table)"), (),  # stored values
             "expected the attention weights to meet the values in a MatMul", "y"),
        ],
    )  # fmt: skip
    def test_almost_an_attention(
        self, body: str, outputs: tuple[str, ...], reason: str, at: str, tmp_path: Path
    ) -> None:
        found = mismatch(tmp_path, body, outputs)
        assert found.reason.startswith(reason)
        assert at in found.node.outputs
        assert found.depth == 1


BHND, BND = (2, 3, 5, 4), (2, 5, 12)


def fused(call: str, **shapes: tuple[int, ...]) -> CoreMatch | Mismatch | None:
    """The core of a fused operator on inputs of these shapes, the batch of two."""
    inputs = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in shapes.items())
    return core_of(sketch(call, dict(shapes), inputs))


class TestOperator:
    @pytest.mark.parametrize(
        ("call", "shape", "view", "d_qk"),
        [
            ("y = Attention(q, k, v)", BHND, "rows", 4),
            ("y = Attention<q_num_heads=3,kv_num_heads=3>(q, k, v)", BND, "heads3", 4),
            ("y = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v)", BND, "heads3", 4),
        ],
    )
    def test_default_scale_is_of_the_head(self, call: str, shape: tuple[int, ...], view: str, d_qk: int) -> None:
        """Trap 1: the operator takes the width that it sees; here it becomes a number."""
        found = fused(call, q=shape, k=shape, v=shape)
        assert isinstance(found, CoreMatch)
        assert found.scale == pytest.approx(d_qk**-0.5)
        assert (found.views, found.n_heads, found.output) == ((view,) * 3, 3, "y")
        assert (found.q, found.k, found.v) == ("q", "k", "v")
        assert found.core == found.node.op

    def test_scale_of_its_own(self) -> None:
        found = fused("y = Attention<scale=0.3>(q, k, v)", q=BHND, k=BHND, v=BHND)
        assert isinstance(found, CoreMatch)
        assert found.scale == pytest.approx(0.3)

    def test_keys_of_another_rank(self) -> None:
        """Keys and values of MultiHeadAttention may be [B, H, M, d] beside queries [B, N, H*d]."""
        call = "y = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v)"
        found = fused(call, q=BND, k=(2, 3, 7, 4), v=(2, 3, 7, 4))
        assert isinstance(found, CoreMatch)
        assert found.views == ("heads3", "rows", "rows")

    def test_packed(self) -> None:
        """Trap 9: q, k and v as [B, N, H, 3, d], or k and v as [B, M, H, 2, d]."""
        found = fused("y = com.microsoft.MultiHeadAttention<num_heads=3>(q)", q=(2, 5, 3, 3, 4))
        assert isinstance(found, CoreMatch)
        assert (found.views, found.tags) == (("packed0/3", "packed1/3", "packed2/3"), ("packed qkv",))
        assert (found.q, found.k, found.v, found.scale) == ("q", "q", "q", 0.5)
        found = fused("y = com.microsoft.MultiHeadAttention<num_heads=3>(q, k)", q=BND, k=(2, 7, 3, 2, 4))
        assert isinstance(found, CoreMatch)
        assert (found.views, found.tags) == (("heads3", "packed0/2", "packed1/2"), ("packed kv",))
        assert (found.q, found.k, found.v, found.scale) == ("q", "k", "k", 0.5)

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            ("y = Attention<softcap=30.0>(q, k, v)", "expected no soft cap on the logits"),
            ("y = Attention(q, k, v, , k, v)", r"expected no cached keys \(this is an encoder tool\)"),
            ("y = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, , , , k, v)", "expected no cached keys"),
            ("y, pk, pv = Attention(q, k, v)", "expected the attention output alone, found keys, values or logits"),
            ("y = Attention<q_num_heads=3,kv_num_heads=1>(q, k, v)",
             "expected one key head for each query head, found 3 and 1"),
            ("y = com.microsoft.GroupQueryAttention<num_heads=3,kv_num_heads=1>(q, k, v)",
             "the fused operator GroupQueryAttention is not known here"),
            ("y = com.microsoft.DecoderAttention<num_heads=3>(q, k, v)",
             "the fused operator DecoderAttention is not known here"),
        ],
    )  # fmt: skip
    def test_operator_that_does_more(self, call: str, reason: str) -> None:
        found = fused(call, q=BHND, k=BHND, v=BHND)
        assert isinstance(found, Mismatch)
        assert re.match(reason, found.reason)
        assert found.node.output == "y"

    def test_bias_beside_packed_inputs(self) -> None:
        head = "y = com.microsoft.MultiHeadAttention<num_heads=3>"
        for found in (
            fused(f"{head}(q, , , b)", q=(2, 5, 3, 3, 4), b=(36,)),
            fused(f"{head}(q, k, , b)", q=BND, k=(2, 7, 3, 2, 4), b=(36,)),
        ):
            assert isinstance(found, Mismatch)
            assert found.reason == "expected no bias inside an operator with packed inputs"

    @pytest.mark.parametrize("name", sorted(ATTENTIONS - OPERATORS))
    def test_every_other_fused_attention_is_named(self, name: str) -> None:
        found = fused(f"y = com.microsoft.{name}(q, k, v)", q=BHND, k=BHND, v=BHND)
        assert isinstance(found, Mismatch)
        assert name in found.reason

    def test_name_in_a_foreign_domain(self) -> None:
        """Somebody's own Attention may be anything."""
        graph = sketch("y = their.own.Attention(q)", {"q": BHND}, "float[2,3,5,4] q")
        assert not is_core(graph.nodes[0])


def test_views_are_of_one_operand() -> None:
    """Whatever an operator reads, [lead..., tokens, d_head] holds the same numbers."""
    b, h, n, d = 2, 3, 5, 4
    whole = np.arange(b * h * n * d).reshape(b, h, n, d)
    token_first = whole.transpose(0, 2, 1, 3)  # [B, N, H, d]
    packed = np.stack([token_first * 0, token_first], axis=3)  # [B, N, H, 2, d]
    for view, array in (
        ("rows", whole), ("columns", whole.swapaxes(2, 3)), ("heads3", token_first.reshape(b, n, h * d)),
        ("packed1/2", packed),
    ):  # fmt: skip
        assert np.array_equal(view_operand(array, view), whole), view
