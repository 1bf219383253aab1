"""Weight products: what counts as one, its layout and bias in every spelling, and the residual addition behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import draw, floats, node_of, sketch

from corp_onnx.blocks.linear import (
    MAX_TO_RESIDUAL,
    Mismatch,
    following_bias,
    is_channel_vector,
    is_product,
    is_scalar,
    match_linear,
    residual_after,
)
from corp_onnx.blocks.products import Linear, Residual
from corp_onnx.graph import Graph
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.tapped import open_tapped

W, B = floats(6, 7), floats(7, seed=1)  # [d_in, d_out]


def linear_at(graph: Graph, tensor: str) -> Linear:
    found = match_linear(graph, node_of(graph, tensor))
    assert isinstance(found, Linear), found
    return found


def mismatch_at(graph: Graph, tensor: str) -> str:
    """The reason, at the very node that was asked for."""
    found = match_linear(graph, node_of(graph, tensor))
    assert isinstance(found, Mismatch)
    assert found.node is node_of(graph, tensor)
    return found.reason


class TestIsProduct:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("y = MatMul(x, w)", True),
            ("y = com.microsoft.FusedMatMul(x, w)", True),
            ("y = MatMul(v, x)", False),  # a stored matrix in front mixes tokens
            ("t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)", False),
            ("y = MatMul(x, vector)", False),
            ("y = MatMul(x, batch)", False),  # a matrix for each image
            ("y = MatMul(v, v)", False),  # stored itself
            ("y = Mul(x, row)", False),
        ],
    )
    def test_data_times_a_stored_matrix(self, body: str, expected: bool, tmp_path: Path) -> None:
        stored = {"w": W, "v": floats(5, 5), "vector": floats(6), "batch": floats(2, 6, 7), "row": floats(6)}
        graph = draw(body, tmp_path, **stored)
        assert is_product(graph, node_of(graph, "y")) is expected

    def test_gemm_on_flattened_tokens(self, tmp_path: Path) -> None:
        graph = draw("f = Reshape(x, t) y = Gemm(f, w)", tmp_path, w=W, t=np.array([-1, 6]))
        assert is_product(graph, node_of(graph, "y"))

    def test_weight_that_is_fed(self, tmp_path: Path) -> None:
        """It can change from outside, so it has no width."""
        graph = draw("y = MatMul(x, w)", tmp_path, "float[batch,5,6] x, float[6,7] w")
        assert not is_product(graph, node_of(graph, "y"))
        assert mismatch_at(graph, "y") == "expected a product with a stored matrix"

    def test_nothing(self, tmp_path: Path) -> None:
        assert not is_product(draw("y = MatMul(x, w)", tmp_path, w=W), None)


WEIGHTS = {
    "stored": ("y = MatMul(x, w)", W),
    "transposed": ("v = Transpose<perm=[1,0]>(w) y = MatMul(x, v)", W.T),
    "half": ("c = Cast<to=1>(w) y = MatMul(x, c)", W.astype(np.float16)),
    "identity": ("i = Identity(w) y = MatMul(x, i)", W),
    "fused, transposed": ("y = com.microsoft.FusedMatMul<transB=1>(x, w)", W.T),
    "gemm": ("f = Reshape(x, t) y = Gemm(f, w)", W),
    "gemm, transposed": ("f = Reshape(x, t) y = Gemm<transB=1>(f, w)", W.T),
}


@pytest.mark.parametrize("spelling", WEIGHTS)
def test_layout_is_normalised(spelling: str, tmp_path: Path) -> None:
    """Trap 4: whatever the file stores, the weight is [d_out, d_in] and gives what ONNX Runtime gives."""
    body, stored = WEIGHTS[spelling]
    graph = draw(body, tmp_path, w=stored, t=np.array([-1, 6]), outputs=("y",))
    linear = linear_at(graph, "y")
    assert (linear.d_in, linear.d_out, linear.transposed) == (6, 7, "transB" in node_of(graph, "y").attrs)
    assert (linear.output, linear.bias, linear.output_has_bias) == ("y", None, False)
    assert linear.read_weight(graph).shape == (7, 6)
    assert linear.read_bias(graph) is None
    assert linear.node is node_of(graph, "y")
    found = open_tapped(graph.model, [linear.input]).run(random_feeds(graph.model, 2))
    np.testing.assert_allclose(found["y"], found[linear.input] @ linear.read_weight(graph).T, rtol=1e-3, atol=1e-3)


BIASES = {
    "right": ("h = MatMul(x, w) y = Add(h, b)", B),
    "left": ("h = MatMul(x, w) y = Add(b, h)", B),
    "with axes of one": ("h = MatMul(x, w) y = Add(h, b)", B.reshape(1, 1, 7)),
    "half": ("c = Cast<to=1>(b) h = MatMul(x, w) y = Add(h, c)", B.astype(np.float16)),
    "gemm": ("f = Reshape(x, t) y = Gemm(f, w, b)", B),
    "behind a gemm": ("f = Reshape(x, t) h = Gemm(f, w) y = Add(h, b)", B),
    "behind a reshape": ("f = Reshape(x, t) h = Gemm(f, w) r = Reshape(h, u) y = Add(r, b)", B),
}


@pytest.mark.parametrize("spelling", BIASES)
def test_bias_wherever_it_is_added(spelling: str, tmp_path: Path) -> None:
    """Trap 4: on either side, in the product or behind it; `output` is the tensor that has it."""
    body, bias = BIASES[spelling]
    targets = {"t": np.array([-1, 6]), "u": np.array([-1, 5, 7])}
    graph = draw(f"{body} z = Relu(y)", tmp_path, outputs=("z", "y"), w=W, b=bias, **targets)
    product = next(n for n in graph.nodes if n.op in ("MatMul", "Gemm"))
    linear = linear_at(graph, product.output)
    assert (linear.output, linear.output_has_bias, linear.bias_offset) == ("y", True, 0)
    assert linear.bias is not None
    assert linear.bias.node is node_of(graph, "y")
    assert [n.op for n in linear.reshapes] == ["Reshape"] * (spelling == "behind a reshape")
    found = linear.read_bias(graph)
    assert found is not None
    np.testing.assert_allclose(found, B, atol=2e-3)
    numbers = open_tapped(graph.model, [linear.input]).run(random_feeds(graph.model, 2))
    expected = numbers[linear.input] @ W + found
    np.testing.assert_allclose(numbers["y"].reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


NO_BIASES = {
    "a table of positions": ("y = Add(h, p)", ()),
    "one number": ("y = Add(h, s)", ()),
    "computed": ("q = Neg(h) y = Add(h, q)", ()),
    "read elsewhere as well": ("q = Relu(h) y = Add(h, b)", ("y", "q")),
    "given out without it": ("y = Add(h, b)", ("y", "h")),
    "another axis in front": ("y = Add(h, wide)", ()),
    "subtracted": ("y = Sub(h, b)", ()),
    "in another width and back": ("r = Reshape(h, u) q = Reshape(r, back) y = Add(q, b)", ()),
    "in another width": ("r = Reshape(h, u) y = Add(r, half)", ()),
}


@pytest.mark.parametrize("spelling", NO_BIASES)
def test_what_is_no_bias(spelling: str, tmp_path: Path) -> None:
    """The product is one all the same, and its output is its own."""
    body, outputs = NO_BIASES[spelling]
    graph = draw(
        f"h = MatMul(x, w) {body}", tmp_path, inputs="float[batch,4,6] x", outputs=outputs, w=floats(6, 8),
        p=floats(4, 8), s=floats(1), b=floats(8), wide=floats(1, 1, 1, 8), u=np.array([-1, 4, 2, 4]),
        back=np.array([-1, 4, 8]), half=floats(4),
    )  # fmt: skip
    linear = linear_at(graph, "h")
    assert (linear.output, linear.bias, linear.reshapes) == ("h", None, ())
    assert following_bias(graph, "h", 8) is None


def test_gemm_with_a_bias_takes_no_second_one(tmp_path: Path) -> None:
    graph = draw("f = Reshape(x, t) h = Gemm(f, w, b) y = Add(h, b)", tmp_path, w=W, b=B, t=np.array([-1, 6]))
    linear = linear_at(graph, "h")
    assert linear.bias is not None
    assert (linear.bias.node.op, linear.output) == ("Gemm", "h")


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ("Gemm<alpha=0.5>(f, w, b)", "expected alpha = beta = 1 and transA = 0"),
        ("Gemm<beta=0.5>(f, w, b)", "expected alpha = beta = 1 and transA = 0"),
        ("Gemm<transA=1>(g, w, b)", "expected alpha = beta = 1 and transA = 0"),
        ("com.microsoft.FusedMatMul<alpha=2.0>(f, w)", "expected alpha = beta = 1 and transA = 0"),
        ("com.microsoft.FusedMatMul<transA=1>(g, w)", "expected alpha = beta = 1 and transA = 0"),
        ('com.microsoft.FusedGemm<activation="Relu">(f, w, b)', "found one with a fused activation"),
        ("Gemm(f, w, one)", r"expected a stored bias of 7, found (1,)"),
        ("Gemm(f, w, rows)", r"expected a stored bias of 7, found (10, 1)"),
        ("Gemm(f, w, computed)", r"expected a stored bias of 7, found (7,)"),
    ],
)
def test_products_that_are_more_than_that(attrs: str, reason: str, tmp_path: Path) -> None:
    graph = draw(
        f"f = Reshape(x, t) g = Transpose(f) m = ReduceMax<keepdims=0>(x) computed = Add(b, m) y = {attrs}", tmp_path,
        w=W, b=B, t=np.array([-1, 6]), one=floats(1), rows=floats(10, 1),
    )  # fmt: skip
    assert reason in mismatch_at(graph, "y")


def test_batch_that_is_transposed_into_the_product() -> None:
    body = "y = com.microsoft.FusedMatMul<transBatchA=1>(x, w)"
    graph = sketch(body, {"x": (5, 2, 6), "y": (2, 5, 7)}, "float[5,2,6] x", w=W)
    assert mismatch_at(graph, "y") == "expected alpha = beta = 1 and transA = 0"


class TestVectorsAndScalars:
    def test_one_number_for_each_channel(self, tmp_path: Path) -> None:
        stored = {
            "plain": floats(6), "lead": floats(1, 1, 6), "table": floats(5, 6), "tail": floats(6, 1), "other": floats(5)
        }  # fmt: skip
        graph = draw("y = Add(x, plain)", tmp_path, **stored)
        found = [name for name in (*stored, "x", "y", "", "nothing") if is_channel_vector(graph, name, 6)]
        assert found == ["plain", "lead"]

    def test_one_element(self, tmp_path: Path) -> None:
        body = "s = Shape<start=1,end=2>(x) c = Cast<to=1>(s) y = Mul(x, c)"
        graph = draw(body, tmp_path, zero=np.float32(1), one=floats(1, 1), two=floats(2))
        assert [n for n in ("zero", "one", "two", "c", "x", "nothing") if is_scalar(graph, n)] == ["zero", "one", "c"]


def residual_of(body: str, folder: Path, outputs: tuple[str, ...] = (), d_model: int = 6) -> Residual | None:
    """What is found behind the tensor `h`, the branch; `x` is the stream."""
    graph = draw(
        f"h = MatMul(x, w) {body}", folder, outputs=outputs, w=floats(6, 6), g=floats(6), b=floats(6), s=np.float32(2),
        flat=np.array([-1, 6]), back=np.array([-1, 5, 6]), axis=np.array([0]),
    )  # fmt: skip
    return residual_after(graph, "h", d_model)


class TestResidual:
    @pytest.mark.parametrize(
        "body",
        [
            "y = Add(x, h)",
            "y = Add(h, x)",
            "c = Cast<to=1>(h) i = Identity(c) d = Dropout(i) y = Add(d, x)",
            "f = Reshape(h, flat) r = Reshape(f, back) y = Add(r, x)",
            "f = Flatten<axis=2>(h) r = Reshape(f, back) y = Add(r, x)",
            "t = Transpose<perm=[1,0,2]>(h) r = Transpose<perm=[1,0,2]>(t) y = Add(r, x)",
            "u = Unsqueeze(h, axis) r = Squeeze(u, axis) y = Add(r, x)",
            "n = Shape(h) y = Add(h, x)",  # who asks for the shape reads no number
        ],
    )
    def test_is_found_through_what_keeps_every_number(self, body: str, tmp_path: Path) -> None:
        found = residual_of(body, tmp_path)
        assert found is not None
        assert (found.stream, found.skip, found.scale, found.bias) == ("y", "x", None, None)

    @pytest.mark.parametrize(("body", "idx"), [("m = Mul(h, g)", 1), ("m = Mul(g, h)", 0)])
    def test_layer_scale(self, body: str, idx: int, tmp_path: Path) -> None:
        """Trap 5."""
        found = residual_of(f"{body} y = Add(x, m)", tmp_path)
        assert found is not None
        assert found.scale is not None
        assert (found.scale.name, found.scale.idx, found.skip) == ("g", idx, "x")

    @pytest.mark.parametrize(
        ("body", "scaled"),
        [
            ("m = Mul(h, s)", False),  # a number is no LayerScale
            ("m = Add(h, b)", False),
            ("n = Mul(h, g) m = Mul(n, b)", True),  # nor are two of them one
            ("n = Sigmoid(x) m = Mul(h, n)", False),
            ("m = LayerNormalization(h, g, b)", False),
        ],
    )
    def test_something_in_between_leaves_no_skip(self, body: str, scaled: bool, tmp_path: Path) -> None:
        """The stream is known; stream = skip + scale * branch is not what it is."""
        found = residual_of(f"{body} y = Add(x, m)", tmp_path)
        assert found is not None
        assert (found.stream, found.skip, found.scale is not None) == ("y", None, scaled)

    @pytest.mark.parametrize(("order", "bias"), [("x, h, g, b", None), ("h, x, g, b, b", "b")])
    def test_inside_a_skip_norm(self, order: str, bias: str | None, tmp_path: Path) -> None:
        """Trap 9: its bias may be the product's own; its output is normalised."""
        found = residual_of(f"y = com.microsoft.SkipLayerNormalization({order})", tmp_path)
        assert found is not None
        assert (found.stream, found.skip) == ("y", None)
        assert (None if found.bias is None else found.bias.name) == bias

    @pytest.mark.parametrize(
        ("body", "outputs"),
        [
            ("y = Relu(h)", ()),
            ("q = Relu(h) y = Add(h, x)", ("q", "y")),  # two readers
            ("y = Add(h, x)", ("y", "h")),
            ("y = Add(h, h)", ()),  # twice the branch
            ("m = Gather(h, axis) y = Add(m, x)", ()),
            ("y = Identity(h)", ("y",)),
        ],
    )
    def test_there_is_none(self, body: str, outputs: tuple[str, ...], tmp_path: Path) -> None:
        assert residual_of(body, tmp_path, outputs) is None

    @pytest.mark.parametrize("n_between", [MAX_TO_RESIDUAL - 1, MAX_TO_RESIDUAL])
    def test_not_further_than_the_longest_known_way(self, n_between: int, tmp_path: Path) -> None:
        """The addition itself is one of the operators that are looked at."""
        chain = " ".join(f"i{i + 1} = Identity(i{i})" for i in range(1, n_between))
        found = residual_of(f"i1 = Identity(h) {chain} y = Add(i{n_between}, x)", tmp_path)
        assert (found is not None) == (n_between < MAX_TO_RESIDUAL)
