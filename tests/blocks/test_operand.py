"""Q, K and V back to their projections: which columns they are, what may stand in between, and what is in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import draw, floats, sketch

from corp_onnx.blocks.core import MAX_PATH, CoreMatch, is_core, match_core
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.blocks.operand import Found, find_rest, match_operand
from corp_onnx.graph import Graph

N, H, D = 5, 2, 3
"""Tokens, heads, width of a head; x is [batch, 5, 6]."""

STORED = {
    "wq": floats(6, 6, seed=1), "wk": floats(6, 6, seed=2), "wv": floats(6, 6, seed=3), "bq": floats(6, seed=4),
    "heads": np.array([0, 5, H, D]), "flat": np.array([-1, 5, 6]), "tokens": np.array([-1, 6]),
    "parted": np.array([-1, 5, H, D]), "half": np.float32(0.5), "ones": floats(D) * 0 + 1, "last": np.array([3]),
    "learnt": floats(1, H, N, D), "bias_in_order": floats(1, 1, 6), "w3": floats(6, 18), "w24": floats(6, 24),
    "five": np.array([0, 5, 3, H, D]), "fours": np.array([0, 5, 4, H, D]),
    "thirds": np.array([6, 6, 6]), "quarters": np.array([6, 6, 6, 6]),
    "zero": np.array(0), "one": np.array(1), "two": np.array(2), "b18": floats(18), "head_bias": floats(H, 1, D),
}  # fmt: skip

SPLIT = "rh = Reshape({0}, heads) {1} = Transpose<perm=[0,2,1,3]>(rh)"
K = "kp = MatMul(x, wk) kr = Reshape(kp, heads) k = Transpose<perm=[0,2,3,1]>(kr)"
V = "vp = MatMul(x, wv) vr = Reshape(vp, heads) v = Transpose<perm=[0,2,1,3]>(vr)"
CORE = "l = MatMul(q, k) p = Softmax(l) y = MatMul(p, v)"


def separate(way: str) -> str:
    """An attention whose queries are made by `way`, as [batch, heads, tokens, d_head] `q`."""
    return f"{way} {K} {V} {CORE}"


def draw_operands(body: str, folder: Path, outputs: tuple[str, ...] = ()) -> tuple[Graph, CoreMatch]:
    graph = draw(body, folder, outputs=outputs, **STORED)
    core = next(c for n in graph.nodes if is_core(n) and isinstance(c := match_core(graph, n), CoreMatch))
    return graph, core


def operand(graph: Graph, core: CoreMatch, letter: str) -> Found | Mismatch:
    place = "qkv".index(letter)
    return match_operand(graph, (core.q, core.k, core.v)[place], core.views[place], core, letter)


def found_of(body: str, folder: Path, letter: str = "q") -> tuple[Graph, CoreMatch, Found]:
    graph, core = draw_operands(body, folder)
    found = operand(graph, core, letter)
    assert isinstance(found, Found), found
    return graph, core, found


PLAIN = np.arange(6).reshape(H, D)

WAYS = {
    "qp = MatMul(x, wq) qr = Reshape(qp, heads) q = Transpose<perm=[0,2,1,3]>(qr)": 1.0,
    "qm = MatMul(x, wq) qp = Add(bq, qm) qr = Reshape(qp, heads) q = Transpose<perm=[0,2,1,3]>(qr)": 1.0,
    "qp = MatMul(x, wq) qs = Mul(qp, half) qr = Reshape(qs, heads) q = Transpose<perm=[0,2,1,3]>(qr)": 0.5,
    "qp = MatMul(x, wq) qr = Reshape(qp, heads) qt = Transpose<perm=[0,2,1,3]>(qr) q = Div(qt, half)": 2.0,
    "qp = MatMul(x, wq) qr = Reshape(qp, heads) qt = Transpose<perm=[0,2,1,3]>(qr) qc = Cast<to=1>(qt) q = Dropout(qc)":
        1.0,
    "f = Reshape(x, tokens) qp = Gemm(f, wq, bq) qr = Reshape(qp, parted) q = Transpose<perm=[0,2,1,3]>(qr)": 1.0,
    "f = Reshape(x, tokens) qm = MatMul(f, wq) qr0 = Reshape(qm, flat) qp = Add(qr0, bq) qr = Reshape(qp, heads)"
    " q = Transpose<perm=[0,2,1,3]>(qr)": 1.0,
}  # fmt: skip


class TestSeparate:
    @pytest.mark.parametrize("way", WAYS)
    def test_heads_side_by_side(self, way: str, tmp_path: Path) -> None:
        """Trap 6: wherever the scale stands, and flattened tokens or not."""
        graph, _, found = found_of(separate(way), tmp_path)
        q = found.operand
        assert np.array_equal(q.channel_idx, PLAIN)
        assert (q.n_tokens, q.token_major, q.is_fused, q.tensor) == (N, False, False, "q")
        assert (q.boundary, q.boundary_perm, q.leading) == (q.linear.output, None, None)
        assert found.scale == pytest.approx(WAYS[way])
        assert q.linear.read_weight(graph).tolist() == STORED["wq"].T.tolist()
        assert [s.node.output for s in q.spellings] == ["qr"]
        assert found.dropped() == ()
        assert found.slots == ()

    def test_keys_and_values(self, tmp_path: Path) -> None:
        graph, core = draw_operands(separate("qp = MatMul(x, wq) " + SPLIT.format("qp", "q")), tmp_path)
        for letter, weight in (("k", "wk"), ("v", "wv")):
            found = operand(graph, core, letter)
            assert isinstance(found, Found)
            assert found.operand.linear.weight.name == weight
            assert np.array_equal(found.operand.channel_idx, PLAIN)

    def test_tensors_that_change_their_width(self, tmp_path: Path) -> None:
        _, _, found = found_of(separate("qp = MatMul(x, wq) " + SPLIT.format("qp", "q")), tmp_path)
        assert found.resized() == [("qp", [2]), ("rh", [3]), ("q", [3])]

    def test_computed_scale(self, tmp_path: Path) -> None:
        """Trap 1."""
        body = "qp = MatMul(x, wq) rh = Reshape(qp, heads) qt = Transpose<perm=[0,2,1,3]>(rh) s = Shape(qt)"
        body += " g = Gather(s, last) c = Cast<to=1>(g) r = Sqrt(c) q = Div(qt, r)"
        _, _, found = found_of(separate(body), tmp_path)
        assert found.scale == pytest.approx(D**-0.5)
        assert [(s.name, s.idx) for s in found.slots] == [("r", 1)]

    def test_heads_in_the_batch(self, tmp_path: Path) -> None:
        """Trap 6: torchvision puts tokens first and folds heads into the batch: [N, B, H*d] -> [B*H, N, d]."""
        fold = {"first": np.array([5, -1, 6]), "folded": np.array([5, -1, D])}
        body = "xt = Transpose<perm=[1,0,2]>(x) "
        for letter, perm in (("q", "[1,0,2]"), ("k", "[1,2,0]"), ("v", "[1,0,2]")):
            body += f"{letter}p = MatMul(xt, w{letter}) {letter}r = Reshape({letter}p, folded) "
            body += f"{letter} = Transpose<perm={perm}>({letter}r) "
        graph = draw(body + CORE, tmp_path, **STORED, **fold)
        core = next(c for n in graph.nodes if is_core(n) and isinstance(c := match_core(graph, n), CoreMatch))
        for letter in "qkv":
            found = operand(graph, core, letter)
            assert isinstance(found, Found)
            assert found.operand.token_major
            assert np.array_equal(found.operand.channel_idx, PLAIN)
            assert found.head_of_lead.tolist() == [0, 1, 0, 1]  # two images of two heads each

    def test_late_bias(self, tmp_path: Path) -> None:
        """A vector that is added behind a scale is no bias of the product."""
        way = "qp = MatMul(x, wq) qs = Dropout(qp) qb = Add(qs, bias_in_order) " + SPLIT.format("qb", "q")
        graph, _, found = found_of(separate(way), tmp_path)
        assert found.operand.linear.bias is None
        assert found.operand.late_bias is not None
        expected = STORED["bias_in_order"].reshape(H, D)
        assert np.array_equal(found.operand.read_late_bias(graph), expected)


MISMATCHES = {
    "qp = MatMul(x, wq) qt = Tanh(qp) " + SPLIT.format("qt", "q"): (
        "q is changed by Tanh between its projection and the product", "qt"),
    "qp = MatMul(x, wq) " + SPLIT.format("qp", "qn") + " q = LayerNormalization(qn, ones)": (
        "q is changed by a norm (LayerNormalization) between", "q"),
    "qp = MatMul(x, wq) " + SPLIT.format("qp", "qn") + " q = Concat<axis=2>(qn)": (
        "q is changed by Concat (a rotary embedding?) between", "q"),
    "q = Identity(learnt)": ("q is stored or fed and not projected from the tokens (a learned query?)", "l"),
    "rh = Reshape(x, heads) q = Transpose<perm=[0,2,1,3]>(rh)": (
        "q is stored or fed and not projected from the tokens", "rh"),
    "f = Reshape(x, tokens) qp = Gemm<alpha=0.5>(f, wq) qr = Reshape(qp, parted) q = Transpose<perm=[0,2,1,3]>(qr)": (
        "q expected alpha = beta = 1 and transA = 0", "qp"),
    "qp = MatMul(x, wq) " + SPLIT.format("qp", "qn") + " q = Add(qn, head_bias)": (
        "q is changed by Add between", "q"),  # a vector for each head
    "qp = MatMul(x, wq) " + SPLIT.format("qp", "qn") + " q = Add(qn, ones)": (
        "q is changed by an Add that is no bias of its projection", "q"),  # one for all heads
    "qp = MatMul(x, wq) qs = Dropout(qp) qa = Add(qs, bias_in_order) qb = Add(qa, bq) " + SPLIT.format("qb", "q"): (
        "q is changed by Add between", "qa"),
    "qp = MatMul(x, wq) " + " ".join(f"i{i + 1} = Identity({f'i{i}' if i else 'qp'})" for i in range(MAX_PATH)) + " "
    + SPLIT.format(f"i{MAX_PATH}", "q"): (f"q has no projection within {MAX_PATH} operators", "i3"),
}  # fmt: skip


@pytest.mark.parametrize("way", MISMATCHES)
def test_what_is_in_the_way(way: str, tmp_path: Path) -> None:
    """Trap 11: named by the operand's letter, at the node that is in the way."""
    reason, at = MISMATCHES[way]
    graph, core = draw_operands(separate(way), tmp_path)
    found = operand(graph, core, "q")
    assert isinstance(found, Mismatch), found
    assert found.reason.startswith(reason), found.reason
    assert found.node.output == at, found.node


