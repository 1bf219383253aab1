"""MLPs that must be found, and graphs in which a cut would be wrong: each names its reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import ROUNDING, difference, feeds_of, find_in, probed, prune_both, random_changes, run
from onnx import TensorProto, helper, numpy_helper
from random_vits import GELUS, Spelling, write_model

from corp_onnx.blocks import Mlp, Skip
from corp_onnx.graph import Graph

Edit = Callable[[onnx.GraphProto, str], None]

TAGS = {
    "erf": "gelu-erf",
    "erf_half_first": "gelu-erf",
    "tanh": "gelu-tanh",
    "quick": "quick-gelu",
    "relu": "relu",
    "gelu": "gelu",
    "gated_split": "gated-split",
    "gated_packed": "gated-packed",
    "gated_computed": "gated-packed",
}


def hidden_of(proto: onnx.ModelProto, d_hidden: int = 12) -> str:
    """The tensor that the second product reads, by the shape of its weight."""
    dims = {t.name: list(t.dims) for t in proto.graph.initializer}
    products = [n for n in proto.graph.node if n.op_type == "MatMul" and dims.get(n.input[1], [0])[0] == d_hidden]
    return products[-1].input[0]


def put_before(graph: onnx.GraphProto, tensor: str, op: str, *inputs: str, **attrs: object) -> None:
    """A new operator between a tensor and its readers, or its only output renamed to the tensor."""
    position, producer = next((i, n) for i, n in enumerate(graph.node) if tensor in n.output)
    producer.output[0] = "before"
    graph.node.insert(position + 1, helper.make_node(op, ["before", *inputs], [tensor], **attrs))


def store(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def skip_of(edit: Edit, folder: Path, **spelling: object) -> Skip:
    """What is said of the MLP of a graph that was edited."""
    proto = write_model(Spelling(**spelling))  # type: ignore[arg-type]
    edit(proto.graph, hidden_of(proto))
    _, blocks = find_in(proto, folder)
    assert not blocks.mlps
    (skip,) = [s for s in blocks.skipped if s.kind == "mlp"]
    return skip


@pytest.mark.parametrize("gelu", GELUS)
def test_every_spelling_of_the_activation(gelu: str, tmp_path: Path) -> None:
    """Trap 5: each spelling is one MLP with the same products."""
    _, blocks = find_in(write_model(Spelling(gelu=gelu, d_hidden=9)), tmp_path)
    (unit,) = blocks.mlps
    assert (unit.activation, unit.d_hidden) == (TAGS[gelu], 9)
    assert len(unit.ups) == (2 if gelu == "gated_split" else 1)
    halves = 2 if unit.activation == "gated-packed" else 1
    assert [up.channel_idx.tolist() for up in unit.ups] == [[[*range(9)], [*range(9, 18)]][:halves]] * len(unit.ups)


def test_gate_and_value_of_one_channel_go_together(tmp_path: Path) -> None:
    """Trap 7: the bounds of the Slices are computed from the shape of the packed product."""
    graph, blocks = find_in(write_model(Spelling(gelu="gated_computed", d_hidden=9)), tmp_path)
    changes = random_changes(graph, blocks, 5, qk=False, vo=False)
    path, oracle = prune_both(graph, blocks, changes, tmp_path)
    feeds = feeds_of(graph)
    assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]
    left = {n.op_type for n in onnx.load(path).graph.node}
    assert "Shape" not in left  # nothing computes the bounds any more


@pytest.mark.parametrize("name", ["timm_swiglu_packed_ts17", "timm_geglu_packed_ts17", "hf_v4_dinov2_giant_ts17_sdpa"])
def test_packed_gate_of_torchscript(name: str) -> None:
    """Trap 7: chunk exports as Slices between Shape, Gather, Add, Div and Mul."""
    graph, blocks = probed(name)
    for unit in blocks.mlps:
        assert unit.activation == "gated-packed"
        first, second = sorted(unit.splits, key=lambda n: n.position)
        assert (first.op, second.op) == ("Slice", "Slice")
        assert graph.producers[first.inputs[2]].op == graph.producers[second.inputs[1]].op == "Mul"


def test_bias_on_either_side_is_one_linear(tmp_path: Path) -> None:
    """Trap 4: Add(product, bias) and Add(bias, product)."""
    for side, idx in (("left", 0), ("right", 1)):
        graph, blocks = find_in(write_model(Spelling(bias=side)), tmp_path)
        (unit,) = blocks.mlps
        assert unit.down.bias is not None
        assert (unit.down.bias.node.op, unit.down.bias.idx) == ("Add", idx)
        assert unit.down.output == unit.down.bias.node.output
        bias = unit.down.read_bias(graph)
        assert bias is not None
        assert bias.shape == (unit.down.d_out,)


@pytest.mark.parametrize("weights", ["initializer", "constant", "transposed", "half"])
def test_weight_layout_is_normalised(weights: str, tmp_path: Path) -> None:
    """Trap 4: Constant nodes, a Transpose or a Cast in between, Gemm with transB: always [d_out, d_in]."""
    for gemm in (False, True):
        graph, blocks = find_in(write_model(Spelling(weights=weights, gemm=gemm)), tmp_path)
        (unit,) = blocks.mlps
        assert unit.ups[0].linear.read_weight(graph).shape == (12, 7)
        assert unit.down.read_weight(graph).shape == (7, 12)
        assert unit.down.transposed == gemm


def test_weight_is_what_the_product_uses(tmp_path: Path) -> None:
    """Read through a Cast and a Gemm with transB: x @ W.T + b is what ONNX Runtime computes."""
    from corp_onnx.run.tapped import open_tapped

    graph, blocks = find_in(write_model(Spelling(weights="half", gemm=True)), tmp_path)
    (unit,) = blocks.mlps
    for linear in (unit.down, unit.ups[0].linear):
        found = open_tapped(graph.model, [linear.input, linear.output or ""]).run(feeds_of(graph))
        bias = linear.read_bias(graph)
        assert bias is not None
        expected = found[linear.input] @ linear.read_weight(graph).T + bias
        np.testing.assert_allclose(found[linear.output or ""], expected, rtol=1e-5, atol=1e-5)


def read_again(graph: onnx.GraphProto, hidden: str) -> None:
    graph.node.append(helper.make_node("ReduceMean", [hidden], ["mean"]))
    graph.output.append(onnx.ValueInfoProto(name="mean"))


def give_out(graph: onnx.GraphProto, hidden: str) -> None:
    graph.output.append(onnx.ValueInfoProto(name=hidden))


def leak_width(graph: onnx.GraphProto, hidden: str) -> None:
    """The output is divided by the number of hidden channels, which a Shape tells."""
    graph.node.insert(len(graph.node) - 1, helper.make_node("Shape", [hidden], ["shape"]))
    last = store(graph, "last", np.array([-1]))
    graph.node.insert(len(graph.node) - 1, helper.make_node("Gather", ["shape", last], ["width"]))
    graph.node.insert(len(graph.node) - 1, helper.make_node("Cast", ["width"], ["divisor"], to=TensorProto.FLOAT))
    stream = graph.node[-1].input[0]
    graph.node.insert(len(graph.node) - 1, helper.make_node("Div", [stream, "divisor"], ["divided"]))
    graph.node[-1].input[0] = "divided"


def capture(graph: onnx.GraphProto, hidden: str) -> None:
    """A subgraph that reads the hidden tensor from around it."""
    inner: list[onnx.GraphProto] = []
    for name in ("one", "other"):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        inner.append(helper.make_graph([helper.make_node("ReduceMax", [hidden], [name])], name, [], [value]))
    condition = store(graph, "condition", np.array(True))
    graph.node.append(helper.make_node("If", [condition], ["largest"], then_branch=inner[0], else_branch=inner[1]))
    graph.output.append(onnx.ValueInfoProto(name="largest"))


def constant_by_token(graph: onnx.GraphProto, hidden: str) -> None:
    put_before(graph, hidden, "Mul", store(graph, "table", np.ones((5, 12), np.float32)))


def mix_channels(graph: onnx.GraphProto, hidden: str) -> None:
    put_before(graph, hidden, "Softmax", axis=-1)


def norm_channels(graph: onnx.GraphProto, hidden: str) -> None:
    put_before(graph, hidden, "LayerNormalization", store(graph, "ones", np.ones(12, np.float32)), axis=-1)


def from_outside(graph: onnx.GraphProto, _: str) -> None:
    """The first product's weight is fed by the caller."""
    weight = next(t for t in graph.initializer if list(t.dims) == [7, 12])
    graph.initializer.remove(weight)
    graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, [7, 12]))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (read_again, "ReduceMean .* reads .* as well, so its width can not change"),
        (give_out, "is an output of the graph, so its width can not change"),
        (leak_width, "Div .* reads .* as well, so its width can not change"),
        (capture, "If .* reads .* as well, so its width can not change"),
        (constant_by_token, r"expected a constant of 12 channels, found \(5, 12\)"),
        (mix_channels, "expected only per-channel operators between two products, found Softmax"),
        (norm_channels, "expected only per-channel operators between two products, found LayerNormalization"),
        (from_outside, "expected only per-channel operators between two products, found MatMul"),
    ],
)
def test_cut_that_would_be_wrong_is_skipped(edit: Edit, reason: str, tmp_path: Path) -> None:
    """Trap 11, and the guards: not shared outside the match, not an output, not fed."""
    skip = skip_of(edit, tmp_path, n_tokens=5)
    assert re.search(reason, skip.reason), skip.reason


