"""A file that quantises against the float model that it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from graphs import probed, run
from onnx import TensorProto, helper, numpy_helper
from samples import fixture_path

from corp_onnx.blocks import find_blocks
from corp_onnx.graph.model import Model, hash_file
from corp_onnx.run.comparison import relative_difference
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.tensorrt.unquantised import drop_quantisation

QDQ = fixture_path("timm_vit_ts17_qdq")


def test_its_answers_and_its_blocks(tmp_path: Path) -> None:
    proto = drop_quantisation(onnx.load(QDQ), QDQ.parent)
    assert not {n.op_type for n in proto.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    onnx.save(proto, tmp_path / "float.onnx")
    model = Model(proto, tmp_path / "float.onnx", hash_file(tmp_path / "float.onnx"))
    feeds = random_feeds(model, 2)
    for found, exact in zip(run(tmp_path / "float.onnx", feeds), run(QDQ, feeds), strict=True):
        assert 0 < relative_difference(found, exact) < 0.3
    blocks = find_blocks(probe_graph(model)).blocks
    assert [len(block.sites) for block in blocks] == [2]


def test_names_are_those_of_the_file() -> None:
    before = {n.name for n in onnx.load(QDQ).graph.node if n.op_type == "MatMul"}
    after = {n.name for n in drop_quantisation(onnx.load(QDQ), QDQ.parent).graph.node if n.op_type == "MatMul"}
    assert before == after


def test_scales_by_column_and_by_row() -> None:
    """DequantizeLinear counts its axis from 1 where it says none."""
    weight = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    scales = {"rows": np.array([1, 2, 3], np.float16), "columns": np.array([1, 2, 3, 4], np.float16)}
    zeros = np.array([0, 0, 1], np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "rows", "zeros"], ["a"], axis=0),
        helper.make_node("DequantizeLinear", ["w", "columns"], ["b"]),
        helper.make_node("DequantizeLinear", ["x", "one"], ["c"]),  # of an input of the model: stays
    ]
    tensors = {"w": weight, **scales, "zeros": zeros, "one": np.array(1, np.float16)}
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    values = [
        helper.make_tensor_value_info(n, TensorProto.INT8 if n == "x" else TensorProto.FLOAT16, [3]) for n in "xc"
    ]
    proto = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], stored))
    made = {t.name: numpy_helper.to_array(t) for t in drop_quantisation(proto, Path()).graph.initializer}
    np.testing.assert_array_equal(made["a"], (weight - zeros[:, None]) * scales["rows"][:, None])
    np.testing.assert_array_equal(made["b"], weight * scales["columns"])
    assert made["a"].dtype == np.float16
    assert "c" not in made


def test_a_float_file_is_itself() -> None:
    proto = probed("timm_vit_ts17_fused")[0].model.proto
    assert drop_quantisation(proto, Path()) is proto