class TestBesideTheProjection:
    def test_scale_in_front_of_a_bias(self, tmp_path: Path) -> None:
        """s * W x + b: a scale would move the bias."""
        way = "qp = MatMul(x, wq) qs = Mul(qp, half) qa = Add(qs, bias_in_order) " + SPLIT.format("qa", "q")
        graph, core = draw_operands(separate(way), tmp_path)
        found = operand(graph, core, "q")
        assert isinstance(found, Mismatch)
        assert found.reason.startswith("q is changed by Mul between its projection and the product")

    def test_taken_before_the_bias(self, tmp_path: Path) -> None:
        """Two readers of the product: the Add is not its bias, so the product itself is what is read."""
        way = "qm = MatMul(x, wq) qp = Add(qm, bq) " + SPLIT.format("qm", "q")
        graph, core = draw_operands(f"{way} {K} {V} {CORE} z = Relu(qp)", tmp_path, ("y", "z"))
        found = operand(graph, core, "q")
        assert isinstance(found, Found)
        assert (found.operand.linear.output, found.operand.linear.bias) == ("qm", None)


FUSED = "f = MatMul(x, w3) f5 = Reshape(f, five) t = Transpose<perm=[2,0,3,1,4]>(f5)"
CUT = "q = Gather(t, zero) kh = Gather(t, one) k = Transpose<perm=[0,1,3,2]>(kh) v = Gather(t, two)"


