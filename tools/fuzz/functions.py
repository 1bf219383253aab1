"""Ways to spoil local functions and what else a model may carry: training, annotations."""

from __future__ import annotations

import onnx
from onnx import helper

from fuzz.draw import Rng, pick, pick_node

Model = onnx.ModelProto
DOMAIN = "org.example.local"


def wrap_in_function(model: Model, rng: Rng) -> None:
    """Legal: a node becomes the call of a function that holds it."""
    node = _call(model, rng, "Wrapped")
    _define(model, "Wrapped", node, [node])


def recursive_function(model: Model, rng: Rng) -> None:
    """A function that calls itself."""
    node = _call(model, rng, "Endless")
    inner = helper.make_node("Endless", list(node.input), list(node.output), domain=DOMAIN)
    _define(model, "Endless", node, [inner])


def mutual_functions(model: Model, rng: Rng) -> None:
    """Two functions that call each other."""
    node = _call(model, rng, "Ping")
    for name, other in (("Ping", "Pong"), ("Pong", "Ping")):
        inner = helper.make_node(other, list(node.input), list(node.output), domain=DOMAIN)
        _define(model, name, node, [inner])


def deep_functions(model: Model, rng: Rng) -> None:
    """Functions that call each other twice, so that inlining doubles at every level."""
    node = _call(model, rng, "Level0")
    depth = int(rng.integers(4, 9))
    for i in range(depth):
        first, second = (
            helper.make_node(f"Level{i + 1}", list(node.input), [out], domain=DOMAIN)
            for out in ("unread", node.output[0])
        )
        _define(model, f"Level{i}", node, [first, second])
    _define(model, f"Level{depth}", node, [node])


def empty_function(model: Model, rng: Rng) -> None:
    """A function without nodes, called."""
    node = _call(model, rng, "Empty")
    _define(model, "Empty", node, [])


def missing_function(model: Model, rng: Rng) -> None:
    """The call of a function that is not there."""
    _call(model, rng, "Missing")


def repeat_function(model: Model, rng: Rng) -> None:
    """Two functions of one name."""
    wrap_in_function(model, rng)
    model.functions.append(model.functions[0])


def function_without_opset(model: Model, rng: Rng) -> None:
    """A function that imports no operators."""
    wrap_in_function(model, rng)
    del model.functions[0].opset_import[:]


def _call(model: Model, rng: Rng, name: str) -> onnx.NodeProto:
    """Replace a node by a call; returns what it was."""
    node = pick_node(model, rng, lambda n: n.output and n.input and all(n.input) and all(n.output))
    old = onnx.NodeProto()
    old.CopyFrom(node)
    node.CopyFrom(helper.make_node(name, list(old.input), list(old.output), f"call_{old.name}", domain=DOMAIN))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return old


def _define(model: Model, name: str, like: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
    inputs = list(dict.fromkeys(like.input))
    opsets = list(model.opset_import)
    model.functions.append(helper.make_function(DOMAIN, name, inputs, list(like.output), nodes, opsets))
    model.ir_version = max(model.ir_version, 8)  # the first with functions


def training(model: Model, rng: Rng) -> None:
    """A model that says how it is trained."""
    info = model.training_info.add()
    info.algorithm.CopyFrom(model.graph)
    info.update_binding.add(key=pick(rng, model.graph.initializer).name, value="nobody")


def annotations(model: Model, rng: Rng) -> None:
    """Quantisation annotations of tensors that are not there."""
    note = model.graph.quantization_annotation.add(tensor_name="nobody")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"nobody_{int(rng.integers(9))}")


SPOILERS = (
    wrap_in_function, recursive_function, mutual_functions, deep_functions, empty_function, missing_function,
    repeat_function, function_without_opset, training, annotations,
)  # fmt: skip
