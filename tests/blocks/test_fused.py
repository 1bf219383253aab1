"""com.microsoft.Attention, which holds its projections: what is read of it and when it is left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import draw_proto, floats, sketch
from graphs import probed

from corp_onnx.blocks import Skip
from corp_onnx.blocks.fused import match_packed_attention
from corp_onnx.blocks.linear import Mismatch
from corp_onnx.graph import Graph, Model, read_graph

X, STORED = (
    (2, 5, 6),
    {"w": floats(6, 18), "wide": floats(6, 20), "b": floats(18), "b20": floats(20), "wo": floats(6, 6)},
)
SHAPES = dict.fromkeys(("x", "y", "o", "z", "computed"), X) | {"m": (2, 5)}
TAIL = "o = MatMul(y, wo) z = Add(x, o)"


def draw_packed(body: str, **shapes: tuple[int, ...]) -> Graph:
    return sketch(body, SHAPES | shapes, "float[2,5,6] x, float[6,18] fed", **STORED)


def match(body: str, **shapes: tuple[int, ...]) -> Any:
    graph = draw_packed(body, **shapes)
    return match_packed_attention(graph, next(n for n in graph.nodes if n.op == "Attention"))


def operands(unit: Any) -> list[Any]:
    """q, k and v, however the unit holds them."""
    return [unit.q, unit.k, unit.v] if hasattr(unit, "q") else [unit.operands[letter] for letter in "qkv"]


def vo_skip(unit: Any) -> Any:
    """Why the values are left alone; None where they are not."""
    return unit.vo_skip if hasattr(unit, "vo_skip") else unit.vo if isinstance(unit.vo, Skip) else None


def test_thirds_of_its_weight() -> None:
    """Trap 9: columns of q, then of k, then of v, heads side by side in each."""
    unit = match(f"y = com.microsoft.Attention<num_heads=2>(x, w, b) {TAIL}")
    for place, operand in enumerate(operands(unit)):
        assert np.array_equal(operand.channel_idx, 6 * place + np.arange(6).reshape(2, 3))
        assert (operand.linear.input, operand.linear.weight.name, operand.linear.bias.name) == ("x", "w", "b")
        assert (operand.linear.d_in, operand.linear.d_out, operand.n_tokens) == (6, 18, 5)
        assert (operand.linear.output, operand.linear.transposed) == (None, False)
        assert operand.projection == "corp_onnx.projection/y"  # a name that no tensor of the graph has
        assert operand.is_fused
    assert unit.core == "com.microsoft.Attention"


def test_widths_of_its_own() -> None:
    """Trap 9: qkv_hidden_sizes, and the scale that goes with the width of a query."""
    call = "com.microsoft.Attention<num_heads=2,qkv_hidden_sizes=[8,8,4]>(x, wide, b20)"
    body = f"y = {call} o = MatMul(y, wv) z = Add(x, o)"
    graph = sketch(body, SHAPES | {"y": (2, 5, 4)}, "float[2,5,6] x", **STORED, wv=floats(4, 6))
    unit: Any = match_packed_attention(graph, graph.nodes[0])
    assert [o.channel_idx.tolist() for o in operands(unit)] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]], [[16, 17], [18, 19]]
    ]  # fmt: skip
    assert unit.scale == pytest.approx(0.5)


def test_scale_and_bias_that_are_or_are_not_there() -> None:
    unit = match(f"y = com.microsoft.Attention<num_heads=2>(x, w) {TAIL}")
    assert unit.scale == pytest.approx(3**-0.5)
    assert [o.linear.bias for o in operands(unit)] == [None] * 3
    unit = match(f"y = com.microsoft.Attention<num_heads=2,scale=0.3>(x, w, b) {TAIL}")
    assert unit.scale == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("call", "reason", "depth"),
    [
        ("Attention<num_heads=2>(x, fed, b)", "expected a stored projection", 1),
        ("Attention<num_heads=2>(x, b, b)", "expected a stored projection", 1),
        ("Attention<num_heads=2>(x, w, b, , past)", "expected no cached keys (this is an encoder tool)", 1),
        ("Attention<num_heads=2>(x, w, b, , , , past)", "expected no cached keys (this is an encoder tool)", 1),
        ("Attention<num_heads=2,do_rotary=1>(x, w, b)", "q and k are rotated inside the operator", 2),
    ],
)
def test_operator_that_is_left_alone(call: str, reason: str, depth: int) -> None:
    found = match(f"past = Identity(x) y = com.microsoft.{call} {TAIL}")
    assert isinstance(found, Mismatch)
    assert (found.reason, found.depth, found.node.output) == (reason, depth, "y")


def test_mask_is_no_matter() -> None:
    unit = match(f"y = com.microsoft.Attention<num_heads=2>(x, w, b, m) {TAIL}")
    assert not isinstance(unit, Mismatch)


@pytest.mark.parametrize(
    ("tail", "at"),
    [
        ("o = Relu(y) z = Add(x, o)", "o"),
        ("o = MatMul(y, wo) p = Relu(y) z = Add(o, p)", "y"),
        ("o = MatMul(x, y)", "o"),
    ],
)
def test_values_stay_where_no_projection_follows(tail: str, at: str) -> None:
    """Queries and keys are inside, so they can be narrowed all the same."""
    unit = match(f"y = com.microsoft.Attention<num_heads=2>(x, w, b) {tail}", p=X)
    skip = vo_skip(unit)
    assert (skip.kind, skip.reason) == ("vo", "expected the output projection right after the operator")
    assert f"'{at}'" in skip.node


def test_output_that_the_graph_gives_out() -> None:
    """Its width is part of the model's signature."""
    proto = draw_proto(f"y = com.microsoft.Attention<num_heads=2>(x, w, b) {TAIL}", outputs=("z", "y"), **STORED)
    graph = replace(read_graph(Model(proto, Path("m.onnx"), "")), shapes=SHAPES)
    assert vo_skip(match_packed_attention(graph, graph.nodes[0])) is not None


def test_keys_and_values_given_out() -> None:
    """`present` holds keys and values side by side, so neither width can change."""
    body = f"y, present = com.microsoft.Attention<num_heads=2>(x, w, b) {TAIL}"
    proto = draw_proto(body, outputs=("z", "present"), **STORED)
    graph = replace(read_graph(Model(proto, Path("m.onnx"), "")), shapes=SHAPES | {"present": (2, 2, 2, 5, 3)})
    assert isinstance(match_packed_attention(graph, graph.nodes[0]), Mismatch)


@pytest.mark.parametrize("name", ["handmade_ms_attention", "hf_bert_ts17_eager_ortbert"])
def test_real_files(name: str) -> None:
    graph, blocks = probed(name)
    packed = [n for n in graph.nodes if n.op == "Attention" and n.domain == "com.microsoft"]
    assert packed
    assert [u.node for u in blocks.attentions if u.core == "com.microsoft.Attention"] == packed
