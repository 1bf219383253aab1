"""Index tensors: whatever way columns travel, the layout that is read off moves real numbers the same way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.blocks.layout import (
    Step,
    Traced,
    dimension_lookup,
    find_boundary,
    is_plain,
    read_heads,
    scalar_operand,
    trace_path,
    width_spellings,
)
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.graph import Graph, Model, read_graph


def make_graph(nodes: list[onnx.NodeProto], shape: tuple[int, ...], **stored: np.ndarray) -> Graph:
    """A graph of operators on the tensor `x`, its shape known as after a probe."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [value], outputs, initializers), opset_imports=[helper.make_opsetid("", 20)]
    )
    return replace(read_graph(Model(proto, Path("m.onnx"), "")), shapes={"x": shape})


def trace(graph: Graph) -> tuple[Traced, list[Step]]:
    steps = [Step(node, node.output) for node in graph.nodes]
    traced = trace_path(graph, "x", steps)
    assert isinstance(traced, Traced)
    return traced, steps


@st.composite
def cut_paths(draw: st.DrawFn) -> tuple[Graph, tuple[int, int, int, int], int]:
    """A fused projection [B, N, columns] -> one of its three parts, in any order of axes."""
    b, n, h, d = (draw(st.integers(2, 4)) for _ in range(4))
    axes = draw(st.permutations([("which", 3), ("head", h), ("dim", d)]))
    part = draw(st.integers(0, 2))
    names = [name for name, _ in axes]
    target = np.array([b, n, *(size for _, size in axes)])
    order = ["batch", "tokens", *names]
    rest = draw(st.permutations([x for x in order if x != "which"]))
    perm = [order.index("which"), *(order.index(x) for x in rest)]
    last = [rest.index(x) for x in ("batch", "head", "tokens", "dim")]
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["parts"]),
        helper.make_node("Transpose", ["parts"], ["turned"], perm=perm),
        helper.make_node("Gather", ["turned", "part"], ["cut"], axis=0),
        helper.make_node("Transpose", ["cut"], ["seen"], perm=last),
    ]
    graph = make_graph(nodes, (b, n, 3 * h * d), target=target, part=np.array(part))
    return graph, (b, n, h, d), part


@given(cut_paths())
def test_boundary_rebuilds_the_operand_from_its_columns(case: tuple[Graph, tuple[int, int, int, int], int]) -> None:
    """Trap 2: columns of the operand alone, reshaped and transposed as read, are the tensor of the graph."""
    graph, (b, n, h, d), _ = case
    traced, steps = trace(graph)
    heads = read_heads(traced, traced.arrays["seen"], graph.nodes[-1])
    assert not isinstance(heads, Mismatch)
    assert heads.channel_idx.shape == (h, d)
    assert not heads.token_major
    boundary = find_boundary(traced, "x", steps, heads.channel_idx)
    assert boundary is not None
    numbers = np.random.default_rng(0).standard_normal((b, n, 3 * h * d))
    columns = numbers[..., heads.channel_idx.reshape(-1)]
    rebuilt = columns if boundary.perm is None else columns.reshape(b, n, h, d).transpose(boundary.perm)
    assert np.array_equal(rebuilt, numbers.reshape(-1)[traced.arrays[boundary.tensor]])
    expected = numbers[..., heads.channel_idx].transpose(0, 2, 1, 3)  # [B, H, N, d]
    assert np.array_equal(expected, numbers.reshape(-1)[traced.arrays["seen"]])


@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 4), st.integers(2, 4), st.booleans())
def test_token_major_is_told_from_image_major(b: int, n: int, h: int, d: int, token_major: bool) -> None:
    """Trap 6: [tokens, images] and [images, tokens] in front, flattened or not."""
    lead = (n, b) if token_major else (b, n)
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["heads"]),
        helper.make_node("Transpose", ["heads"], ["seen"], perm=[1, 2, 0, 3] if token_major else [0, 2, 1, 3]),
    ]
    graph = make_graph(nodes, (n * b, h * d), target=np.array([*lead, h, d]))
    traced, steps = trace(graph)
    heads = read_heads(traced, traced.arrays["seen"], graph.nodes[-1])
    assert not isinstance(heads, Mismatch)
    assert heads.token_major == (token_major and b > 1)
    assert is_plain(heads.channel_idx, h * d)
    boundary = find_boundary(traced, "x", steps, heads.channel_idx)
    assert boundary is not None
    assert boundary.tensor == "x"


