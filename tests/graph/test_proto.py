"""Weights outside of the message: a session that shares them answers as one that holds them, whoever reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.graph.model import Model
from corp_onnx.graph.proto import SMALL_ELEMENTS, detach_weights
from corp_onnx.run.sessions import start_session

SIDE = 70
assert SIDE**2 > SMALL_ELEMENTS


def make(nodes: Sequence[onnx.NodeProto], kind: type = np.float32) -> onnx.ModelProto:
    """x [1, SIDE] -> y; large stored tensors are w and v."""
    rng = np.random.default_rng(0)
    stored = [numpy_helper.from_array((9 * rng.standard_normal((SIDE, SIDE))).astype(kind), name) for name in "wv"]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    face = [helper.make_tensor_value_info(name, element, [1, SIDE]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", face[:1], face[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(proto: onnx.ModelProto, kind: type) -> tuple[np.ndarray, np.ndarray]:
    x = np.ones((1, SIDE), kind)
    options = onnxruntime.SessionOptions()
    expected = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]
    return start_session(proto, Model(proto, Path("m.onnx"), "")).run(None, {"x": x})[0], expected


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64, np.int32, np.int64])
def test_types(kind: type) -> None:
    found, expected = answers(make([PRODUCT], kind), kind)
    np.testing.assert_array_equal(found, expected)
    light, arrays = detach_weights(make([PRODUCT], kind))
    assert list(arrays) == ["w"]
    assert arrays["w"].dtype == kind
    assert {t.name: t.data_location for t in light.graph.initializer} == {"w": TensorProto.EXTERNAL, "v": 0}


def test_weight_that_nobody_reads_stays_inside() -> None:
    """ONNX Runtime drops it while it loads, and would then miss it."""
    np.testing.assert_array_equal(*answers(make([PRODUCT]), np.float32))


def test_weight_that_only_a_dead_node_reads() -> None:
    dead = helper.make_node("MatMul", ["x", "v"], ["nowhere"])
    np.testing.assert_array_equal(*answers(make([PRODUCT, dead]), np.float32))


def test_weight_that_an_inner_graph_reads() -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", weight], [f"{name}_y"])], name, [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, SIDE])],
        )
        for name, weight in (("then_branch", "w"), ("else_branch", "v"))
    }  # fmt: skip
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    proto = make([yes, helper.make_node("If", ["yes"], ["y"], **branches)])
    assert sorted(detach_weights(proto)[1]) == ["v", "w"]
    np.testing.assert_array_equal(*answers(proto, np.float32))


def test_weight_of_the_wrong_length_is_left_to_onnx_runtime() -> None:
    proto = make([PRODUCT])
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    assert detach_weights(proto)[1] == {}


def test_more_initializers_than_its_own() -> None:
    proto = make([PRODUCT])
    stored = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    light, arrays = detach_weights(proto, stored)
    assert list(arrays) == ["w"]
    assert len(light.graph.initializer) == 2
    assert len(proto.graph.initializer) == 0
