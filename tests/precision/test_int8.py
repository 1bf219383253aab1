"""Integers on every exporter's graph: the answers, which products changed, and what a quantiser needs of a file."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import find_in, probed, run
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.checks.verify import check_structure
from corp_onnx.errors import CheckFailedError
from corp_onnx.graph import Graph
from corp_onnx.graph.order import drop_unread, sort_nodes
from corp_onnx.graph.write import write_model
from corp_onnx.precision.int8 import DynamicQuantiser
from corp_onnx.precision.products import FLATTENED_GEMM, TWO_ACTIVATIONS, list_products
from corp_onnx.precision.qdq import choose_scale
from corp_onnx.precision.ranges import ReachSum
from corp_onnx.precision.static import StaticQuantiser
from corp_onnx.precision.trial import check_loading
from corp_onnx.run.comparison import relative_difference
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.tapped import open_tapped

TOLERANCE = 0.1
"""Relative to the largest answer; random weights of width 32, whose sums average out little of the rounding."""

EXPORTERS = [
    "timm_vit_ts14_fused",
    "timm_vit_ts17_fused",
    "timm_vit_ts17_external",
    "timm_vit_ts17_constants",  # weights in Constant nodes
    "timm_vit_ts17_unfolded",  # weights behind a Transpose
    "timm_vit_ts17_shared",
    "timm_vit_dynamo18_fused",  # a Gemm whose weight is listed in value_info
    "timm_vit_dynamo18_unoptimized",
    "timm_vit_dynamo23_fused",
    "timm_vit_dynamo23_bf16",
    "timm_vit_ts17_ort",  # com.microsoft: no inferred types
    "hf_bert_classifier_ts17_sdpa",
    "hf_vit_ts17_sdpa_ort",
    "torchvision_vit_ts17",
]


def integers_of(proto: onnx.ModelProto) -> int:
    """Products with an int8 weight."""
    stored = {t.name for t in proto.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2}
    readers = Counter(name for node in proto.graph.node for name in node.input if name in stored)
    return len(readers)


def static_quantiser(graph: Graph, feeds: dict[str, np.ndarray]) -> StaticQuantiser:
    """With the scales of one batch of noise."""
    products = [p for p in list_products(graph) if not p.reason]
    tapped = open_tapped(graph.model, [p.node.inputs[0] for p in products])
    scales = {}
    for name, values in tapped.run(feeds).items():
        reach = ReachSum()
        reach.add(values)
        scales[name] = choose_scale(*reach.result().measure("minmax"), "int8")
    return StaticQuantiser(graph, products, scales)


def quantise(graph: Graph, folder: Path, *, static: bool, leave_out: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    products = [p for p in list_products(graph) if not p.reason]
    positions = [p.node.position for p in products[leave_out:]]
    path = folder / "result.onnx"
    if static:
        proto = static_quantiser(graph, random_feeds(graph.model, 3)).quantise(positions)
    else:
        proto = DynamicQuantiser(graph, products, folder).quantise(positions)
    write_model(proto, path, folder)
    return path


@pytest.mark.long
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", EXPORTERS)
def test_answers_of_every_exporter(name: str, static: bool, tmp_path: Path) -> None:
    graph, _ = probed(name)
    path = quantise(graph, tmp_path, static=static)
    check = check_structure(path)
    assert check.passed, check.detail
    feeds = random_feeds(graph.model, 3)
    for found, exact in zip(run(path, feeds), run(graph.model, feeds), strict=True):
        assert 0 < relative_difference(found, exact) < TOLERANCE
    usable = [p for p in list_products(graph) if not p.reason]
    assert integers_of(onnx.load(path)) == len({p.node.inputs[1] for p in usable})
    assert {p.key: p.value for p in onnx.load(path).metadata_props} == graph.model.metadata


def test_products_left_out_keep_their_weights(tmp_path: Path) -> None:
    graph, _ = probed("timm_vit_ts17_fused")
    usable = [p for p in list_products(graph) if not p.reason]
    for static in (False, True):
        proto = onnx.load(quantise(graph, tmp_path / str(static), static=static, leave_out=2))
        assert integers_of(proto) == len(usable) - 2
        kept = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        for product in usable[:2]:
            np.testing.assert_array_equal(kept[product.node.inputs[1]], graph.constant(product.node.inputs[1]))


def test_reasons_to_stay_in_float() -> None:
    reasons = Counter((p.node.op, p.reason) for p in list_products(probed("timm_vit_ts17_fused")[0]))
    assert reasons[("MatMul", TWO_ACTIVATIONS)] == 4
    assert reasons[("MatMul", "")] == 8
    assert reasons[("Gemm", "")] == 1
    assert next(p.node.op for p in list_products(probed("timm_vit_ts17_fused")[0]) if p.reason) == "Conv"


def test_a_scaled_gemm_stays_in_float(tmp_path: Path) -> None:
    weight = np.ones((4, 3), np.float32)
    for options, reason in (({}, ""), ({"alpha": 0.5}, FLATTENED_GEMM), ({"transB": 1}, "")):
        stored = numpy_helper.from_array(weight.T.copy() if "transB" in options else weight, "w")
        node = helper.make_node("Gemm", ["x", "w"], ["y"], **options)
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in (("x", 4), ("y", 3))]
        proto = helper.make_model(
            helper.make_graph([node], "g", values[:1], values[1:], [stored]),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
        )  # fmt: skip
        graph, _ = find_in(proto, tmp_path)
        assert [p.reason for p in list_products(graph)] == [reason]


def test_temporary_files_lie_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run's are removed with the hidden folder; those in the system's would stay."""
    (tmp_path / "system").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    monkeypatch.setattr(shutil, "rmtree", lambda *_args, **_options: None)  # as if it were killed before
    quantise(probed("timm_vit_dynamo23_fused")[0], tmp_path / "ours", static=False)
    assert list((tmp_path / "system").iterdir()) == []
    assert tempfile.tempdir == str(tmp_path / "system")
    assert list((tmp_path / "ours").glob("ort.quant.*"))


def test_the_quantiser_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's error, and ours around it."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyError("no such scale")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    graph, _ = probed("timm_vit_ts17_fused")
    products = [p for p in list_products(graph) if not p.reason]
    sentence = r"quantiser fails on this model \(.+\)\. The model itself is as it was"
    with pytest.raises(CheckFailedError, match=sentence):
        DynamicQuantiser(graph, products, tmp_path).quantise([products[0].node.position])


def test_a_file_that_kills_its_reader_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corp_onnx.precision.trial.PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    check = check_loading(tmp_path / "any.onnx")
    assert not check.passed
    assert check.detail == "ONNX Runtime crashes on it (signal 11)"


def test_nodes_are_sorted_and_the_unread_dropped() -> None:
    nodes = [
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Abs", ["x"], ["unread"]),
        helper.make_node("Add", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["x"], ["a"]),
    ]
    ordered = sort_nodes(nodes)
    assert [n.op_type for n in ordered] == ["Abs", "Relu", "Add", "Neg"]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xc"]
    stored = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("w", "lonely")]
    proto = helper.make_model(helper.make_graph(ordered, "g", values[:1], values[1:], stored))
    drop_unread(proto)
    assert [n.op_type for n in proto.graph.node] == ["Relu", "Add", "Neg"]
    assert [t.name for t in proto.graph.initializer] == ["w"]