def test_parted_axis_is_named() -> None:
    """A fused Gemm on flattened tokens: the Reshape that parts them is where the token count comes from."""
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["parts"]),
        helper.make_node("Transpose", ["parts"], ["turned"], perm=[3, 1, 2, 4, 0, 5]),
        helper.make_node("Gather", ["turned", "part"], ["five"], axis=0),
        helper.make_node("Squeeze", ["five", "last"], ["cut"]),
    ]
    graph = make_graph(
        nodes, (10, 3 * 2 * 4), target=np.array([1, 2, 5, 3, 2, 4]), part=np.array(1), last=np.array([3])
    )
    traced, steps = trace(graph)
    channel_idx = 8 + np.arange(8).reshape(2, 4)
    boundary = find_boundary(traced, "x", steps, channel_idx)
    assert boundary is not None
    assert (boundary.tensor, boundary.perm) == ("cut", (0, 1, 2, 3))
    assert boundary.leading is not None
    assert (boundary.leading.node.output, boundary.leading.axis) == ("parts", 1)


def test_boundary_is_not_behind_a_change_of_numbers() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Split", ["half"], ["a", "b"], axis=-1, num_outputs=2),
    ]
    graph = make_graph(nodes, (2, 3, 8))
    steps = [Step(graph.nodes[0], "half"), Step(graph.nodes[1], "b")]
    traced = trace_path(graph, "x", steps)
    assert isinstance(traced, Traced)
    assert np.array_equal(traced.columns("b")[0, 0], [4, 5, 6, 7])
    assert find_boundary(traced, "x", steps, np.arange(4, 8).reshape(2, 2)) is None
    assert find_boundary(traced, "x", steps[1:], np.arange(4, 8).reshape(2, 2)) is not None


def test_unknown_index_is_a_mismatch() -> None:
    nodes = [helper.make_node("Gather", ["x", "idx"], ["y"], axis=0)]
    graph = make_graph(nodes, (3, 4))
    found = trace_path(graph, "x", [Step(graph.nodes[0], "y")])
    assert isinstance(found, Mismatch)
    assert found.reason == "expected a known shape or index"


def test_heads_that_share_a_column() -> None:
    nodes = [helper.make_node("Gather", ["x", "idx"], ["y"], axis=2)]
    graph = make_graph(nodes, (1, 3, 4), idx=np.array([[0, 1], [1, 2]]))
    traced, _ = trace(graph)
    found = read_heads(traced, traced.arrays["y"].transpose(0, 2, 1, 3), graph.nodes[0])
    assert isinstance(found, Mismatch)
    assert found.reason == "expected heads that share no projection column"


def test_tokens_that_are_mixed_are_no_heads() -> None:
    nodes = [helper.make_node("Reshape", ["x", "target"], ["y"])]
    graph = make_graph(nodes, (1, 3, 4), target=np.array([1, 2, 2, 3]))
    traced, _ = trace(graph)
    found = read_heads(traced, traced.arrays["y"], graph.nodes[0])
    assert isinstance(found, Mismatch)
    assert found.reason == "expected one projection column for each dimension of a head"


@pytest.mark.parametrize(
    ("target", "axis", "n_folded"),
    [((2, 5, 3, 4), 3, 1), ((2, 5, 12), 2, 3), ((10, 12), 1, 3), ((2, 5, 3, 4, 1), 3, 1)],
)
def test_reshape_that_spells_the_width(target: tuple[int, ...], axis: int, n_folded: int) -> None:
    """Trap 7: the head size is one entry of the target, alone or times the heads."""
    graph = make_graph([helper.make_node("Reshape", ["x", "target"], ["y"])], (2, 5, 12), target=np.array(target))
    traced, steps = trace(graph)
    lookup = dimension_lookup(np.arange(12).reshape(3, 4), 12)
    (found,) = width_spellings(traced, steps, lookup, 4)
    assert (found.axis, found.n_folded) == (axis, n_folded)


def test_dimensions_on_two_axes_are_refused() -> None:
    graph = make_graph([helper.make_node("Reshape", ["x", "t"], ["y"])], (2, 5, 12), t=np.array([2, 5, 3, 2, 2]))
    traced, steps = trace(graph)
    found = width_spellings(traced, steps, dimension_lookup(np.arange(12).reshape(3, 4), 12), 4)
    assert isinstance(found, Mismatch)
    assert found.reason == "expected a head's dimensions on one axis"


def test_scalars() -> None:
    nodes = [
        helper.make_node("Mul", ["s", "x"], ["a"]),
        helper.make_node("Div", ["a", "s"], ["b"]),
        helper.make_node("Div", ["s", "b"], ["c"]),
        helper.make_node("Mul", ["b", "x"], ["d"]),
    ]
    graph = make_graph(nodes, (2, 3), s=np.array([4.0], dtype=np.float32))
    graph = replace(graph, shapes=dict.fromkeys("xabcd", (2, 3)))
    assert [scalar_operand(graph, n) for n in graph.nodes] == [(1, 4.0), (0, 0.25), None, None]
