"""Layers by block, with layers made up from the nodes of a file; real engines are in test_rtx.py."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from samples import COMPUTED_SCALE, fixture_path

from corp_onnx.tensorrt.blueprint import read_source
from corp_onnx.tensorrt.explain import PartLayers, explain_layers, find_broken_rules
from corp_onnx.tensorrt.layers import EngineLayer


def layer(*origins: str, name: str = "kernel", kind: str = "kgen", types: tuple[str, ...] = ("Half",)) -> EngineLayer:
    return EngineLayer(name, kind, "", types, origins)


def layers_of(path: Path) -> list[EngineLayer]:
    """One kernel a node, as an engine that fuses nothing would have."""
    return [layer(node.name, name=node.op_type) for node in onnx.load(path).graph.node]


class TestBlocks:
    def test_a_kernel_a_node(self) -> None:
        path = fixture_path(COMPUTED_SCALE)
        found = explain_layers(read_source(path), layers_of(path))
        assert [part.part for part in found.parts] == ["before", "blocks.0", "blocks.1", "behind"]
        assert sum(part.kernels for part in found.parts) == found.kernels == len(layers_of(path))
        assert [part.attention for part in found.parts] == ["-", "apart", "apart", "-"]
        assert [part.is_block for part in found.parts] == [False, True, True, False]
        assert found.parts[1].kernels == found.parts[2].kernels
        assert (found.fused, found.attentions, found.note) == (0, 2, "")

    def test_a_file_that_quantises(self) -> None:
        path = fixture_path("timm_vit_ts17_qdq")
        found = explain_layers(read_source(path), layers_of(path))
        assert [part.part for part in found.parts] == ["before", "blocks.0", "behind"]
        assert [part.widths for part in found.parts] == [None, (10, 10), None]

    def test_what_a_block_holds(self) -> None:
        path = fixture_path(COMPUTED_SCALE)
        softmaxes = [n.name for n in onnx.load(path).graph.node if n.op_type == "Softmax"]
        products = [n.name for n in onnx.load(path).graph.node if n.op_type == "MatMul"]
        made = [
            layer(softmaxes[0], products[0], name="_gemm_mha_v2"),
            layer(name="__myl_ReplConc", types=("Float", "Int32")),  # names nothing: stands behind the one before
            layer(products[1], kind="gemm", types=("Int8", "Half")),
            layer(softmaxes[1], name="__myl_Softmax"),
            layer(softmaxes[1], kind="shape_call"),
        ]
        found = explain_layers(read_source(path), made)
        first, second = (part for part in found.parts if part.is_block)
        assert first == PartLayers(
            "blocks.0", "fused", (16, 16), 3, 1, 1, ("float16", "float32", "int8"), ""
        )  # fmt: skip
        assert (second.attention, second.kernels, second.paddings) == ("apart", 1, 0)
        assert found.kinds == {"kgen": 3, "gemm": 1}
        assert (found.kernels, found.fused, found.attentions, found.paddings) == (4, 1, 2, 1)

    def test_most_of_its_nodes_say_where_a_kernel_belongs(self) -> None:
        """The last product of a block and the normalisation of the next are one kernel in many engines."""
        path = fixture_path(COMPUTED_SCALE)
        graph = onnx.load(path).graph
        norms = [n.name for n in graph.node if n.op_type == "LayerNormalization"]
        adds = [n.name for n in graph.node if n.op_type == "Add"]
        last = max((a for a in adds if "blocks.0" in a), key=adds.index)
        found = explain_layers(read_source(path), [layer(last, norms[2]), layer(norms[2], norms[3], last)])
        assert [part.kernels for part in found.parts] == [1, 1]

    def test_nodes_without_a_name_are_called_by_their_output(self, tmp_path: Path) -> None:
        proto = onnx.load(fixture_path(COMPUTED_SCALE))
        for node in proto.graph.node:
            node.name = ""
        onnx.save(proto, tmp_path / "m.onnx")
        made = [layer(f"node_of_{node.output[0]}") for node in proto.graph.node]
        parts = explain_layers(read_source(tmp_path / "m.onnx"), made).parts
        named = explain_layers(read_source(fixture_path(COMPUTED_SCALE)), layers_of(fixture_path(COMPUTED_SCALE))).parts
        assert [p.kernels for p in parts] == [p.kernels for p in named]

    def test_no_blocks(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        values = [onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xy"]
        proto = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", values[:1], values[1:]),
            opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
        )  # fmt: skip
        onnx.save(proto, tmp_path / "m.onnx")
        found = explain_layers(read_source(tmp_path / "m.onnx"), [layer()])
        assert (found.kernels, found.parts) == (1, ())
        assert found.note == "its blocks were not found: nothing in it looks like one"

    def test_a_model_that_does_not_run(self, tmp_path: Path) -> None:
        node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
        values = [onnx.helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xy"]
        onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:])), tmp_path / "m.onnx"
        )
        found = explain_layers(read_source(tmp_path / "m.onnx"), [layer()])
        assert found.note.startswith(f"its blocks were not found: {tmp_path / 'm.onnx'}: ")


class TestRules:
    @pytest.mark.parametrize(
        ("widths", "is_half", "rules"),
        [
            ((64, 64), False, ["it needs float16"]),
            ((32, 64), True, ["q and k are 32 wide and v 64, it needs equal widths"]),
            ((8, 8), True, ["it needs widths of 9 to 256"]),
            ((264, 264), True, ["it needs widths of 9 to 256"]),
            ((64, 64), True, ["it breaks no rule that is known here"]),
            ((8, 16), False, ["it needs float16", "q and k are 8 wide and v 16, it needs equal widths",
                              "it needs widths of 9 to 256"]),
        ],
    )  # fmt: skip
    def test_not_fused(self, widths: tuple[int, int], is_half: bool, rules: list[str]) -> None:
        assert find_broken_rules(widths, is_half=is_half, is_fused=False) == "; ".join(rules)

    def test_fused(self) -> None:
        assert find_broken_rules((24, 24), is_half=True, is_fused=True) == ""
        sentence = "width 33 is no multiple of 8: copied into a wider tensor"
        assert find_broken_rules((33, 33), is_half=True, is_fused=True) == sentence
