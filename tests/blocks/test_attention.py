"""Attentions in every layout, and graphs in which a cut would be wrong: each pair names its reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import ROUNDING, difference, feeds_of, find_in, probed, prunable_sites, prune_both, random_changes, run
from onnx import TensorProto, helper, numpy_helper
from random_vits import QKV, SCALES, Spelling, write_model

from corp_onnx.blocks import Attention, Blocks, Operand, QkPair, Skip, VoPair
from corp_onnx.graph import Graph

Edit = Callable[[onnx.GraphProto], None]


def only_attention(proto: onnx.ModelProto, folder: Path) -> tuple[Graph, Blocks, Attention]:
    graph, blocks = find_in(proto, folder)
    (unit,) = blocks.attentions
    return graph, blocks, unit


def rest_of(unit: Attention) -> list[Operand]:
    """What a fused projection holds besides queries, keys and values."""
    return [operand for name, operand in unit.operands.items() if name.startswith("rest")]


def nodes_of(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    return [n for n in graph.node if n.op_type == op]


def store(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def put_in(graph: onnx.GraphProto, node: onnx.NodeProto, idx: int, op: str, *inputs: str, **attrs: object) -> None:
    """A new operator in front of one input of a node."""
    position = next(i for i, n in enumerate(graph.node) if n is node)
    fresh = f"new_{op}_{idx}_{position}"
    graph.node.insert(position, helper.make_node(op, [node.input[idx], *inputs], [fresh], **attrs))
    node.input[idx] = fresh


def logits_product(graph: onnx.GraphProto) -> onnx.NodeProto:
    """q k': the first MatMul of two computed tensors."""
    stored = {t.name for t in graph.initializer}
    return next(n for n in nodes_of(graph, "MatMul") if not stored & set(n.input))


def prune_and_compare(graph: Graph, blocks: Blocks, folder: Path, seed: int = 1) -> None:
    path, oracle = prune_both(graph, blocks, random_changes(graph, blocks, seed), folder)
    feeds = feeds_of(graph)
    assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]