def test_shape_of_leading_axes_is_no_reader(tmp_path: Path) -> None:
    """Exporters ask the hidden tensor for its batch; that does not change."""
    proto = write_model(Spelling())
    hidden = hidden_of(proto)
    proto.graph.node.append(helper.make_node("Shape", [hidden], ["lead"], end=2))
    proto.graph.output.append(onnx.ValueInfoProto(name="lead"))
    _, blocks = find_in(proto, tmp_path)
    assert len(blocks.mlps) == 1


def test_two_products_without_a_residual(tmp_path: Path) -> None:
    """A pooler and a classifier look like an MLP; nothing is added to them."""

    def cut_residual(graph: onnx.GraphProto, _: str) -> None:
        add = graph.node[-2]
        assert add.op_type == "Add"
        graph.node[-1].input[0] = add.input[1]

    skip = skip_of(cut_residual, tmp_path)
    assert skip.reason == "expected a residual addition after the second product, found none"


def test_interleaved_gate_is_not_halves(tmp_path: Path) -> None:
    """A gate in the even channels and a value in the odd ones is another layout."""

    def interleave(graph: onnx.GraphProto, _: str) -> None:
        step = store(graph, "two", np.array([2]))
        slices = [n for n in graph.node if n.op_type == "Slice"]
        for node, start in zip(slices, (0, 1), strict=True):
            node.input[1] = store(graph, f"start{start}", np.array([start]))
            node.input[2] = store(graph, f"stop{start}", np.array([24]))
            node.input.append(step)

    skip = skip_of(interleave, tmp_path, gelu="gated_computed")
    assert skip.reason == "expected gate and value to be the halves of one product"


