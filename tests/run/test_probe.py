"""One run that tells every shape and hidden number; multiply-accumulates against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import ENTRIES, fixture_path, probed, runs_here
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.errors import InputError, ModelError
from corp_onnx.graph import Graph, Model, load_model, read_graph
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import PROBE_IMAGES, probe_graph

RUN = [n for n in ENTRIES if runs_here(n)]


def probe(
    nodes: list[onnx.NodeProto], dims: list[int | str], folder: Path, element: int = 1, **stored: np.ndarray
) -> Graph:
    value = helper.make_tensor_value_info("x", element, dims)
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [value], outputs, tensors), opset_imports=domains, ir_version=8
    )
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return probe_graph(load_model(path))


@pytest.mark.parametrize("name", RUN[::6])
def test_shapes_are_those_that_onnx_infers(name: str) -> None:
    """Where inference knows a dimension, the run found the same one."""
    graph, _ = probed(name)
    inferred = onnx.shape_inference.infer_shapes(graph.model.proto, data_prop=True)
    n_known = 0
    for value in inferred.graph.value_info:
        if value.name not in graph.producers:
            continue  # exporters describe initializers as well, and tensors that are gone
        dims = value.type.tensor_type.shape.dim
        found = graph.shapes[value.name]
        assert not dims or len(dims) == len(found)
        for declared, size in zip(dims, found, strict=False):
            if declared.HasField("dim_value"):
                n_known += 1
                assert declared.dim_value == size
    assert n_known > (0 if "com.microsoft" in ENTRIES[name]["domains"] else 20)


@pytest.mark.parametrize("name", RUN)
def test_every_tensor_is_known(name: str) -> None:
    graph, _ = probed(name)
    outputs = {out for n in graph.nodes for out in n.outputs if out}
    assert outputs <= graph.shapes.keys()
    typed = {out for out in outputs if out in graph.types}
    assert len(typed) >= 0.98 * len(outputs), sorted(outputs - typed)


def test_batch_of_the_run() -> None:
    """Trap 8: two where it is dynamic, what is declared where it is not."""
    for name, expected in (("timm_vit_ts17_fused", PROBE_IMAGES), ("timm_vit_ts17_fused_fixed", 1)):
        graph, _ = probed(name)
        assert graph.n_images == expected
        assert graph.fixed_batch == (expected == 1)
        assert graph.shapes["logits"][0] == expected


def test_hidden_numbers() -> None:
    """Traps 1 and 7: head sizes in Reshape targets, and a scale that is a square root of a shape."""
    graph, blocks = probed("timm_vit_ts17_fused")
    unit = blocks.attentions[0]
    slot = unit.scale_slots[0]
    value = graph.value(slot.name)
    assert value is not None
    assert float(value.reshape(-1)[0]) == pytest.approx(unit.d_qk**-0.25)
    targets = [graph.value(n.inputs[1]) for n in unit.operands["q"].path if n.op == "Reshape"]
    assert [t.tolist() for t in targets if t is not None] == [[2, 17, 3, unit.n_heads, unit.d_qk]]


def test_types_behind_foreign_operators() -> None:
    """Trap 9: ONNX infers nothing behind com.microsoft's operators; segments of the graph need the types."""
    graph, _ = probed("hf_bert_ts17_eager_ortbert")
    foreign = [n for n in graph.nodes if n.domain == "com.microsoft"]
    assert len(foreign) > 5
    assert all(graph.types[n.output] == TensorProto.FLOAT for n in foreign)
    graph, _ = probed("timm_vit_ts17_bf16")
    assert TensorProto.BFLOAT16 in graph.types.values()


