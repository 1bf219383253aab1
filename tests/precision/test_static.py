"""Integers with fixed scales on every exporter's graph, the rest in float32 or float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import probed, run
from onnx import TensorProto

from corp_onnx.checks.verify import check_structure
from corp_onnx.graph.write import write_model
from corp_onnx.precision.products import list_products
from corp_onnx.precision.qdq import choose_scale
from corp_onnx.precision.static import StaticQuantiser
from corp_onnx.run.comparison import relative_difference
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.tapped import open_tapped

TOLERANCE = 0.15
"""Relative to the largest answer; random weights of width 32, whose sums average out little of the rounding."""

EXPORTERS = ["timm_vit_ts17_fused", "timm_vit_ts17_unfolded", "timm_vit_dynamo18_fused", "timm_vit_dynamo23_fused",
             "timm_vit_dynamo23_bf16", "timm_vit_ts17_ort", "torchvision_vit_ts17"]  # fmt: skip


def quantiser(name: str) -> tuple[StaticQuantiser, list[int]]:
    """With scales that cover one batch of noise."""
    graph, _ = probed(name)
    products = [p for p in list_products(graph) if not p.reason]
    arrays = open_tapped(graph.model, [p.node.inputs[0] for p in products]).run(random_feeds(graph.model, 3))
    scales = {n: choose_scale(float(a.min()), float(a.max()), "int8") for n, a in arrays.items()}
    return StaticQuantiser(graph, products, scales), [p.node.position for p in products]


@pytest.mark.parametrize("name", EXPORTERS)
def test_integers_in_float16(name: str, tmp_path: Path) -> None:
    graph, _ = probed(name)
    made, positions = quantiser(name)
    half = made.quantise_half(positions, keep_io=True)
    write_model(half.proto, tmp_path / "half.onnx", tmp_path)
    check = check_structure(tmp_path / "half.onnx")
    assert check.passed, check.detail
    write_model(made.quantise(positions), tmp_path / "whole.onnx", tmp_path)
    feeds = random_feeds(graph.model, 3)
    exact = run(graph.model, feeds)
    for path in ("half.onnx", "whole.onnx"):
        for found, expected in zip(run(tmp_path / path, feeds), exact, strict=True):
            assert 0 < relative_difference(found, expected) < TOLERANCE
    kinds = {t.data_type for t in half.proto.graph.initializer if len(t.dims) == 2}
    assert TensorProto.INT8 in kinds
    assert TensorProto.FLOAT not in kinds - {TensorProto.INT8}  # no weight was left behind in float32


def test_what_is_no_integer_is_float16() -> None:
    made, positions = quantiser("timm_vit_ts17_fused")
    half = made.quantise_half(positions, keep_io=True)
    counts = {op: sum(n.op_type == op for n in half.proto.graph.node) for op in ("QuantizeLinear", "DequantizeLinear")}
    assert counts == {"QuantizeLinear": 9, "DequantizeLinear": 18}
    assert set(half.kept) == {"LayerNormalization", "Softmax"}  # the products are not counted among them
    types = {v.name: v.type.tensor_type.elem_type for v in half.proto.graph.value_info}
    softmaxes = [n for n in half.proto.graph.node if n.op_type == "Softmax"]
    producers = {n.output[0]: n for n in half.proto.graph.node}
    for softmax in softmaxes:
        cast = producers[softmax.input[0]]
        assert types[cast.input[0]] == TensorProto.FLOAT16  # the logits


def test_a_part_of_the_products(tmp_path: Path) -> None:
    made, positions = quantiser("timm_vit_ts17_fused")
    stored = [t.data_type for t in made.quantise(positions[:2]).graph.initializer if len(t.dims) == 2]
    assert stored.count(TensorProto.INT8) == 2
    onnx.save(made.quantise([]), tmp_path / "none.onnx")
    graph, _ = probed("timm_vit_ts17_fused")
    feeds = random_feeds(graph.model, 2)
    np.testing.assert_allclose(run(tmp_path / "none.onnx", feeds)[0], run(graph.model, feeds)[0], atol=1e-5)