@pytest.mark.parametrize("op", ["Celu", "Selu", "Softsign", "ThresholdedRelu", "PRelu"])
def test_other_activations(op: str, tmp_path: Path) -> None:
    """Any element-wise operator acts on each channel alone; a slope for each channel is cut along."""
    proto = write_model(Spelling(gelu="relu", d_hidden=9))
    (relu,) = [n for n in proto.graph.node if n.op_type == "Relu"]
    relu.op_type = op
    if op == "PRelu":
        relu.input.append(store(proto.graph, "slope", np.linspace(0, 1, 9, dtype=np.float32)))
    graph, blocks = find_in(proto, tmp_path)
    (unit,) = blocks.mlps
    assert (unit.activation, unit.d_hidden) == (op.lower(), 9)
    assert ("slope" in {slot.name for slot in unit.per_channel}) == (op == "PRelu")
    path, oracle = prune_both(graph, blocks, random_changes(graph, blocks, 3, qk=False, vo=False), tmp_path)
    feeds = feeds_of(graph)
    assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]


def test_leaky_by_comparison(tmp_path: Path) -> None:
    """Where(h > 0, Relu(h), h / 10): the condition is of the region too."""
    proto = write_model(Spelling(gelu="relu", d_hidden=9))
    position, relu = next((i, n) for i, n in enumerate(proto.graph.node) if n.op_type == "Relu")
    hidden, zero = relu.output[0], store(proto.graph, "zero", np.float32(0))
    tenth = store(proto.graph, "tenth", np.float32(0.1))
    relu.output[0] = "positive"
    for node in reversed([
        helper.make_node("Greater", [relu.input[0], zero], ["is_positive"]),
        helper.make_node("Mul", [relu.input[0], tenth], ["small"]),
        helper.make_node("Where", ["is_positive", "positive", "small"], [hidden]),
    ]):  # fmt: skip
        proto.graph.node.insert(position + 1, node)
    graph, blocks = find_in(proto, tmp_path)
    assert [unit.activation for unit in blocks.mlps] == ["relu"]
    path, oracle = prune_both(graph, blocks, random_changes(graph, blocks, 3, qk=False, vo=False), tmp_path)
    feeds = feeds_of(graph)
    assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]