class TestLayouts:
    @pytest.mark.parametrize("qkv", QKV)
    def test_columns_by_head_and_dimension(self, qkv: str, tmp_path: Path) -> None:
        """Trap 2 and 6: which column of the projection is which dimension of which head, written by hand."""
        h, d = 3, 4
        _, _, unit = only_attention(write_model(Spelling(n_heads=h, d_head=d, d_v=d, qkv=qkv)), tmp_path)
        head, dim = np.mgrid[:h, :d]
        expected = {
            "fused": [which * h * d + head * d + dim for which in range(3)],
            "fused_head_major": [head * 3 * d + which * d + dim for which in range(3)],
            "fused_dim_major": [dim * 3 * h + which * h + head for which in range(3)],
            "merged": [which * h * d + head * d + dim for which in range(3)],
            "separate_dim_major": [dim * h + head] * 3,
        }.get(qkv, [head * d + dim] * 3)
        for letter, columns in zip("qkv", expected, strict=True):
            operand = unit.operands[letter]
            assert np.array_equal(operand.channel_idx, columns)
            assert operand.is_fused == (qkv.startswith("fused") or qkv in ("merged", "separate_dim_major"))

    def test_tokens_first(self) -> None:
        """Trap 6: torchvision folds heads into the batch and puts tokens in front."""
        _, blocks = probed("torchvision_vit_ts17")
        for unit in blocks.attentions:
            assert unit.operands["q"].token_major
            assert unit.operands["v"].token_major
            assert unit.operands["q"].n_tokens == 17

    def test_windows_count_as_images(self) -> None:
        graph, blocks = probed("timm_swin_ts17_fused_fixed")
        for unit in blocks.attentions:
            query = unit.operands["q"]
            assert query.n_tokens * 4 <= np.prod(graph.shapes[query.projection][:-1])

    def test_scale_in_front_of_the_cut_is_not_lost(self, tmp_path: Path) -> None:
        """Everything in front of the boundary of a fused operand is replaced, so a scale there forbids the cut."""
        proto = write_model(Spelling(qkv="fused", scale="none", heads_in_batch=True))
        for gather in nodes_of(proto.graph, "Gather"):
            stored = next(t for t in proto.graph.initializer if t.name == gather.input[1])
            stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored).reshape(1), stored.name))
        first = nodes_of(proto.graph, "Gather")[0]
        reader = next(n for n in proto.graph.node if first.output[0] in n.input)
        put_in(proto.graph, reader, 0, "Mul", store(proto.graph, "scale", np.float32(0.3)))
        graph, blocks = find_in(proto, tmp_path)
        assert not prunable_sites(blocks, "qk")
        assert any("q: the way it is cut out of the projection is not understood" in s.reason for s in blocks.skipped)
        prune_and_compare(graph, blocks, tmp_path)

    def test_bias_behind_the_split(self, tmp_path: Path) -> None:
        """Onnxsim joins three products into one and leaves their biases where they were."""
        graph, blocks, unit = only_attention(write_model(Spelling(qkv="merged", d_v=3)), tmp_path)
        assert [*unit.operands] == ["q", "k", "v"]
        for operand in unit.operands.values():
            assert operand.linear.bias is None
            assert operand.late_bias is not None
            assert operand.read_late_bias(graph).shape == operand.channel_idx.shape
        prune_and_compare(graph, blocks, tmp_path)

    def test_scaled_between_projection_and_late_bias(self, tmp_path: Path) -> None:
        """s * W x + b is not a projection with a bias."""
        proto = write_model(Spelling(qkv="merged"))
        split = nodes_of(proto.graph, "Split")[0]
        add = next(n for n in proto.graph.node if split.output[0] in n.input)
        put_in(proto.graph, add, 0, "Mul", store(proto.graph, "half", np.float32(0.5)))
        _, _, unit = only_attention(proto, tmp_path)
        assert isinstance(unit.qk, Skip)
        assert "is changed by Mul between its projection and the product" in unit.qk.reason


class TestScale:
    @pytest.mark.parametrize("scale", SCALES)
    def test_number_and_where_it_is_computed(self, scale: str, tmp_path: Path) -> None:
        """Trap 1: one number, whether stored or computed, before the product, behind it or on both sides."""
        d = 6
        graph, _, unit = only_attention(write_model(Spelling(scale=scale, d_head=d)), tmp_path)
        expected = {"none": 1.0, "both_computed": d**-0.5, "logits_computed": d**-0.5}.get(scale, 0.77 * d**-0.5)
        assert unit.scale == pytest.approx(expected, rel=1e-6)
        assert len(unit.scale_slots) == {"both_computed": 2, "logits_computed": 1}.get(scale, 0)
        for slot in unit.scale_slots:
            assert not graph.is_constant(slot.name)

    def test_computed_scale_is_pinned(self, tmp_path: Path) -> None:
        """Trap 1: narrower queries must not change the number they are divided by."""
        graph, blocks, unit = only_attention(write_model(Spelling(scale="both_computed", d_head=6)), tmp_path)
        path, _ = prune_both(graph, blocks, random_changes(graph, blocks, 2), tmp_path)
        left = onnx.load(path)
        stored = {t.name: numpy_helper.to_array(t) for t in left.graph.initializer}
        pinned = [stored[name] for n in left.graph.node for name in n.input if f"{unit.key}.scale" in name]
        assert [float(p.reshape(-1)[0]) for p in pinned] == pytest.approx([6**-0.25] * 2)
        assert not nodes_of(left.graph, "Shape")

    @pytest.mark.parametrize("name", ["timm_vit_dynamo23_fused", "hf_vit_dynamo23_sdpa", "handmade_attention_3d"])
    def test_default_scale_of_the_operator_is_pinned(self, name: str, tmp_path: Path) -> None:
        """Trap 1: the Attention operator of opset 23 takes the head size it sees."""
        graph, blocks = probed(name)
        path, _ = prune_both(graph, blocks, random_changes(graph, blocks, 2), tmp_path)
        before = [n.attrs.get("scale") for n in graph.nodes if n.op == "Attention"]
        scales = [helper.get_node_attr_value(n, "scale") for n in nodes_of(onnx.load(path).graph, "Attention")]
        assert scales == pytest.approx([unit.d_qk**-0.5 for unit in blocks.attentions])
        assert name.startswith("hf_vit") or None in before or before == pytest.approx(scales)

    def test_scale_stays_computed_where_queries_stay(self, tmp_path: Path) -> None:
        graph, blocks, _ = only_attention(write_model(Spelling(scale="both_computed", qkv="separate")), tmp_path)
        path, oracle = prune_both(graph, blocks, random_changes(graph, blocks, 2, qk=False), tmp_path)
        assert nodes_of(onnx.load(path).graph, "Shape")
        feeds = feeds_of(graph)
        assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]


