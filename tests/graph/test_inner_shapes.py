"""value_info after a change: sizes that are known, and no name that a runtime could contradict."""

from __future__ import annotations

import onnx
import pytest
from graphs import probed
from onnx import TensorProto, helper

from corp_onnx.graph.inner_shapes import refresh_value_info
from corp_onnx.precision.fp16 import convert_to_fp16
from corp_onnx.precision.products import list_products
from corp_onnx.precision.qdq import Scale
from corp_onnx.precision.static import StaticQuantiser


def list_dims(proto: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    return [dim for value in proto.graph.value_info for dim in value.type.tensor_type.shape.dim]


def test_named_sizes_are_left_open() -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    stale = helper.make_tensor_value_info("old", TensorProto.FLOAT, [7])
    proto = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], value_info=[stale]))
    refresh_value_info(proto)
    (found,) = proto.graph.value_info
    batch, width = found.type.tensor_type.shape.dim
    assert (found.name, found.type.tensor_type.elem_type) == ("z", TensorProto.FLOAT)
    assert batch.WhichOneof("value") is None
    assert width.dim_value == 4
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_no_converted_model_names_a_batch(precision: str) -> None:
    """tract, told a batch, refused these."""
    graph, _ = probed("timm_vit_dynamo18_fused")
    if precision == "float16":
        proto = convert_to_fp16(graph).proto
    else:
        products = [p for p in list_products(graph) if not p.reason]
        scales = {p.node.inputs[0]: Scale(0.1, 0, "int8") for p in products}
        proto = StaticQuantiser(graph, products, scales).quantise([p.node.position for p in products])
    assert any(dim.dim_value for dim in list_dims(proto))
    assert not any(dim.dim_param for dim in list_dims(proto))
