"""Who may read a tensor that changes its width, and how far the answer of a Shape may travel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from drawn import draw, draw_proto, floats, node_of
from onnx import TensorProto, helper

from corp_onnx.blocks.linear import Mismatch
from corp_onnx.blocks.readers import find_reader, find_shape_leak
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.slots import Slot
from corp_onnx.run.probe import probe_graph

STORED = {
    "w": floats(6, 8), "first": np.array([0]), "second": np.array([1]), "third": np.array([2]), "minus": np.array([-1]),
    "end": np.array([2**62]), "step": np.array([1]), "four": np.array([4]), "both": np.array([0, 2]),
    "scalar": np.array(2), "half": np.float32(0.5),
}  # fmt: skip
"""`h` [2, 5, 8] is the tensor whose last axis changes."""


def draw_readers(body: str, folder: Path, outputs: tuple[str, ...] = ()) -> Graph:
    return draw(f"h = MatMul(x, w) {body}", folder, outputs=outputs, **STORED)


def leak_of(graph: Graph, axes: set[int], *pinned: Slot) -> str | None:
    """The tensor made by the operator at which a size of `h` that changes arrives."""
    (shape,) = [n for n in graph.nodes if n.op == "Shape"]
    found = find_shape_leak(graph, shape, axes, pinned)
    return None if found is None else found.output


class TestReaders:
    def test_only_those_that_the_rewrite_takes_along(self, tmp_path: Path) -> None:
        graph = draw_readers("a = Relu(h) y = Neg(h)", tmp_path, ("a", "y"))
        inside = {node_of(graph, "a"), node_of(graph, "y")}
        assert find_reader(graph, "h", [2], inside, ()) is None
        found = find_reader(graph, "h", [2], {node_of(graph, "a")}, ())
        assert isinstance(found, Mismatch)
        assert found.node is node_of(graph, "y")
        assert found.reason == "Neg 'y' reads 'h' as well, so its width can not change"
        assert found.depth == 2

    def test_output_of_the_graph(self, tmp_path: Path) -> None:
        graph = draw_readers("y = Relu(h)", tmp_path, ("y", "h"))
        found = find_reader(graph, "h", [2], {node_of(graph, "y")}, ())
        assert found is not None
        assert found.reason == "'h' is an output of the graph, so its width can not change"
        assert found.node is node_of(graph, "h")

    @pytest.mark.parametrize(("body", "reads"), [("y = CastLike(x, h)", False), ("y = CastLike(h, x)", True)])
    def test_reader_of_the_type(self, body: str, reads: bool, tmp_path: Path) -> None:
        assert (find_reader(draw_readers(body, tmp_path), "h", [2], (), ()) is not None) == reads

    def test_inner_graph_that_looks_out(self, tmp_path: Path) -> None:
        """Even where its node is taken along: the rewrite changes no inner graph."""
        proto = draw_proto("h = MatMul(x, w) y = Relu(h)", **STORED)
        value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
        inner = helper.make_graph([helper.make_node("Neg", ["h"], ["inner"])], "i", [], [value])
        proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
        proto.graph.output.append(onnx.ValueInfoProto(name="z"))
        onnx.save(proto, tmp_path / "m.onnx")
        graph = probe_graph(load_model(tmp_path / "m.onnx"))
        found = find_reader(graph, "h", [2], {node_of(graph, "y"), node_of(graph, "z")}, ())
        assert found is not None
        assert found.node.op == "If"

    def test_shape_is_asked_for_the_axes_that_change(self, tmp_path: Path) -> None:
        graph = draw_readers("s = Shape(h) l = Gather(s, third) c = Cast<to=1>(l) y = Div(x, c)", tmp_path)
        assert find_reader(graph, "h", [0, 1], (), ()) is None
        found = find_reader(graph, "h", [1, 2], (), ())
        assert found is not None
        assert found.node is node_of(graph, "y")

    def test_size_counts_every_axis(self, tmp_path: Path) -> None:
        found = find_reader(draw_readers("y = Size(h)", tmp_path), "h", [2], (), ())
        assert found is not None
        assert found.node.op == "Size"

    def test_nobody(self, tmp_path: Path) -> None:
        assert find_reader(draw_readers("y = Relu(x)", tmp_path), "h", [2], (), ()) is None


ARRIVES = " c = Cast<to=1>(l) y = Div(x, c)"  # a number of the shape, in the data

ASKED = {
    "s = Shape(h) l = Gather(s, third)": {2},
    "s = Shape(h) l = Gather(s, minus)": {2},
    "s = Shape(h) l = Gather(s, scalar)": {2},
    "s = Shape(h) l = Gather(s, first)": {0},
    "s = Shape(h) m = Gather(s, both) l = ReduceMax<keepdims=0>(m)": {0, 2},
    "s = Shape<start=2>(h) l = Identity(s)": {2},
    "s = Shape<start=-1>(h) l = Identity(s)": {2},
    "s = Shape<start=1>(h) l = Gather(s, first)": {1},
    "s = Shape<end=2>(h) l = Gather(s, second)": {1},
    "s = Shape<end=-1>(h) l = Gather(s, minus)": {1},
    "s = Shape(h) l = Slice(s, third, end)": {2},
    "s = Shape(h) l = Slice(s, minus, end)": {2},
    "s = Shape(h) l = Slice(s, first, second)": {0},
    "s = Shape(h) l = Slice(s, second, minus, first)": {1},
    "s = Shape(h) l = Slice(s, first, second, first, step)": {0, 1, 2},  # with steps: all, to be safe
    "s = Shape(h) a, b, l = Split<num_outputs=3>(s)": {0, 1, 2},
}
"""What is taken of a shape, and of which axes a change arrives in the data."""


@pytest.mark.parametrize("body", ASKED)
def test_positions_that_are_asked_for(body: str, tmp_path: Path) -> None:
    """Trap 7: exporters take the batch and the tokens from the shape of what is cut; that is no reader."""
    graph = draw_readers(body + ARRIVES, tmp_path)
    assert {axis for axis in range(3) if leak_of(graph, {axis}) is not None} == ASKED[body]


class TestWayOfASize:
    def test_through_arithmetic_to_a_pinned_slot(self, tmp_path: Path) -> None:
        """Trap 1: 1 / sqrt(d_head), computed from the shape of the queries."""
        body = "s = Shape(h) l = Gather(s, third) c = Cast<to=1>(l) r = Sqrt(c) i = Div(half, r) y = Mul(x, i)"
        graph = draw_readers(body, tmp_path)
        assert leak_of(graph, {2}) == "y"
        assert leak_of(graph, {2}, Slot(node_of(graph, "y"), 0)) == "y"
        assert leak_of(graph, {2}, Slot(node_of(graph, "y"), 1)) is None
        assert leak_of(graph, {2}, Slot(node_of(graph, "r"), 0)) is None

    def test_every_way_is_followed(self, tmp_path: Path) -> None:
        body = "s = Shape(h) l = Gather(s, third) c = Cast<to=1>(l) y = Mul(x, c) d = Neg(c) z = Add(x, d)"
        graph = draw_readers(body, tmp_path, ("y", "z"))
        assert leak_of(graph, {2}, Slot(node_of(graph, "y"), 1)) == "z"
        assert leak_of(graph, {2}, Slot(node_of(graph, "y"), 1), Slot(node_of(graph, "z"), 1)) is None

    def test_target_of_a_reshape(self, tmp_path: Path) -> None:
        body = "s = Shape(h) l = Gather(s, third) m = Concat<axis=0>(minus, l) y = Reshape(h, m) z = Relu(y)"
        graph = draw_readers(body, tmp_path)
        assert leak_of(graph, {2}) == "y"
        assert leak_of(graph, {2}, Slot(node_of(graph, "y"), 1)) is None

    def test_output_of_the_graph(self, tmp_path: Path) -> None:
        graph = draw_readers("s = Shape(h) y = Gather(s, third)", tmp_path)
        assert leak_of(graph, {2}) == "y"
        assert leak_of(graph, {0, 1}) is None
        graph = draw_readers("y = Shape(h)", tmp_path)
        assert leak_of(graph, {2}) == "y"

    def test_operator_that_is_no_arithmetic(self, tmp_path: Path) -> None:
        graph = draw_readers("s = Shape(h) l = Gather(s, third) y = ConstantOfShape(l)", tmp_path)
        assert leak_of(graph, {2}) == "y"

    def test_type_alone(self, tmp_path: Path) -> None:
        graph = draw_readers("s = Shape(h) l = Gather(s, third) y = CastLike(x, l)", tmp_path)
        assert leak_of(graph, {2}) is None

    def test_unknown_position(self, tmp_path: Path) -> None:
        """An index that depends on the input, and is too long to be one of the probe's values, may be any."""
        body = "m = ArgMax<axis=2,keepdims=0>(z) i = Reshape(m, minus) s = Shape(h) l = Gather(s, i) c = Cast<to=1>(l)"
        graph = draw(
            f"h = MatMul(x, w) {body} y = ReduceMax<keepdims=0>(c)", tmp_path,
            "float[batch,5,6] x, float[batch,40,3] z", **STORED,
        )  # fmt: skip
        assert graph.value("i") is None
        assert [leak_of(graph, {axis}) for axis in range(3)] == ["y"] * 3

    def test_shape_that_is_read_as_an_index(self, tmp_path: Path) -> None:
        """Gather(table, shape): the sizes themselves pick."""
        graph = draw("h = MatMul(x, w) s = Shape(h) y = Gather(table, s)", tmp_path, **STORED, table=np.arange(9))
        assert [leak_of(graph, {axis}) for axis in range(3)] == ["y"] * 3
