"""From P @ V to the output projection: which columns of it are which head's, and what forbids to narrow them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import draw, floats, sketch

from corp_onnx.blocks.core import MAX_PATH, CoreMatch, is_core, match_core
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.blocks.operand import Found, match_operand
from corp_onnx.blocks.output import match_output
from corp_onnx.blocks.products import AttentionOutput
from corp_onnx.graph import Graph

H, D = 2, 3
STORED = {
    "wq": floats(6, 6, seed=1), "wk": floats(6, 6, seed=2), "wv": floats(6, 6, seed=3), "wo": floats(6, 6, seed=4),
    "bo": floats(6, seed=5), "heads": np.array([0, 5, H, D]), "flat": np.array([0, 5, 6]),
    "tokens": np.array([-1, 6]), "back": np.array([-1, 5, 6]), "folded": np.array([5, -1, D]),
    "tb": np.array([5, -1, 6]), "last": np.array([3]), "lead": np.array([0, 1]), "thirds": np.array([0, 5, 2, 3]),
    "wide": floats(3, 6), "parts": np.array([-1, 5, 3]), "g": floats(6), "half": np.float32(0.5),
    "front": np.array([0, 5]), "two": np.array([2]), "rows": np.array([0, 10, D]),
    "swapped": np.array([0, 1, 3, 2, *range(4, 10)]),
}  # fmt: skip
HEADS = "".join(
    f" {letter}p = MatMul(x, w{letter}) {letter}r = Reshape({letter}p, heads)"
    f" {letter} = Transpose<perm={perm}>({letter}r)"
    for letter, perm in (("q", "[0,2,1,3]"), ("k", "[0,2,3,1]"), ("v", "[0,2,1,3]"))
)
CORE = f"{HEADS} l = MatMul(q, k) p = Softmax(l) y = MatMul(p, v)"
MERGE = "t = Transpose<perm=[0,2,1,3]>(y) r = Reshape(t, flat)"
FAR = " ".join(f"i{i + 1} = Identity({f'i{i}' if i else 'r'})" for i in range(MAX_PATH))


def draw_output(tail: str, folder: Path, outputs: tuple[str, ...] = ()) -> tuple[Graph, CoreMatch, Found]:
    """Heads of width 3 with `y` [batch, 2, 5, 3] as P @ V, and a tail behind it."""
    return with_values(draw(f"{CORE} {tail}", folder, outputs=outputs, **STORED))


def with_values(graph: Graph) -> tuple[Graph, CoreMatch, Found]:
    core = next(c for n in graph.nodes if is_core(n) and isinstance(c := match_core(graph, n), CoreMatch))
    v = match_operand(graph, core.v, core.views[2], core, "v")
    assert isinstance(v, Found), v
    return graph, core, v


TAILS = {
    f"{MERGE} o = MatMul(r, wo) z = Add(x, o)": ("r", None, ["r"], [2]),
    f"{MERGE} m = MatMul(r, wo) o = Add(bo, m) z = Add(x, o)": ("r", "bo", ["r"], [2]),
    f"{MERGE} f = Reshape(r, tokens) m = Gemm(f, wo, bo) o = Reshape(m, back) z = Add(x, o)": (
        "f", "bo", ["r", "f"], [2, 1]),
    f"c = Cast<to=1>(y) d = Dropout(c) {MERGE.replace('(y)', '(d)')} o = MatMul(r, wo) z = Add(x, o)": (
        "r", None, ["r"], [2]),
    "s = Shape(y) n = Gather(s, last) w = Mul(n, two) c = Concat<axis=0>(front, w)"
    " t = Transpose<perm=[0,2,1,3]>(y) r = Reshape(t, c) o = MatMul(r, wo) z = Add(x, o)": ("r", None, ["r"], [2]),
    f"n = Shape<end=2>(y) {MERGE} o = MatMul(r, wo) z = Add(x, o)": ("r", None, ["r"], [2]),
}  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
def test_heads_side_by_side(tail: str, tmp_path: Path) -> None:
    """Traps 4 and 7: bias on either side or in a Gemm on flattened tokens; each Reshape spells the width of a head."""
    data, bias, spelled, axes = TAILS[tail]
    graph, core, v = draw_output(tail, tmp_path)
    out = match_output(graph, core, v)
    assert isinstance(out, AttentionOutput), out
    assert np.array_equal(out.channel_idx, np.arange(6).reshape(H, D))
    assert (out.linear.input, out.linear.weight.name) == (data, "wo")
    assert (None if out.linear.bias is None else out.linear.bias.name) == bias
    assert [s.node.output for s in out.spellings] == spelled
    assert [(s.axis, s.n_folded) for s in out.spellings] == [(axis, H) for axis in axes]
    assert out.residual is not None
    assert (out.residual.stream, out.residual.skip) == ("z", "x")


def test_columns_are_what_the_product_reads(tmp_path: Path) -> None:
    """Columns of one head times its rows of W_O, summed over heads, are the projection's output."""
    from corp_onnx.run.noise import random_feeds
    from corp_onnx.run.tapped import open_tapped

    graph, core, v = draw_output(f"{MERGE} o = MatMul(r, wo) z = Add(x, o)", tmp_path)
    out = match_output(graph, core, v)
    assert isinstance(out, AttentionOutput)
    found = open_tapped(graph.model, ["y", "o"]).run(random_feeds(graph.model, 2))
    weight = out.linear.read_weight(graph)
    parts = [found["y"][:, head] @ weight[:, idx].T for head, idx in enumerate(out.channel_idx)]
    np.testing.assert_allclose(sum(parts), found["o"], rtol=1e-4, atol=1e-4)


