"""Where a product's rows land in the stream, on exporters that fold axes, cut windows or put tokens first."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import fixture_path

from corp_onnx.blocks import find_blocks
from corp_onnx.graph import Graph
from corp_onnx.graph.model import Model, load_model
from corp_onnx.images.arrays import ArraySet
from corp_onnx.refit import refit_changes
from corp_onnx.refit.rows import RowFinder
from corp_onnx.refit.stream import Stop, find_walk
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.segments import open_segment
from corp_onnx.run.tapped import open_tapped

NAMES = [
    "timm_vit_ts17_fused",  # rows as they are
    "timm_deit3_ts17_fused",  # LayerScale
    "timm_vit_ts17_onnxsim",  # images and tokens in one axis
    "timm_vit_ts17_fixed_onnxslim",  # the same, batch of one
    "torchvision_vit_dynamo18",  # tokens before images
    "timm_swin_ts17_fused_fixed",  # windows, shifted
]


def make_finder(graph: Graph, stop: Stop) -> RowFinder:
    product, skip, stream = stop.linear.output or "", stop.residual.skip or "", stop.residual.stream
    scale = np.ones(1) if stop.residual.scale is None else graph.constant(stop.residual.scale.name)
    assert scale is not None
    segment = open_segment(graph.model, graph.types, [product, skip], [stream])
    return RowFinder(segment, product, skip, stream, scale.reshape(-1).astype(np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_stream_is_skip_and_moved_product(name: str) -> None:
    """On real tensors: stream = skip + scale * (W z + b), row by row."""
    graph = probe_graph(load_model(fixture_path(name)))
    stops = find_walk(find_blocks(graph)).stops
    assert stops
    tensors = [t for s in stops for t in (s.regressor, s.residual.skip or "", s.residual.stream)]
    feeds = random_feeds(graph.model, graph.n_images)
    arrays = open_tapped(graph.model, tensors).run(feeds)
    for stop in stops:
        z, skip, stream = (arrays[t] for t in (stop.regressor, stop.residual.skip or "", stop.residual.stream))
        finder = make_finder(graph, stop)
        rows = finder.find(z.shape[:-1], stream.shape, feeds)
        assert rows is not None
        bias = stop.linear.read_bias(graph)
        branch = z.reshape(-1, z.shape[-1])[rows] @ stop.linear.read_weight(graph).T + (0 if bias is None else bias)
        np.testing.assert_allclose(skip + (finder.scale * branch).reshape(skip.shape), stream, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "moved"), [("torchvision_vit_dynamo18", True), ("timm_vit_ts17_onnxsim", False)])
def test_tokens_first_is_another_order(name: str, moved: bool) -> None:
    graph = probe_graph(load_model(fixture_path(name)))
    stop = next(s for s in find_walk(find_blocks(graph)).stops if s.key.part == "attn")
    shapes = graph.dims(stop.regressor), graph.dims(stop.residual.stream)
    rows = make_finder(graph, stop).find(shapes[0][:-1], shapes[1], {})
    assert rows is not None
    n_images, n_tokens = shapes[1][:2]
    expected = np.arange(n_images * n_tokens)
    expected = expected.reshape(n_tokens, n_images).T.reshape(-1) if moved else expected
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("name", NAMES)
def test_refit_of_a_whole_model_changes_nothing(name: str) -> None:
    """Nothing is pruned, so every product meets its own output; rows in another order would not."""
    graph = probe_graph(load_model(fixture_path(name)))
    walk = find_walk(find_blocks(graph))
    shape = graph.dims(graph.inputs[0])[1:]
    pixels = np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float32)
    images = ArraySet(fixture_path(name), {"pixels": pixels}, np.arange(6))
    changes = refit_changes(graph, walk, {}, graph.model.proto, images, {}, batch_size=4)
    assert set(changes) == {s.key for s in walk.stops}
    for stop in walk.stops:
        weight, _ = changes[stop.key].last_product(graph)
        np.testing.assert_allclose(weight, stop.linear.read_weight(graph), atol=1e-4)


def test_mixed_rows_have_no_order() -> None:
    """A mean over tokens on the way: no row of the stream is a row of the product."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("MatMul", ["x", "w"], ["y"]),
        node("ReduceMean", ["y"], ["m"], axes=[1], keepdims=1),
        node("Add", ["x", "m"], ["h"]),
    ]
    shape = ["n", 5, 6]
    graph = helper.make_graph(
        nodes, "mean", [value("x", TensorProto.FLOAT, shape)], [value("h", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.eye(6, dtype=np.float32), "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = Model(proto, fixture_path("none"), "")
    types = dict.fromkeys(("x", "y", "m", "h"), int(TensorProto.FLOAT))
    finder = RowFinder(open_segment(model, types, ["y", "x"], ["h"]), "y", "x", "h", np.ones(1, np.float32))
    assert finder.find((2, 5), (2, 5, 6), {}) is None