def test_size_that_is_dynamic_by_name_only(tmp_path: Path) -> None:
    """Exports of optimum declare height and width dynamic, and the position embedding fixes them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["patches"], strides=[16, 16]),
        helper.make_node("Add", ["patches", "position"], ["y"]),
    ]
    weight, position = np.ones((4, 3, 16, 16), np.float32), np.ones((1, 4, 24, 24), np.float32)
    graph = probe(nodes, ["b", 3, "h", "w"], tmp_path, w=weight, position=position)
    assert graph.shapes["x"] == (2, 3, 384, 384)
    with pytest.raises(ModelError, match=r"failed while running it \(.*\)\. It was fed noise: x \(2, 3, 224, 224\)\.$"):
        probe(nodes, ["b", 3, "h", "w"], tmp_path, w=weight, position=np.ones((1, 4, 25, 24), np.float32))


def test_tokens_that_are_dynamic_by_name_only(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "position"], ["y"])]
    graph = probe(nodes, ["b", "n", 4], tmp_path, position=np.ones((1, 77, 4), np.float32))
    assert graph.shapes["y"] == (2, 77, 4)


def test_input_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="input 'x' is not a tensor of numbers"):
        probe([helper.make_node("Identity", ["x"], ["y"])], ["b"], tmp_path, element=TensorProto.STRING)


def test_declared_sizes_are_kept() -> None:
    for name in ("timm_vit_ts17_fused", "hf_bert_ts17_eager"):
        graph, _ = probed(name)
        feeds = random_feeds(graph.model, 3, n_tokens=5)
        for value in graph.model.proto.graph.input:
            declared = [d.dim_value or None for d in value.type.tensor_type.shape.dim]
            expected = [declared[0] or 3, *(d or 5 for d in declared[1:])]
            assert list(feeds[value.name].shape) == expected
            assert feeds[value.name].dtype == helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


class TestMacs:
    def test_products_by_hand(self, tmp_path: Path) -> None:
        """One image: a Conv, a Gemm, a MatMul; two images in the run."""
        nodes = [
            helper.make_node("Conv", ["x", "k"], ["c"], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["h"], transB=1),
            helper.make_node("MatMul", ["h", "m"], ["y"]),
        ]
        graph = probe(
            nodes, ["b", 3, 8, 8], tmp_path,
            k=np.ones((5, 3, 2, 2), np.float32), g=np.ones((7, 5), np.float32), m=np.ones((7, 2), np.float32),
        )  # fmt: skip
        cost = graph.cost
        assert cost.by_node == {"c": 5 * 4 * 4 * 3 * 2 * 2, "h": 5 * 7, "y": 7 * 2}
        assert cost.total == 960 + 35 + 14

    @pytest.mark.parametrize("name", [n for n in RUN if n.startswith(("timm_vit_ts", "timm_vit_dynamo", "hf_vit"))])
    def test_a_whole_model_by_hand(self, name: str) -> None:
        """Every exporter's graph of one model costs the same."""
        graph, _ = probed(name)
        e = ENTRIES[name]["expect"]
        n, d, h, w, hidden = e["n_tokens"], e["d_model"], e["n_heads"], e["d_head"], e["d_hidden"]
        side = graph.shapes[graph.inputs[0]][-1]
        conv = next(n for n in graph.nodes if n.op in ("Conv", "FusedConv"))
        patches = int(np.prod(graph.dims(conv.inputs[1]))) * (n - 1)
        block = 4 * n * d * h * w + 2 * n * n * h * w + 2 * n * d * hidden
        assert side in (8, 16)
        assert graph.cost.total == patches + e["n_blocks"] * block + d * 10

    def test_fused_operators_cost_what_their_parts_cost(self) -> None:
        """Trap 9: Attention with its projections inside, and MultiHeadAttention."""
        whole = probed("hf_bert_ts17_eager")[0].cost.total
        assert whole > 0
        assert probed("hf_bert_ts17_eager_ortbert")[0].cost.total == whole
        assert probed("hf_bert_ts17_eager_ortbertmha")[0].cost.total == whole

    @pytest.mark.parametrize(
        ("op", "shapes", "attrs", "expected"),
        [
            ("FusedMatMul", ((2, 5, 3), (2, 5, 7)), {"transA": 1}, 3 * 7 * 5),
            ("MatMulNBits", ((2, 5, 32), (7, 1, 16), (7,)), {"K": 32, "N": 7, "bits": 4}, 5 * 32 * 7),
            ("QLinearMatMul", ((2, 5, 3), (), (), (3, 7)), {}, 5 * 3 * 7),
            ("QGemm", ((2, 3), (), (), (7, 3)), {"transB": 1}, 3 * 7),
            ("ConvTranspose", ((2, 6, 4, 4), (6, 5, 2, 2)), {"strides": [2, 2]}, 6 * 4 * 4 * 5 * 2 * 2),
            ("ConvTranspose", ((2, 6, 4, 4), (6, 5, 2, 2)), {"group": 2}, 6 * 4 * 4 * 5 * 2 * 2),
            ("QLinearConv", ((2, 3, 8, 8), (), (), (5, 3, 2, 2)), {}, 5 * 4 * 4 * 3 * 2 * 2),
            ("QAttention", ((2, 5, 6), (6, 18), (18,)), {"num_heads": 2}, 5 * 6 * 18 + 2 * 5 * 5 * 6),
        ],
    )
    def test_operators_of_quantised_files_by_hand(
        self, op: str, shapes: tuple[tuple[int, ...], ...], attrs: dict[str, int], expected: int
    ) -> None:
        """Integers multiply as floats do; which input is the factor differs."""
        names = [f"x{i}" for i in range(len(shapes))]
        out = {"FusedMatMul": (2, 3, 7), "QGemm": (2, 7), "QLinearConv": (2, 5, 4, 4), "QAttention": (2, 5, 6)}
        node = helper.make_node(op, names, ["y"], **attrs)
        proto = helper.make_model(helper.make_graph([node], "one", [], [onnx.ValueInfoProto(name="y")]))
        known = dict(zip(names, shapes, strict=True)) | {"y": out.get(op, (2, 5, 7))}
        graph = replace(read_graph(Model(proto, Path("m.onnx"), "")), shapes=known, n_images=2)
        assert graph.cost.by_node == {"y": expected}


def test_type_of_what_compares_and_counts_behind_a_foreign_operator(tmp_path: Path) -> None:
    """ONNX infers none of these types there."""
    nodes = [
        helper.make_node("QuickGelu", ["x"], ["g"], domain="com.microsoft"),
        helper.make_node("IsInf", ["g"], ["infinite"]),
        helper.make_node("LessOrEqual", ["g", "g"], ["ordered"]),
        helper.make_node("Xor", ["infinite", "ordered"], ["either"]),
        helper.make_node("ArgMax", ["g"], ["best"], axis=1),
        helper.make_node("Where", ["either", "g", "g"], ["y"]),
    ]
    graph = probe(nodes, ["b", 4], tmp_path)
    assert [graph.types[t] for t in ("infinite", "ordered", "either")] == [TensorProto.BOOL] * 3
    assert (graph.types["best"], graph.types["y"]) == (TensorProto.INT64, TensorProto.FLOAT)


def test_file_that_loads_and_does_not_run() -> None:
    with pytest.raises(
        ModelError, match=r"packed\.onnx: ONNX Runtime failed while running it .* fed noise: x \(2, 16, 20\)\.$"
    ):
        probe_graph(load_model(fixture_path("handmade_ms_mha_packed")))
