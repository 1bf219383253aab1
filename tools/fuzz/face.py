"""Ways to spoil the face of a graph: inputs, outputs, declared shapes, versions."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from fuzz.draw import Rng, pick, pick_inner, pick_weight

Model = onnx.ModelProto

KINDS = (TensorProto.INT64, TensorProto.STRING, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.COMPLEX64)


def drop_outputs(model: Model, rng: Rng) -> None:
    """A model without outputs."""
    del rng, model.graph.output[:]


def output_nothing(model: Model, rng: Rng) -> None:
    """An output that nobody writes."""
    pick(rng, model.graph.output).name = "nobody_writes_this"


def repeat_output(model: Model, rng: Rng) -> None:
    """An output twice."""
    model.graph.output.append(pick(rng, model.graph.output))


def output_input(model: Model, rng: Rng) -> None:
    """An input that is an output too."""
    model.graph.output.insert(0, pick(rng, model.graph.input))


def output_weight(model: Model, rng: Rng) -> None:
    """A stored tensor as an output: it must keep its shape."""
    tensor = pick_weight(model, rng, rank=1)
    model.graph.output.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def drop_inputs(model: Model, rng: Rng) -> None:
    """A model without inputs."""
    del rng, model.graph.input[:]


def repeat_input(model: Model, rng: Rng) -> None:
    """An input twice."""
    model.graph.input.append(pick(rng, model.graph.input))


def add_input(model: Model, rng: Rng) -> None:
    """An input that nobody reads."""
    dims = pick(rng, [[], [0], ["n"], [3, 3], ["n", 5]])
    model.graph.input.append(helper.make_tensor_value_info("unread", pick(rng, [1, 7, 8, 9]), dims))


def retype_input(model: Model, rng: Rng) -> None:
    """An input of another type than its readers take."""
    value = pick(rng, model.graph.input).type.tensor_type
    value.elem_type = pick(rng, [kind for kind in KINDS if kind != value.elem_type])


def retype_output(model: Model, rng: Rng) -> None:
    """An output of another type than its writer gives."""
    pick(rng, model.graph.output).type.tensor_type.elem_type = pick(rng, KINDS)


def change_input_dims(model: Model, rng: Rng) -> None:
    """An input of no, negative or endless size."""
    dims = pick(rng, model.graph.input).type.tensor_type.shape.dim
    pick(rng, dims).dim_value = pick(rng, [-1, 0, 5, 4096, 2**31, 2**62])


def free_input_dims(model: Model, rng: Rng) -> None:
    """Every dimension of an input is dynamic, all of one name."""
    for dim in pick(rng, model.graph.input).type.tensor_type.shape.dim:
        dim.dim_param = "any"


def drop_input_dim(model: Model, rng: Rng) -> None:
    """An input with an axis less."""
    del pick(rng, model.graph.input).type.tensor_type.shape.dim[-1]


def input_without_shape(model: Model, rng: Rng) -> None:
    """An input of unknown rank."""
    pick(rng, model.graph.input).type.tensor_type.ClearField("shape")


def input_without_type(model: Model, rng: Rng) -> None:
    """An input that says nothing."""
    pick(rng, model.graph.input).ClearField("type")


def input_sequence(model: Model, rng: Rng) -> None:
    """An input that is a list of tensors."""
    value = pick(rng, model.graph.input)
    kind = helper.make_sequence_type_proto(value.type)
    value.type.CopyFrom(kind)


def input_optional(model: Model, rng: Rng) -> None:
    """An input that may be missing."""
    value = pick(rng, model.graph.input)
    kind = helper.make_optional_type_proto(value.type)
    value.type.CopyFrom(kind)


def input_sparse(model: Model, rng: Rng) -> None:
    """An input that is a sparse tensor."""
    value = pick(rng, model.graph.input)
    kind = helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2, 3])
    value.type.CopyFrom(kind)


def output_without_type(model: Model, rng: Rng) -> None:
    """Legal for ONNX Runtime: an output that says nothing."""
    pick(rng, model.graph.output).ClearField("type")


def change_output_dims(model: Model, rng: Rng) -> None:
    """An output that declares another size."""
    dims = pick(rng, model.graph.output).type.tensor_type.shape.dim
    pick(rng, dims).dim_value = pick(rng, [0, 3, 4097])


def override_weight(model: Model, rng: Rng) -> None:
    """Legal: a weight that is an input too, as old exporters write it."""
    tensor = pick_weight(model, rng)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def stale_shape(model: Model, rng: Rng) -> None:
    """An inner tensor whose declared shape is from another model."""
    _declare(model, rng, TensorProto.FLOAT, [7, 7, 7, 7])


def stale_type(model: Model, rng: Rng) -> None:
    """An inner tensor whose declared type is from another model."""
    _declare(model, rng, TensorProto.INT32, None)


def _declare(model: Model, rng: Rng, kind: int, dims: list[int] | None) -> None:
    name = pick_inner(model, rng)
    old = [value for value in model.graph.value_info if value.name == name]
    for value in old:
        model.graph.value_info.remove(value)
    model.graph.value_info.append(helper.make_tensor_value_info(name, kind, dims))


def declare_nothing(model: Model, rng: Rng) -> None:
    """A declared shape of a tensor that is not there."""
    model.graph.value_info.append(helper.make_tensor_value_info("nobody", 1, [int(rng.integers(9))]))


def declare_twice(model: Model, rng: Rng) -> None:
    """Two declared shapes of one tensor."""
    name = pick_inner(model, rng)
    for dims in ([1, 2], [3, 4, 5]):
        model.graph.value_info.append(helper.make_tensor_value_info(name, 1, dims))


def drop_opsets(model: Model, rng: Rng) -> None:
    """No version of any operator set."""
    del rng, model.opset_import[:]


def repeat_opset(model: Model, rng: Rng) -> None:
    """Two versions of one operator set."""
    model.opset_import.append(helper.make_opsetid("", pick(rng, [1, 9, 13, 24])))


def foreign_opset(model: Model, rng: Rng) -> None:
    """Legal: an operator set that no node is of."""
    model.opset_import.append(helper.make_opsetid("org.example", int(rng.integers(1, 9))))


def old_opset(model: Model, rng: Rng) -> None:
    """Operators with the meaning of other days."""
    model.opset_import[0].version = int(rng.integers(1, 12))


def odd_opset(model: Model, rng: Rng) -> None:
    """A version that is none."""
    model.opset_import[0].version = pick(rng, [0, -1, 99, 2**31, 2**63 - 1])


def odd_ir_version(model: Model, rng: Rng) -> None:
    """A format version that is none."""
    model.ir_version = pick(rng, [0, -1, 1, 99, 2**31])


def drop_graph(model: Model, rng: Rng) -> None:
    """A model without a graph."""
    del rng
    model.ClearField("graph")


def drop_nodes(model: Model, rng: Rng) -> None:
    """A graph without nodes."""
    del rng, model.graph.node[:]


def only_identity(model: Model, rng: Rng) -> None:
    """A graph that hands its input out."""
    del rng, model.graph.node[:], model.graph.initializer[:]
    value = model.graph.input[0]
    model.graph.node.append(helper.make_node("Identity", [value.name], [model.graph.output[0].name]))


SPOILERS = (
    drop_outputs, output_nothing, repeat_output, output_input, output_weight, drop_inputs, repeat_input, add_input,
    retype_input, retype_output, change_input_dims, free_input_dims, drop_input_dim, input_without_shape,
    input_without_type, input_sequence, input_optional, input_sparse, output_without_type, change_output_dims,
    override_weight, stale_shape, stale_type, declare_nothing, declare_twice, drop_opsets, repeat_opset, foreign_opset,
    old_opset, odd_opset, odd_ir_version, drop_graph, drop_nodes, only_identity,
)  # fmt: skip
