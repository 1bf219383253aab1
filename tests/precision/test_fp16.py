"""Float16 on every exporter's graph: the answers, what stays in float32, and numbers that float16 can not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import find_in, fixture_path, probed, run
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.checks.verify import check_structure
from corp_onnx.errors import CheckFailedError
from corp_onnx.graph.write import write_model
from corp_onnx.precision.fp16 import KEPT_OPS, LARGEST, convert_to_fp16, find_kept
from corp_onnx.run.comparison import relative_difference
from corp_onnx.run.noise import random_feeds

TOLERANCE = 4e-3
"""Relative to the largest answer; two blocks of float16 with an 11-bit mantissa, 8 times its rounding."""

EXPORTERS = [
    "timm_vit_ts14_fused",  # normalisations as chains
    "hf_bert_classifier_ts14_eager",  # the same, and three integer inputs
    "torchvision_vit_ts14",
    "timm_vit_ts17_fused",
    "timm_vit_ts17_external",
    "timm_vit_ts17_constants",  # weights in Constant nodes
    "timm_vit_dynamo18_fused_fixed",
    "timm_vit_dynamo18_unoptimized",  # functions
    "timm_vit_dynamo23_fused",  # the Attention operator
    "timm_vit_dynamo23_bf16",
    "timm_siglip_map_ts17",
    "timm_swin_ts17_fused_fixed",
    "hf_vit_ts17_sdpa_ort",  # com.microsoft: fused by ONNX Runtime
    "hf_bert_ts17_eager_ortbert",  # EmbedLayerNormalization with an integer output that no type is known of
    "handmade_ms_mha_bias",
]


@pytest.mark.long
@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("name", EXPORTERS)
def test_answers_of_every_exporter(name: str, keep_io: bool, tmp_path: Path) -> None:
    graph, _ = probed(name)
    half = convert_to_fp16(graph, keep_io=keep_io)
    path = tmp_path / "half.onnx"
    write_model(half.proto, path, tmp_path)
    feeds = random_feeds(graph.model, 3)
    expected = run(graph.model, feeds)
    if not keep_io:
        feeds = {k: v.astype(np.float16) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    check = check_structure(path)
    assert check.passed, check.detail
    for found, exact in zip(run(path, feeds), expected, strict=True):
        assert relative_difference(found, exact) < TOLERANCE
    kinds = {v.type.tensor_type.elem_type for v in [*half.proto.graph.input, *half.proto.graph.output]}
    assert (TensorProto.FLOAT16 in kinds) != keep_io


def test_a_converter_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError("can not convert")

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", fail)
    graph, _ = probed("timm_vit_ts17_fused")
    sentence = (
        r"fused\.onnx: ONNX Runtime's float16 converter fails on it \(can not convert\)\. The model itself is as it"
    )
    with pytest.raises(CheckFailedError, match=sentence):
        convert_to_fp16(graph)


@pytest.mark.parametrize("name", ["timm_vit_ts17_fused", "timm_vit_ts14_fused", "timm_vit_dynamo18_fused"])
def test_softmax_and_normalisations_see_float32_and_products_float16(name: str) -> None:
    half = convert_to_fp16(probed(name)[0])
    types = types_of(half.proto)
    for node in half.proto.graph.node:
        floats = {types[t] for t in node.input if t in types} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        if node.op_type in {*KEPT_OPS, "ReduceMean", "Pow"} and half.kept.get(node.op_type):
            assert floats == {TensorProto.FLOAT}, node.op_type
        elif node.op_type in ("MatMul", "Gemm", "Conv", "Erf"):
            assert floats == {TensorProto.FLOAT16}, node.op_type
    assert half.kept["Softmax"] >= 1


def test_weights_take_half_the_bytes() -> None:
    graph, _ = probed("timm_vit_ts17_fused")
    before = sum(len(t.raw_data) for t in graph.model.proto.graph.initializer if len(t.dims) > 1)
    after = sum(len(t.raw_data) for t in convert_to_fp16(graph).proto.graph.initializer if len(t.dims) > 1)
    assert after <= 0.55 * before


def test_a_chain_is_not_cast_inside(tmp_path: Path) -> None:
    """Deviations of 600 have squares that float16 does not hold, and an epsilon of 1e-12 is zero there."""
    graph, _ = find_in(norm_chain(1e-12), tmp_path)
    assert [node.op for node in find_kept(graph, ())] == [
        "ReduceMean",
        "Sub",
        "Pow",
        "ReduceMean",
        "Add",
        "Sqrt",
        "Div",
    ]
    half = convert_to_fp16(graph)
    write_model(half.proto, tmp_path / "half.onnx", tmp_path)
    x = np.array([[0.0, 600.0, -600.0, 1200.0]], np.float32)
    (found,) = run(tmp_path / "half.onnx", {"x": x})
    np.testing.assert_allclose(found, (x - x.mean()) / x.std(), rtol=2e-3)
    stored = [float(numpy_helper.to_array(t)) for t in half.proto.graph.initializer if not t.dims]
    assert any(abs(value - 1e-12) < 1e-18 for value in stored)


def test_a_square_root_of_something_else_is_float16() -> None:
    graph, _ = probed("timm_vit_ts17_fused")  # the scale is a square root of a Shape
    assert any(node.op == "Sqrt" for node in graph.nodes)
    assert not find_kept(graph, ())


def test_numbers_beyond_the_range_are_clipped_and_counted(tmp_path: Path) -> None:
    """A mask of -3.4e38 stays a mask, infinities stay infinite, and weights below 6.1e-5 are counted."""
    mask = np.array([0.0, np.finfo(np.float32).min, 70000.0, -np.inf, 1e-5], np.float32)
    graph, _ = find_in(added(mask), tmp_path)
    half = convert_to_fp16(graph)
    (stored,) = [numpy_helper.to_array(t) for t in half.proto.graph.initializer]
    np.testing.assert_array_equal(stored[:4], np.array([0.0, -LARGEST, LARGEST, -np.inf], np.float16))
    assert (half.n_clipped, half.n_subnormal, half.n_stored) == (2, 1, 5)


def test_the_softmax_inside_the_attention_operator_is_told_its_precision() -> None:
    half = convert_to_fp16(probed("timm_vit_dynamo23_fused")[0])
    nodes = [n for n in half.proto.graph.node if n.op_type == "Attention"]
    assert nodes
    for node in nodes:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert attrs["softmax_precision"] == TensorProto.FLOAT


def test_the_source_is_not_touched() -> None:
    graph, _ = probed("timm_vit_ts14_fused")
    before = graph.model.proto.SerializeToString()
    convert_to_fp16(graph)
    assert (
        graph.model.proto.SerializeToString()
        == before
        == onnx.load(fixture_path("timm_vit_ts14_fused")).SerializeToString()
    )


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    values = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in proto.graph.initializer
    }


def norm_chain(epsilon: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Pow", ["centred", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Constant", [], ["epsilon"], value=numpy_helper.from_array(np.float32(epsilon))),
        helper.make_node("Add", ["variance", "epsilon"], ["safe"]),
        helper.make_node("Sqrt", ["safe"], ["root"]),
        helper.make_node("Div", ["centred", "root"], ["y"]),
    ]
    return model(nodes, ["n", 4], [])


def added(values: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    return model(nodes, ["n", values.size], [numpy_helper.from_array(values, "mask")])


def model(nodes: list[onnx.NodeProto], shape: list[str | int], stored: list[TensorProto]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("op", "attrs"), [("MeanVarianceNormalization", {"axes": [1]}), ("LRN", {"size": 3}), ("ReduceSumSquare", {})]
)
def test_whatever_sums_squares_sees_float32(op: str, attrs: dict[str, Any], tmp_path: Path) -> None:
    """The square of 300 is more than float16 holds."""
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["m"]),
        helper.make_node(op, ["m"], ["n"], **attrs),
        helper.make_node("Mul", ["n", "half"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4, 2, 2])
    half = numpy_helper.from_array(np.float32([0.5]), "half")
    proto = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [half])
    graph, _ = find_in(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path)
    converted = convert_to_fp16(graph)
    types = types_of(converted.proto)
    (kept,) = [node for node in converted.proto.graph.node if node.op_type == op]
    assert converted.kept == {op: 1}
    assert types[kept.input[0]] == TensorProto.FLOAT
    halves = [types[n.input[0]] for n in converted.proto.graph.node if n.op_type == "Mul"]
    assert halves == [TensorProto.FLOAT16] * 2
