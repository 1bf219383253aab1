"""A Gemm with a bias in float16 as MatMul and Add: the same answers, and nothing else is touched."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import probed, run
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.precision.fp16 import convert_to_fp16
from corp_onnx.precision.gemm import part_half_gemms

RNG = np.random.default_rng(0)


def build(**attributes: float) -> onnx.ModelProto:
    """Two Gemms of one weight, so that y is 3 x 3; the second without a bias."""
    weight, bias = RNG.standard_normal((3, 3)).astype(np.float16), RNG.standard_normal((1, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], name="first", **attributes),
        helper.make_node("Gemm", ["z", "w"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [3, 3]) for n in "xy"]
    stored = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("turned", [0, 1])
def test_same_answers(turned: int, tmp_path: Path) -> None:
    proto = build(transB=turned)
    parted = copy.deepcopy(proto)
    part_half_gemms(parted, Path())
    onnx.checker.check_model(parted, full_check=True)
    assert [n.op_type for n in parted.graph.node] == ["MatMul", "Add", "Gemm"]
    feeds = {"x": RNG.standard_normal((3, 3)).astype(np.float16)}
    answers: list[np.ndarray] = []
    for name, model in (("parted", parted), ("whole", proto)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        answers += run(tmp_path / f"{name}.onnx", feeds)
    found, expected = answers
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}])
def test_others_stay(attributes: dict[str, float]) -> None:
    proto = build(**attributes)
    before = proto.SerializeToString()
    part_half_gemms(proto, Path())
    assert proto.SerializeToString() == before


def test_no_half_model_has_one() -> None:
    graph, _ = probed("timm_vit_ts17_fused")
    assert any(node.op == "Gemm" for node in graph.nodes)
    assert not [n for n in convert_to_fp16(graph).proto.graph.node if n.op_type == "Gemm"]