class TestValuesAlone:
    """Values can be pruned where queries and keys can not: rotary embeddings, q/k norms, a fused MLP beside."""

    @pytest.mark.parametrize("name", ["timm_eva02_ts17_fused", "timm_dinov3_dynamo23", "timm_vit_qknorm_ts17"])
    def test_rest_of_a_fused_projection_stays(self, name: str) -> None:
        _, blocks = probed(name)
        for unit in blocks.attentions:
            assert isinstance(unit.qk, Skip)
            assert isinstance(unit.vo, VoPair)
            assert "q" not in unit.operands
            value = unit.operands["v"]
            kept = sum(o.channel_idx.size for o in rest_of(unit))
            assert kept + value.channel_idx.size == value.linear.d_out

    def test_mlp_in_the_same_product(self) -> None:
        _, blocks = probed("timm_vit_parallel_ts17")
        for unit in blocks.attentions:
            assert isinstance(unit.qk, QkPair)
            assert isinstance(unit.vo, VoPair)
            assert [o.channel_idx.size for o in rest_of(unit)] == [24]

    def test_fused_parts_that_are_read_together(self, tmp_path: Path) -> None:
        proto = write_model(Spelling(qkv="fused"))
        parts = nodes_of(proto.graph, "Transpose")[0].output[0]
        proto.graph.node.append(helper.make_node("ReduceMax", [parts], ["largest"]))
        proto.graph.output.append(onnx.ValueInfoProto(name="largest"))
        _, _, unit = only_attention(proto, tmp_path)
        for skip in (unit.qk, unit.vo):
            assert isinstance(skip, Skip)
            assert re.search("can not be taken apart: ReduceMax .* reads parts of it together", skip.reason)


def read_queries(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("ReduceMax", [logits_product(graph).input[0]], ["largest"]))
    graph.output.append(onnx.ValueInfoProto(name="largest"))


def give_queries_out(graph: onnx.GraphProto) -> None:
    graph.output.append(onnx.ValueInfoProto(name=logits_product(graph).input[0]))


def norm_queries(graph: onnx.GraphProto) -> None:
    put_in(graph, logits_product(graph), 0, "LayerNormalization", store(graph, "ones", np.ones(6, np.float32)), axis=-1)


def rotate_queries(graph: onnx.GraphProto) -> None:
    half = store(graph, "halves", np.array([3, 3]))
    product = logits_product(graph)
    position = next(i for i, n in enumerate(graph.node) if n is product)
    graph.node.insert(position, helper.make_node("Split", [product.input[0], half], ["ra", "rb"], axis=-1))
    graph.node.insert(position + 1, helper.make_node("Concat", ["rb", "ra"], ["rotated"], axis=-1))
    product.input[0] = "rotated"


def learn_queries(graph: onnx.GraphProto) -> None:
    logits_product(graph).input[0] = store(graph, "learnt", np.ones((1, 2, 5, 6), np.float32))


