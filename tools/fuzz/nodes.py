"""Ways to spoil nodes, attributes and edges. Some leave a legal graph of the same function: those must be done."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from fuzz.draw import Rng, pick, pick_inner, pick_node, pick_weight, replace_reads, shuffle_field

Model = onnx.ModelProto

EXTREMES = (-(2**63), -(2**31), -1, 0, 2**31, 2**62, 2**63 - 1)
"""Integers at which arithmetic turns over."""


def drop_node(model: Model, rng: Rng) -> None:
    """A node is missing."""
    model.graph.node.remove(pick_node(model, rng))


def repeat_node(model: Model, rng: Rng) -> None:
    """Two nodes write the same tensors."""
    model.graph.node.append(pick_node(model, rng))


def add_unread_copy(model: Model, rng: Rng) -> None:
    """Legal: the same node once more, under other names that nobody reads."""
    copy = onnx.NodeProto()
    copy.CopyFrom(pick_node(model, rng))
    copy.name += "_unread"
    copy.output[:] = [f"{name}_unread" if name else "" for name in copy.output]
    model.graph.node.append(copy)


def change_operator(model: Model, rng: Rng) -> None:
    """A node becomes another operator of the graph, attributes and all."""
    node = pick_node(model, rng)
    node.op_type = pick(rng, sorted({n.op_type for n in model.graph.node} - {node.op_type}))


def unknown_operator(model: Model, rng: Rng) -> None:
    """An operator that nobody knows."""
    pick_node(model, rng).op_type = "Unheard"


def empty_operator(model: Model, rng: Rng) -> None:
    """An operator without a name."""
    pick_node(model, rng).op_type = ""


def unknown_domain(model: Model, rng: Rng) -> None:
    """An operator of a domain that is not imported."""
    pick_node(model, rng).domain = "org.example.unheard"


def swap_nodes(model: Model, rng: Rng) -> None:
    """A node stands before one that it reads."""
    nodes = list(range(len(model.graph.node)))
    at = int(rng.integers(len(nodes) - 1))
    other = int(rng.integers(at + 1, len(nodes)))
    nodes[at], nodes[other] = nodes[other], nodes[at]
    shuffle_field(model.graph.node, nodes)


def shuffle_nodes(model: Model, rng: Rng) -> None:
    """No order at all."""
    order = rng.permutation(len(model.graph.node))
    shuffle_field(model.graph.node, [int(i) for i in order])


def reverse_nodes(model: Model, rng: Rng) -> None:
    """Every node before what it reads."""
    del rng
    shuffle_field(model.graph.node, range(len(model.graph.node))[::-1])


def close_cycle(model: Model, rng: Rng) -> None:
    """An early node reads what a late one writes."""
    nodes = model.graph.node
    first = pick(rng, [i for i, n in enumerate(nodes) if n.input and n.output and i < len(nodes) // 2])
    late = pick(rng, [n for n in nodes[first + 1 :] if n.output])
    nodes[first].input[0] = late.output[0]


def read_itself(model: Model, rng: Rng) -> None:
    """A node reads what it writes."""
    node = pick_node(model, rng, lambda n: n.input and n.output)
    node.input[0] = node.output[0]


def swap_inputs(model: Model, rng: Rng) -> None:
    """Two inputs of a node change places."""
    node = pick_node(model, rng, lambda n: len(n.input) > 1 and n.input[0] != n.input[1])
    node.input[0], node.input[1] = node.input[1], node.input[0]


def drop_input(model: Model, rng: Rng) -> None:
    """A node lacks its last input."""
    node = pick_node(model, rng, lambda n: n.input)
    del node.input[-1]


def add_inputs(model: Model, rng: Rng) -> None:
    """A node has too many inputs."""
    node = pick_node(model, rng, lambda n: n.input)
    node.input.extend([node.input[0]] * int(rng.integers(1, 300)))


def blank_input(model: Model, rng: Rng) -> None:
    """An input is left out in the middle."""
    pick_node(model, rng, lambda n: n.input).input[0] = ""


def read_nothing(model: Model, rng: Rng) -> None:
    """A node reads a tensor that nobody writes."""
    pick_node(model, rng, lambda n: n.input).input[0] = "nobody_writes_this"


def rewire_input(model: Model, rng: Rng) -> None:
    """A node reads some other tensor."""
    node = pick_node(model, rng, lambda n: n.input)
    node.input[int(rng.integers(len(node.input)))] = pick_inner(model, rng)


def blank_output(model: Model, rng: Rng) -> None:
    """A node writes to nowhere."""
    pick_node(model, rng, lambda n: n.output).output[0] = ""


def drop_node_outputs(model: Model, rng: Rng) -> None:
    """A node without outputs."""
    del pick_node(model, rng, lambda n: n.output).output[:]


def add_outputs(model: Model, rng: Rng) -> None:
    """A node writes more than its operator has."""
    pick_node(model, rng, lambda n: n.output).output.extend(f"more_{i}" for i in range(int(rng.integers(1, 9))))


def drop_attribute(model: Model, rng: Rng) -> None:
    """An attribute is missing."""
    node = pick_node(model, rng, lambda n: n.attribute)
    node.attribute.remove(pick(rng, node.attribute))


def repeat_attribute(model: Model, rng: Rng) -> None:
    """An attribute is there twice."""
    node = pick_node(model, rng, lambda n: n.attribute)
    node.attribute.append(pick(rng, node.attribute))


def retype_attribute(model: Model, rng: Rng) -> None:
    """An attribute says that it is of another type."""
    attribute = pick(rng, pick_node(model, rng, lambda n: n.attribute).attribute)
    attribute.type = pick(rng, [kind for kind in AttributeProto.AttributeType.values() if kind != attribute.type])


def replace_attribute(model: Model, rng: Rng) -> None:
    """An attribute holds something of another type."""
    attribute = pick(rng, pick_node(model, rng, lambda n: n.attribute).attribute)
    values = ["text", 0.5, [0.25, 0.5], ["a", "b"], 7, [1, 2, 3, 4, 5, 6, 7]]
    before = attribute.type
    made = [helper.make_attribute(attribute.name, value) for value in values]
    attribute.CopyFrom(pick(rng, [one for one in made if one.type != before]))


def extreme_attribute(model: Model, rng: Rng) -> None:
    """An integer at the end of its range: an axis, a size, a type."""
    node = pick_node(
        model, rng, lambda n: any(a.type in (AttributeProto.INT, AttributeProto.INTS) for a in n.attribute)
    )
    kinds = (AttributeProto.INT, AttributeProto.INTS)
    attribute = pick(rng, [a for a in node.attribute if a.type in kinds])
    now = {attribute.i} if attribute.type == AttributeProto.INT else set(attribute.ints)
    value = pick(rng, [v for v in EXTREMES if v not in now])
    if attribute.type == AttributeProto.INT:
        attribute.i = value
    else:
        attribute.ints[:] = [value] * max(len(attribute.ints), 1)


def refer_attribute(model: Model, rng: Rng) -> None:
    """An attribute refers to one of a function, outside of any."""
    attribute = pick(rng, pick_node(model, rng, lambda n: n.attribute).attribute)
    attribute.ref_attr_name = "of_no_function"


def name_no_attribute(model: Model, rng: Rng) -> None:
    """An attribute without a name."""
    pick(rng, pick_node(model, rng, lambda n: n.attribute).attribute).name = ""


def insert_identity(model: Model, rng: Rng) -> None:
    """Legal: an Identity on an edge."""
    _insert(model, rng, ["Identity"])


def insert_casts(model: Model, rng: Rng) -> None:
    """Legal where the tensor is a float: to double and back."""
    name = pick(rng, [n.output[0] for n in model.graph.node if n.op_type in ("MatMul", "Add", "Gemm", "Mul")])
    _insert(model, rng, ["Cast", "Cast"], name, to=[TensorProto.DOUBLE, TensorProto.FLOAT])


def insert_transposes(model: Model, rng: Rng) -> None:
    """Legal: two reversals of the axes behind a product."""
    name = pick(rng, [n.output[0] for n in model.graph.node if n.op_type in ("MatMul", "Add", "Mul")])
    _insert(model, rng, ["Transpose", "Transpose"], name)


def _insert(model: Model, rng: Rng, ops: list[str], name: str = "", **lists: list[int]) -> None:
    name = name or pick_inner(model, rng)
    place = next(i for i, node in enumerate(model.graph.node) if name in node.output)
    last, made = name, []
    for i, op in enumerate(ops):
        attributes = {key: values[i] for key, values in lists.items()}
        made.append(helper.make_node(op, [last], [f"{name}_inserted_{i}"], f"inserted_{i}", **attributes))
        last = f"{name}_inserted_{i}"
    readers = list(model.graph.node[place + 1 :])
    outputs = {value.name for value in model.graph.output}
    if name in outputs:
        made[0].input[0] = model.graph.node[place].output[0] = f"{name}_before"
        made[-1].output[0] = name
    else:
        replace_reads(readers, name, last)
    for i, node in enumerate(made):
        model.graph.node.insert(place + 1 + i, node)


def read_weight_again(model: Model, rng: Rng) -> None:
    """Legal: a weight has a second reader, which is an output; it must keep its shape."""
    weight = pick_weight(model, rng, rank=2)
    model.graph.node.append(helper.make_node("Relu", [weight.name], ["weight_again"]))
    model.graph.output.append(helper.make_tensor_value_info("weight_again", weight.data_type, list(weight.dims)))


def show_inner(model: Model, rng: Rng) -> None:
    """Legal: an inner tensor becomes an output, so that what it is made of can not go."""
    model.graph.output.append(onnx.ValueInfoProto(name=pick_inner(model, rng)))


def add_chain(model: Model, rng: Rng) -> None:
    """Legal: some thousand nodes in a row, which nothing may walk by recursion."""
    last = model.graph.input[0].name
    for i in range(int(rng.integers(1_000, 4_000))):
        model.graph.node.append(helper.make_node("Identity", [last], [f"link_{i}"]))
        last = f"link_{i}"
    model.graph.output.append(onnx.ValueInfoProto(name=last))


def add_branch(model: Model, rng: Rng) -> None:
    """Legal: an If whose branches read a tensor of the graph around them."""
    _nest(model, rng, 1)


def nest_branches(model: Model, rng: Rng) -> None:
    """An If within an If, as deep as protobuf reads (100 messages)."""
    _nest(model, rng, int(rng.integers(8, 28)))


def _nest(model: Model, rng: Rng, depth: int) -> None:
    inner = pick_inner(model, rng)
    graph = helper.make_graph([helper.make_node("Identity", [inner], ["b0"])], "branch", [], [_unknown("b0")])
    for i in range(1, depth):
        node = helper.make_node("If", ["always"], [f"b{i}"], then_branch=graph, else_branch=_constant(f"c{i}"))
        graph = helper.make_graph([node], "branch", [], [_unknown(f"b{i}")])
    model.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    node = helper.make_node("If", ["always"], ["branched"], then_branch=graph, else_branch=_constant("otherwise"))
    model.graph.node.append(node)
    model.graph.output.append(_unknown("branched"))


def _unknown(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)


def _constant(name: str) -> onnx.GraphProto:
    value = helper.make_tensor(name, TensorProto.FLOAT, [1], np.zeros(1, np.float32))
    return helper.make_graph([helper.make_node("Constant", [], [name], value=value)], "other", [], [_unknown(name)])


SPOILERS = (
    drop_node, repeat_node, add_unread_copy, change_operator, unknown_operator, empty_operator, unknown_domain,
    swap_nodes, shuffle_nodes, reverse_nodes, close_cycle, read_itself, swap_inputs, drop_input, add_inputs,
    blank_input, read_nothing, rewire_input, blank_output, drop_node_outputs, add_outputs, drop_attribute,
    repeat_attribute, retype_attribute, replace_attribute, extreme_attribute, refer_attribute, name_no_attribute,
    insert_identity, insert_casts, insert_transposes, read_weight_again, show_inner, add_chain, add_branch,
    nest_branches,
)  # fmt: skip