class TestFused:
    def test_thirds_of_one_product(self, tmp_path: Path) -> None:
        """Trap 2: timm's [B, N, 3, H, d]."""
        graph, core = draw_operands(f"{FUSED} {CUT} {CORE}", tmp_path)
        whole = []
        for third, (letter, boundary) in enumerate((("q", "q"), ("k", "kh"), ("v", "v"))):
            found = operand(graph, core, letter)
            assert isinstance(found, Found)
            assert found.operand.is_fused
            assert (found.operand.boundary, found.operand.boundary_perm) == (boundary, (0, 2, 1, 3))
            assert np.array_equal(found.operand.channel_idx, PLAIN + 6 * third)
            assert [n.output for n in found.dropped()] == ["f5", "t", boundary]
            moved = [("kh", [3]), ("k", [2])] if letter == "k" else [(letter, [3])]
            assert found.resized() == [("f", [2]), *moved]
            whole.append(found)
        assert find_rest(graph, whole, core.node) == ()

    def test_split_of_the_last_axis(self, tmp_path: Path) -> None:
        body = "f = MatMul(x, w3) a, b, c = Split<axis=-1>(f, thirds) " + SPLIT.format("a", "q")
        body += " kr = Reshape(b, heads) k = Transpose<perm=[0,2,3,1]>(kr) vr = Reshape(c, heads)"
        graph, core = draw_operands(f"{body} v = Transpose<perm=[0,2,1,3]>(vr) {CORE}", tmp_path)
        for third, (letter, boundary) in enumerate((("q", "a"), ("k", "b"), ("v", "c"))):
            found = operand(graph, core, letter)
            assert isinstance(found, Found)
            assert (found.operand.boundary, found.operand.boundary_perm) == (boundary, None)
            assert np.array_equal(found.operand.channel_idx, PLAIN + 6 * third)

    def test_rest_that_is_read_by_something_else(self, tmp_path: Path) -> None:
        """The quarter behind q, k and v belongs to an MLP in parallel, say; it stays as it is."""
        body = "f = MatMul(x, w24) a, b, c, d = Split<axis=-1>(f, quarters) " + SPLIT.format("a", "q")
        body += " kr = Reshape(b, heads) k = Transpose<perm=[0,2,3,1]>(kr) vr = Reshape(c, heads)"
        body += f" v = Transpose<perm=[0,2,1,3]>(vr) {CORE} z = Relu(d)"
        graph, core = draw_operands(body, tmp_path, ("y", "z"))
        found = [operand(graph, core, letter) for letter in "qkv"]
        parts = find_rest(graph, [f for f in found if isinstance(f, Found)], core.node)
        assert not isinstance(parts, Mismatch)
        assert [(p.tensor, p.boundary, p.boundary_perm, p.channel_idx.tolist()) for p in parts] == [
            ("d", "d", None, [list(range(18, 24))])
        ]

    def test_part_that_nobody_reads_stays_too(self, tmp_path: Path) -> None:
        body = "f = MatMul(x, w24) a, b, c, d = Split<axis=-1>(f, quarters) " + SPLIT.format("a", "q")
        body += " kr = Reshape(b, heads) k = Transpose<perm=[0,2,3,1]>(kr) vr = Reshape(c, heads)"
        graph, core = draw_operands(f"{body} v = Transpose<perm=[0,2,1,3]>(vr) {CORE}", tmp_path)
        found = [operand(graph, core, letter) for letter in "qkv"]
        parts = find_rest(graph, [f for f in found if isinstance(f, Found)], core.node)
        assert not isinstance(parts, Mismatch)
        assert [p.tensor for p in parts] == ["d"]

    def test_columns_that_nobody_takes(self, tmp_path: Path) -> None:
        """Gathers of three quarters out of four: where the last would go is not known."""
        cut = FUSED.replace("w3", "w24").replace("five", "fours")
        graph, core = draw_operands(f"{cut} {CUT} {CORE}", tmp_path)
        found = [operand(graph, core, letter) for letter in "qkv"]
        parts = find_rest(graph, [f for f in found if isinstance(f, Found)], core.node)
        assert isinstance(parts, Mismatch)
        assert parts.reason == "expected every column of the fused projection to be read once"

    @pytest.mark.parametrize(("reads", "output"), [("z = ReduceMax(t)", "z"), ("", "t")])
    def test_parts_that_are_read_together(self, reads: str, output: str, tmp_path: Path) -> None:
        graph, core = draw_operands(f"{FUSED} {CUT} {CORE} {reads}", tmp_path, ("y", output))
        found = [operand(graph, core, letter) for letter in "qkv"]
        parts = find_rest(graph, [f for f in found if isinstance(f, Found)], core.node)
        assert isinstance(parts, Mismatch)
        assert parts.reason.endswith("reads parts of it together")

    def test_scale_in_front_of_the_cut(self, tmp_path: Path) -> None:
        """What stands there is replaced, so the scale would be lost."""
        body = FUSED.replace("f5 = Reshape(f, five)", "g = Mul(f, half) f5 = Reshape(g, five)")
        graph, core = draw_operands(f"{body} {CUT} {CORE}", tmp_path)
        found = operand(graph, core, "q")
        assert isinstance(found, Mismatch)
        assert found.reason == "q: the way it is cut out of the projection is not understood"
        assert found.node is core.node