def cap_logits(graph: onnx.GraphProto) -> None:
    put_in(graph, nodes_of(graph, "Softmax")[0], 0, "Tanh")


def gate_values(graph: onnx.GraphProto) -> None:
    last = nodes_of(graph, "Transpose")[-1]
    put_in(graph, last, 0, "Tanh")


def share_projection(graph: onnx.GraphProto) -> None:
    """Keys are the queries' own projection."""
    transposes = [n for n in nodes_of(graph, "Transpose") if list(n.attribute[0].ints) == [0, 1, 3, 2]]
    transposes[0].input[0] = logits_product(graph).input[0]


def ask_queries_for_their_width(graph: onnx.GraphProto) -> None:
    """The head size, from the shape of q, goes into the answer."""
    stream = graph.node[-1].input[0]
    q = logits_product(graph).input[0]
    last = store(graph, "last", np.array([-1]))
    added = [
        helper.make_node("Shape", [q], ["shape"]),
        helper.make_node("Gather", ["shape", last], ["width"]),
        helper.make_node("Cast", ["width"], ["width_float"], to=TensorProto.FLOAT),
        helper.make_node("Add", [stream, "width_float"], ["sum"]),
    ]
    for node in added:
        graph.node.insert(len(graph.node) - 1, node)
    graph.node[-1].input[0] = "sum"


class TestCutsThatWouldBeWrong:
    """Trap 11: each is skipped with what is in the way; the other pair stays prunable where it is not concerned."""

    @pytest.mark.parametrize(
        ("edit", "qk", "vo"),
        [
            (read_queries, "ReduceMax .* reads .* as well, so its width can not change", None),
            (give_queries_out, "is an output of the graph, so its width can not change", None),
            (norm_queries, r"^q is changed by a norm \(LayerNormalization\) between its projection", None),
            (rotate_queries, r"^q is changed by Concat \(a rotary embedding\?\)", None),
            (learn_queries, r"^q is stored or fed and not projected from the tokens \(a learned query\?\)", None),
            (ask_queries_for_their_width, "Add .* reads .* as well, so its width can not change", None),
            (share_projection, "q and k share columns of one projection", None),
            (gate_values, None, "Tanh sits between the values and the output projection"),
        ],
    )
    def test_pair_is_skipped(self, edit: Edit, qk: str | None, vo: str | None, tmp_path: Path) -> None:
        proto = write_model(Spelling(qkv="separate", n_tokens=5, scale="none"))
        edit(proto.graph)
        graph, blocks, unit = only_attention(proto, tmp_path)
        for pair, reason in ((unit.qk, qk), (unit.vo, vo)):
            assert isinstance(pair, Skip) == (reason is not None), pair
            if isinstance(pair, Skip) and reason is not None:
                assert re.search(reason, pair.reason), pair.reason
        prune_and_compare(graph, blocks, tmp_path)  # what is left is right

    def test_capped_logits(self, tmp_path: Path) -> None:
        proto = write_model(Spelling())
        cap_logits(proto.graph)
        _, blocks = find_in(proto, tmp_path)
        assert not blocks.attentions
        assert [s.reason for s in blocks.skipped] == [
            "expected a product of queries and keys behind the softmax, found none"
        ]

    def test_einsum(self, tmp_path: Path) -> None:
        """Exports of JAX and Keras: not known, and said so."""
        proto = write_model(Spelling(scale="logits_mul", mask="add"))
        product = logits_product(proto.graph)
        product.op_type = "Einsum"
        product.attribute.append(helper.make_attribute("equation", "bhnd,bhdm->bhnm"))
        _, blocks = find_in(proto, tmp_path)
        assert not blocks.attentions
        (skip,) = blocks.skipped
        assert (skip.kind, skip.reason) == ("qk", "expected queries and keys to meet in a MatMul, found an Einsum")

    def test_columns_of_the_output_projection(self, tmp_path: Path) -> None:
        """Heads laid out dimension by dimension in front of W_O."""
        proto = write_model(Spelling(qkv="separate"))
        turned = nodes_of(proto.graph, "Transpose")[-1]
        turned.attribute[0].ints[:] = [0, 2, 3, 1]
        _, _, unit = only_attention(proto, tmp_path)
        assert isinstance(unit.vo, Skip)
        assert unit.vo.reason == "expected the heads side by side in front of the output projection"