def test_tensor_that_is_read_for_its_type(tmp_path: Path) -> None:
    """The second input of CastLike is no data: the stream, of another width, may stand there."""

    def cast_like_stream(graph: onnx.GraphProto, hidden: str) -> None:
        put_before(graph, hidden, "CastLike", graph.input[0].name)

    proto = write_model(Spelling(gelu="relu"))
    cast_like_stream(proto.graph, hidden_of(proto))
    _, blocks = find_in(proto, tmp_path)
    assert [unit.activation for unit in blocks.mlps] == ["relu"]


def test_no_nonlinearity_is_no_mlp(tmp_path: Path) -> None:
    proto = write_model(Spelling(gelu="relu"))
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Neg"
    _, blocks = find_in(proto, tmp_path)
    assert not blocks.mlps
    assert [s for s in blocks.skipped if s.kind == "mlp"] == []


def residual_of(graph: Graph, unit: Mlp) -> tuple[str, bool, bool]:
    residual = unit.residual
    return graph.producers[residual.stream].op, residual.skip is not None, residual.scale is not None


def test_residual_is_read_with_its_scale(tmp_path: Path) -> None:
    """Trap 5: LayerScale; a norm in between, or an addition inside SkipLayerNormalization, is said to be none."""
    graph, blocks = find_in(write_model(Spelling(layer_scale=True)), tmp_path)
    assert residual_of(graph, blocks.mlps[0]) == ("Add", True, True)
    graph, blocks = find_in(write_model(Spelling(skip_first=False)), tmp_path)
    assert residual_of(graph, blocks.mlps[0]) == ("Add", True, False)
    graph, blocks = probed("timm_vit_respost_ts17")
    assert residual_of(graph, blocks.mlps[0])[:2] == ("Add", False)
    graph, blocks = probed("hf_bert_ts17_eager_ortbert")
    assert residual_of(graph, blocks.mlps[0])[:2] == ("SkipLayerNormalization", False)