MULTI = "y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v, b18)"


def test_bias_inside_the_operator() -> None:
    """Trap 9: q, k and v one after the other in one vector; the projections' outputs are without it."""
    shapes = {"x": (2, 5, 6), "q": (2, 5, 6), "k": (2, 5, 6), "v": (2, 5, 6), "y": (2, 5, 6)}
    body = f"q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) {MULTI}"
    graph = sketch(body, shapes, "float[2,5,6] x", **STORED)
    core = match_core(graph, graph.nodes[-1])
    assert isinstance(core, CoreMatch)
    for place, letter in enumerate("qkv"):
        found = operand(graph, core, letter)
        assert isinstance(found, Found)
        linear = found.operand.linear
        assert (linear.bias_offset, linear.output_has_bias) == (6 * place, False)
        bias = linear.read_bias(graph)
        assert bias is not None
        assert np.array_equal(bias, STORED["b18"][6 * place : 6 * place + 6])


def test_packed_into_one_operator() -> None:
    """[B, N, H, 3, d]: columns of head h are 9 h + 3 which + dim."""
    stored = STORED | {"packed": np.array([0, 5, H, 3, D])}
    shapes = {"x": (2, 5, 6), "f": (2, 5, 18), "q": (2, 5, H, 3, D), "y": (2, 5, 6)}
    body = "f = MatMul(x, w3) q = Reshape(f, packed) y = com.microsoft.MultiHeadAttention<num_heads=2>(q)"
    graph = sketch(body, shapes, "float[2,5,6] x", **stored)
    core = match_core(graph, graph.nodes[-1])
    assert isinstance(core, CoreMatch)
    for place, letter in enumerate("qkv"):
        found = operand(graph, core, letter)
        assert isinstance(found, Found)
        assert np.array_equal(found.operand.channel_idx, np.add.outer([0, 9], 3 * place + np.arange(D)))
        assert found.operand.boundary == "q"
