"""The values that blocks/ gives out: a Linear reads itself in one layout, an Operand knows what it is a part of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import draw, floats, node_of, sketch

from corp_onnx.blocks.linear import match_linear
from corp_onnx.blocks.products import Linear, Operand
from corp_onnx.graph import Graph
from corp_onnx.graph.slots import Slot

W, B = floats(6, 4), floats(12)


def draw_linear(
    folder: Path, body: str = "h = MatMul(x, w) y = Add(h, b)", **stored: np.ndarray
) -> tuple[Graph, Linear]:
    graph = draw(body, folder, **({"w": W, "b": B[:4]} | stored))
    linear = match_linear(graph, node_of(graph, "h"))
    assert isinstance(linear, Linear)
    return graph, linear


def operand_of(linear: Linear, **options: object) -> Operand:
    """Two heads of two dimensions."""
    plain = Operand(linear, np.arange(4).reshape(2, 2), False, 5, "q", linear.output or "", None, None, (), ())
    return replace(plain, **options)  # type: ignore[arg-type]


class TestLinear:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_precision_is_the_files(self, dtype: type) -> None:
        """Trap 8: whoever solves casts, once."""
        stored = {"w": W.astype(dtype), "b": B[:4].astype(dtype)}
        shapes = {"x": (2, 5, 6), "h": (2, 5, 4), "y": (2, 5, 4)}
        graph = sketch("h = MatMul(x, w) y = Add(h, b)", shapes, "float[2,5,6] x", **stored)
        linear = match_linear(graph, graph.nodes[0])
        assert isinstance(linear, Linear)
        weight, bias = linear.read_weight(graph), linear.read_bias(graph)
        assert bias is not None
        assert (weight.dtype, bias.dtype) == (dtype, dtype)
        assert np.array_equal(weight, stored["w"].T)
        assert np.array_equal(bias, stored["b"])

    def test_behind_a_cast_it_is_what_the_product_sees(self, tmp_path: Path) -> None:
        body = "c = Cast<to=1>(w) h = MatMul(x, c) y = Add(h, b)"
        graph, linear = draw_linear(tmp_path, body, w=W.astype(np.float16))
        assert linear.read_weight(graph).dtype == np.float32
        assert np.array_equal(linear.read_weight(graph), W.T.astype(np.float16))

    def test_a_constant_node(self, tmp_path: Path) -> None:
        body = "w0 = Constant<value = float[6,1] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>() h = MatMul(x, w0) y = Add(h, b)"
        graph, linear = draw_linear(tmp_path, body, b=B[:1])
        assert linear.read_weight(graph).tolist() == [[1, 2, 3, 4, 5, 6]]

    def test_transposed_weight_is_not_turned(self, tmp_path: Path) -> None:
        graph, linear = draw_linear(tmp_path, "h = com.microsoft.FusedMatMul<transB=1>(x, w) y = Add(h, b)", w=W.T)
        assert np.array_equal(linear.read_weight(graph), W.T)

    @pytest.mark.parametrize("offset", [0, 4, 8])
    def test_part_of_a_longer_bias(self, offset: int, tmp_path: Path) -> None:
        """Trap 9: MultiHeadAttention keeps three in one vector."""
        graph, linear = draw_linear(tmp_path, "h = MatMul(x, w) y = Add(h, b) u = Neg(all)", all=B)
        part = replace(linear, bias=Slot(node_of(graph, "u"), 0), bias_offset=offset)
        found = part.read_bias(graph)
        assert found is not None
        assert np.array_equal(found, B[offset : offset + 4])

    def test_bias_with_axes_of_one(self, tmp_path: Path) -> None:
        graph, linear = draw_linear(tmp_path, b=B[:4].reshape(1, 1, 4))
        found = linear.read_bias(graph)
        assert found is not None
        assert found.shape == (4,)

    def test_none_at_all(self, tmp_path: Path) -> None:
        graph, linear = draw_linear(tmp_path, "h = MatMul(x, w) y = Relu(h)")
        assert linear.read_bias(graph) is None

    def test_its_node_is_the_product(self, tmp_path: Path) -> None:
        graph, linear = draw_linear(tmp_path)
        assert linear.node is node_of(graph, "h")
        assert linear.output == "y"


class TestOperand:
    def test_sizes(self, tmp_path: Path) -> None:
        _, linear = draw_linear(tmp_path)
        operand = operand_of(linear, channel_idx=np.arange(3).reshape(3, 1))
        assert (operand.n_heads, operand.d_head) == (3, 1)

    def test_is_fused_where_its_boundary_is_behind_the_projection(self, tmp_path: Path) -> None:
        _, linear = draw_linear(tmp_path)
        assert not operand_of(linear).is_fused
        assert operand_of(linear, boundary="cut").is_fused

    def test_name_of_its_projection(self, tmp_path: Path) -> None:
        """Of our own where an operator keeps the tensor inside."""
        _, linear = draw_linear(tmp_path)
        assert operand_of(linear).projection == "y"
        assert operand_of(replace(linear, output=None)).projection == "corp_onnx.projection/h"

    def test_late_bias_by_head(self, tmp_path: Path) -> None:
        graph, linear = draw_linear(tmp_path)
        assert operand_of(linear).read_late_bias(graph).tolist() == [[0, 0], [0, 0]]
        late = operand_of(linear, late_bias=Slot(node_of(graph, "y"), 1))
        assert np.array_equal(late.read_late_bias(graph), B[:4].reshape(2, 2))
