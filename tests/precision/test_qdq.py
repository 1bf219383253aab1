"""QuantizeLinear and DequantizeLinear around products: scales, and what stands in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import run
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.precision.qdq import IntegerProduct, Scale, choose_scale, insert_integers, quantise_weight

RNG = np.random.default_rng(0)
SCALE = Scale(0.02, 0, "int8")


class TestScales:
    @given(st.floats(-1e4, 1e4), st.floats(0, 1e4), st.sampled_from(["int8", "uint8"]))
    def test_both_ends_and_zero_are_covered(self, low: float, length: float, kind: str) -> None:
        high = low + length
        scale = choose_scale(low, high, kind)  # type: ignore[arg-type]
        first, last = (-127, 127) if kind == "int8" else (0, 255)
        reached = [scale.step * (end - scale.zero) for end in (first, last)]
        assert reached[0] - scale.step / 2 <= min(low, 0) + 1e-6
        assert max(high, 0) - 1e-6 <= reached[1] + scale.step / 2
        assert first <= scale.zero <= last

    def test_int8_is_symmetric_and_uint8_is_not(self) -> None:
        assert choose_scale(-0.25, 12.7, "int8") == Scale(pytest.approx(0.1), 0, "int8")
        assert choose_scale(-1.0, 4.1, "uint8") == Scale(pytest.approx(0.02), 50, "uint8")
        assert choose_scale(2.0, 5.1, "uint8") == Scale(pytest.approx(0.02), 0, "uint8")

    def test_nothing_but_zeros(self) -> None:
        assert choose_scale(0.0, 0.0, "int8").step > 0
        assert choose_scale(0.0, 0.0, "uint8").step > 0

    def test_weights_by_column(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("corp_onnx.precision.processor.has_whole_sums", lambda: True)
        weight = RNG.standard_normal((6, 4)).astype(np.float32) * np.array([1, 10, 0.1, 0], np.float32)
        integers, steps = quantise_weight(weight)
        assert np.abs(integers).max(axis=0).tolist() == [127, 127, 127, 0]
        np.testing.assert_allclose(integers * steps, weight, atol=float(steps.max()) / 2 + 1e-6)


def build(*nodes: onnx.NodeProto, **stored: np.ndarray) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", None]) for n in "xy"]
    graph = helper.make_graph(
        list(nodes), "g", values[:1], values[1:], [numpy_helper.from_array(v, n) for n, v in stored.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def as_it_is(product: IntegerProduct) -> IntegerProduct:
    return product


WEIGHT = RNG.standard_normal((4, 3)).astype(np.float32)
BIAS = RNG.standard_normal(3).astype(np.float32)
INPUT = RNG.uniform(-2.5, 2.5, (5, 4)).astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_a_product_in_integers(op: str, turned: bool, tmp_path: Path) -> None:
    if op == "MatMul" and turned:
        pytest.skip("a MatMul turns nothing")
    inputs = ["x", "w", "b"] if op == "Gemm" else ["x", "w"]
    options = {"transB": 1} if turned else {}
    proto = build(
        helper.make_node(op, inputs, ["y"], name="p", **options), w=WEIGHT.T.copy() if turned else WEIGHT, b=BIAS
    )
    insert_integers(proto, {"p": IntegerProduct(WEIGHT, SCALE)}, as_it_is)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "m.onnx")
    integers, steps = quantise_weight(WEIGHT)
    expected = np.rint(INPUT / 0.02).clip(-128, 127) * 0.02 @ (integers * steps) + (BIAS if op == "Gemm" else 0)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", {"x": INPUT})[0], expected, atol=1e-4)
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert sorted(kinds.values()).count(TensorProto.INT8) == 2  # the weight and the zero point
    assert TensorProto.INT32 not in kinds.values()  # a bias stays in float
    assert {n.op_type for n in proto.graph.node} <= {"QuantizeLinear", "DequantizeLinear", "MatMul", "Add"}


def test_what_is_read_twice_is_quantised_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("MatMul", ["x", "w"], ["b"], name="b"),
        helper.make_node("MatMul", ["x", "w"], ["c"], name="left"),
        helper.make_node("Sum", ["a", "b", "c"], ["y"], name="sum"),
    ]
    proto = build(*nodes, w=WEIGHT)
    insert_integers(proto, {name: IntegerProduct(WEIGHT, SCALE) for name in "ab"}, as_it_is)
    ops = [n.op_type for n in proto.graph.node]
    assert (ops.count("QuantizeLinear"), ops.count("DequantizeLinear"), ops.count("MatMul")) == (1, 3, 3)
    left = next(n for n in proto.graph.node if n.name == "left")
    assert list(left.input) == ["x", "w"]


def test_uint8_has_a_zero_point() -> None:
    proto = build(helper.make_node("MatMul", ["x", "w"], ["y"], name="p"), w=WEIGHT)
    insert_integers(proto, {"p": IntegerProduct(WEIGHT, choose_scale(-1.0, 4.1, "uint8"))}, as_it_is)
    (zero,) = (numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == TensorProto.UINT8)
    assert int(zero) == 50


def test_a_bias_of_uint8_is_int32(tmp_path: Path) -> None:
    """As the integer Gemm of ONNX Runtime wants it."""
    proto = build(helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="p"), w=WEIGHT, b=BIAS)
    insert_integers(proto, {"p": IntegerProduct(WEIGHT, choose_scale(-2.5, 2.5, "uint8"), BIAS)}, as_it_is)
    onnx.save(proto, tmp_path / "m.onnx")
    np.testing.assert_allclose(run(tmp_path / "m.onnx", {"x": INPUT})[0], INPUT @ WEIGHT + BIAS, atol=0.15)
    assert [n.op_type for n in proto.graph.node].count("Gemm") == 1
    assert TensorProto.INT32 in {t.data_type for t in proto.graph.initializer}
