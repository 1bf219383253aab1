"""Gemm with a bias in float16 -> MatMul and Add.

tract gives such a Gemm in float32 and then refuses the model. ONNX Runtime makes one Gemm of the two again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.graph.external import read_tensor
from corp_onnx.graph.order import drop_unread, replace_nodes
from corp_onnx.graph.proto import names_in_use
from corp_onnx.precision.editable import fresh_name

DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0}
"""Of a Gemm that is x @ weight + bias."""


def part_half_gemms(proto: onnx.ModelProto, folder: Path) -> None:
    """Part every Gemm with a bias whose weight is stored in float16, in place; one with factors or transA stays.

    Args:
        folder: where weights that lie outside are.
    """
    stored = {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT16}
    taken, turned = names_in_use(proto), dict[str, str]()
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        is_turned = given.pop("transB", 0) == 1
        is_plain = all(given.get(name, default) == default for name, default in DEFAULTS.items())
        if node.op_type != "Gemm" or len(node.input) < 3 or node.input[1] not in stored or not is_plain:
            nodes.append(node)
            continue
        source, weight, bias = node.input
        if is_turned and weight not in turned:
            turned[weight] = fresh_name(f"{weight}.transposed", taken)
            value = np.array(read_tensor(stored[weight], folder).T, order="C")
            proto.graph.initializer.append(numpy_helper.from_array(value, turned[weight]))
        plain = fresh_name(f"{node.output[0]}.product", taken)
        added = fresh_name(f"{node.name}.bias", taken)
        nodes.append(
            helper.make_node("MatMul", [source, turned[weight] if is_turned else weight], [plain], name=node.name)
        )
        nodes.append(helper.make_node("Add", [plain, bias], node.output, name=added))
    if len(nodes) > len(proto.graph.node):
        replace_nodes(proto, nodes)
        drop_unread(proto)