class TestOperators:
    """Trap 9 and the Attention operator of opset 23: what they hold beyond q, k and v forbids a cut."""

    @pytest.mark.parametrize(
        ("attrs", "reason"),
        [
            ({"softcap": 30.0}, "expected no soft cap on the logits"),
            ({"kv_num_heads": 1}, "expected one key head for each query head, found 2 and 1"),
        ],
    )
    def test_attention_operator(self, attrs: dict[str, object], reason: str, tmp_path: Path) -> None:
        d = 12 if "softcap" in attrs else 6
        graph = self.operator_graph(d, q_num_heads=2, **({"kv_num_heads": 2} | attrs))
        _, blocks = find_in(graph, tmp_path)
        assert not blocks.attentions
        assert [s.reason for s in blocks.skipped if s.kind == "qk"] == [reason]

    def operator_graph(self, d_key: int, **attrs: object) -> onnx.ModelProto:
        rng = np.random.default_rng(0)
        widths = {"q": 12, "k": d_key, "v": d_key}
        stored = [
            numpy_helper.from_array(rng.standard_normal((8, w)).astype(np.float32), f"w{n}") for n, w in widths.items()
        ]
        stored.append(numpy_helper.from_array(rng.standard_normal((12, 8)).astype(np.float32), "wo"))
        nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [n]) for n in widths]
        nodes.append(helper.make_node("Attention", ["q", "k", "v"], ["o"], **attrs))
        nodes.append(helper.make_node("MatMul", ["o", "wo"], ["p"]))
        nodes.append(helper.make_node("Add", ["p", "x"], ["y"]))
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, 8]) for n in "xy"]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)

    def test_plain_operator_is_found(self, tmp_path: Path) -> None:
        graph, blocks = find_in(self.operator_graph(12, q_num_heads=2, kv_num_heads=2), tmp_path)
        assert len(prunable_sites(blocks, "qk")) == len(prunable_sites(blocks, "vo")) == 1
        prune_and_compare(graph, blocks, tmp_path)

    def test_keys_and_values_of_two_widths(self, tmp_path: Path) -> None:
        """MultiHeadAttention wants keys and values [batch, heads, tokens, d] of one width: they are wired in flat."""
        graph, blocks = probed("hf_v4_vit_ts17_eager_ortmmdit")
        assert {len(graph.dims(u.node.inputs[1])) for u in blocks.attentions} == {4}
        changes = random_changes(graph, blocks, 3, mlp=False, vo=False)
        path, oracle = prune_both(graph, blocks, changes, tmp_path)
        feeds = feeds_of(graph)
        assert difference(run(path, feeds), run(oracle, feeds)) < ROUNDING["float32"]

    def test_unequal_widths_that_were_there_before(self) -> None:
        """Trap 9: qkv_hidden_sizes of an operator that was pruned once."""
        _, blocks = probed("handmade_ms_attention")
        assert [(u.d_qk, u.d_v) for u in blocks.attentions] == [(8, 10)]

    def test_biases_inside_the_operator(self) -> None:
        """Trap 9: MultiHeadAttention holds the bias of q, k and v one behind the other."""
        graph, blocks = probed("handmade_ms_mha_bias")
        (unit,) = blocks.attentions
        operands = [*unit.operands.values()]
        assert [o.linear.bias_offset for o in operands] == [0, 20, 40]
        assert all(not o.linear.output_has_bias for o in operands)
        parts = [o.linear.read_bias(graph) for o in operands]
        stored = graph.constant(unit.node.inputs[3])
        assert stored is not None
        assert np.array_equal(np.concatenate([p for p in parts if p is not None]), stored)
