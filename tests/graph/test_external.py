"""Which tensors a model stores, and in which files."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from corp_onnx.graph.external import iterate_tensors, list_locations


def stored(name: str, location: str = "") -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), name)
    if location:
        onnx.external_data_helper.set_external_data(tensor, location)
    return tensor


def make_model() -> onnx.ModelProto:
    """A tensor in every place that a message has for one."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=stored("c"))], "inner", [], [], [stored("i")]
    )
    sparse = helper.make_sparse_tensor(stored("values"), numpy_helper.from_array(np.arange(2), "indices"), [9])
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Own", ["y"], ["z"], domain="d", many=[stored("m0"), stored("m1")], thin=sparse),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [stored("a", "w"), stored("b", ".//w"), stored("d", "deep//v")])
    graph.sparse_initializer.append(sparse)
    constant = helper.make_node("Constant", [], ["f"], value=stored("f", "u"))
    function = helper.make_function("d", "F", [], ["f"], [constant], [helper.make_opsetid("", 17)])
    return helper.make_model(graph, functions=[function])


def test_every_tensor_is_found() -> None:
    found = [tensor.name for tensor in iterate_tensors(make_model()) if tensor.name]
    assert sorted(found) == sorted(
        ["a", "b", "d", "values", "indices", "values", "indices", "c", "i", "c", "i", "m0", "m1", "f"]
    )


def test_locations_are_compared_in_their_normal_form() -> None:
    assert list_locations(make_model()) == ("deep/v", "u", "w")