def test_no_residual_behind_it(tmp_path: Path) -> None:
    """An attention pooling, say: its output can be narrowed all the same."""
    graph, core, v = draw_output(f"{MERGE} o = MatMul(r, wo) z = Relu(o)", tmp_path)
    out = match_output(graph, core, v)
    assert isinstance(out, AttentionOutput)
    assert out.residual is None


def test_heads_in_the_batch(tmp_path: Path) -> None:
    """Trap 6: [B*H, N, d] -> [N, B, H*d], as torchvision writes it."""
    body = "xt = Transpose<perm=[1,0,2]>(x) "
    for letter, perm in (("q", "[1,0,2]"), ("k", "[1,2,0]"), ("v", "[1,0,2]")):
        body += f"{letter}p = MatMul(xt, w{letter}) {letter}r = Reshape({letter}p, folded) "
        body += f"{letter} = Transpose<perm={perm}>({letter}r) "
    body += "l = MatMul(q, k) p = Softmax(l) y = MatMul(p, v) t = Transpose<perm=[1,0,2]>(y) r = Reshape(t, tb)"
    graph, core, v = with_values(draw(f"{body} o = MatMul(r, wo) z = Add(xt, o)", tmp_path, **STORED))
    out = match_output(graph, core, v)
    assert isinstance(out, AttentionOutput), out
    assert np.array_equal(out.channel_idx, np.arange(6).reshape(H, D))
    assert [(s.axis, s.n_folded) for s in out.spellings] == [(2, H)]


def test_operator_that_merges_the_heads_itself() -> None:
    """MultiHeadAttention gives [B, N, H*d]: there is nothing to spell."""
    body = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
    body += " y = com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v) o = MatMul(y, wo) z = Add(x, o)"
    shapes = dict.fromkeys("xqkvyoz", (2, 5, 6))
    graph, core, v = with_values(sketch(body, shapes, "float[2,5,6] x", **STORED))
    out = match_output(graph, core, v)
    assert isinstance(out, AttentionOutput), out
    assert (out.spellings, out.channel_idx.tolist()) == ((), [[0, 1, 2], [3, 4, 5]])


MISMATCHES = {
    f"{MERGE} g1 = Mul(r, g) o = MatMul(g1, wo)": ((), "Mul sits between the values and the output projection", "g1"),
    "u = Tanh(y) t = Transpose<perm=[0,2,1,3]>(u) r = Reshape(t, flat) o = MatMul(r, wo)": (
        (), "Tanh sits between the values and the output projection", "u"),
    f"{MERGE} o = MatMul(r, wo) z = ReduceMax(y)": (
        ("o", "z"), "expected one reader of the attention output, found 2", "l"),
    f"{MERGE} o = MatMul(r, wo) z = ReduceMax(r)": (
        ("o", "z"), "expected one reader of the attention output, found 2", "l"),
    f"{MERGE}": (("r",), "expected one reader of the attention output, found 0", "l"),
    "t = Transpose<perm=[0,2,3,1]>(y) r = Reshape(t, flat) o = MatMul(r, wo)": (
        (), "expected the heads side by side in front of the output projection", "l"),  # dimensions first
    "r = Reshape(y, flat) o = MatMul(r, wo)": (
        (), "expected the heads side by side in front of the output projection", "l"),  # tokens in place of heads
    "t = Transpose<perm=[0,2,1,3]>(y) a = Reshape(t, rows) b = Gather<axis=1>(a, swapped) r = Reshape(b, flat)"
    " o = MatMul(r, wo)": (
        (), "expected the heads side by side in front of the output projection", "l"),  # in one token otherwise
    f"{MERGE} f = Reshape(r, tokens) e = Reshape(x, tokens) o = Gemm(e, wo, f)": (
        (), "Gemm sits between the values and the output projection", "o"),  # added to it
    "r = Reshape(y, parts) o = MatMul(r, wide)": (
        (), "expected the heads side by side in front of the output projection", "l"),  # heads as images
    f"{MERGE} f = Reshape(r, tokens) o = Gemm<alpha=0.5>(f, wo)": ((), "expected alpha = beta = 1 and transA = 0", "o"),
    f"{MERGE} o = MatMul(r, wo) s = Shape(y) n = Gather(s, last) c = Cast<to=1>(n) z = Div(o, c)": (
        (), "Div 'z' reads 'y' as well, so its width can not change", "z"),
    f"{MERGE} o = MatMul(r, wo) z = Relu(o)": (("z", "t"), "'t' is an output of the graph, so its width can not", "t"),
    f"{MERGE} {FAR} o = MatMul(i{MAX_PATH}, wo)": ((), "no output projection found", "l"),
}  # fmt: skip


@pytest.mark.parametrize("tail", MISMATCHES)
def test_what_forbids_it(tail: str, tmp_path: Path) -> None:
    """Trap 11."""
    outputs, reason, at = MISMATCHES[tail]
    graph, core, v = draw_output(tail, tmp_path, outputs)
    found = match_output(graph, core, v)
    assert isinstance(found, Mismatch), found
    assert found.reason.startswith(reason), found.reason
    assert found.node.output == at, found.node


def test_shape_that_is_asked_for_its_leading_axes(tmp_path: Path) -> None:
    """Exporters compute the target of the merging Reshape from the shape of P @ V."""
    tail = f"s = Shape(y) n = Gather(s, lead) c = Cast<to=1>(n) m = ReduceMax<keepdims=0>(c) {MERGE} o = MatMul(r, wo)"
    graph, core, v = draw_output(f"{tail} z = Mul(o, m)", tmp_path)
    assert isinstance(match_output(graph, core, v), AttentionOutput)
