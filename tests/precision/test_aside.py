"""Weights outside of a model become float16 or integers file by file: the same numbers as in a message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import fixture_path

from corp_onnx.errors import CheckFailedError, ModelError, OutputError
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.external import list_locations, load_tensors
from corp_onnx.precision import aside
from corp_onnx.precision.aside import set_aside
from corp_onnx.precision.fp16 import HALVES, convert_to_fp16
from corp_onnx.precision.int8 import INTEGERS, DynamicQuantiser, _quantise_columns
from corp_onnx.precision.products import list_products
from corp_onnx.precision.qdq import IntegerType, choose_scale
from corp_onnx.precision.static import StaticQuantiser
from corp_onnx.run.probe import probe_graph

NAMES = ["timm_vit_ts17_fused", "timm_vit_dynamo18_fused", "timm_siglip_map_ts17", "handmade_ms_mha_bias"]


def save_outside(name: str, folder: Path) -> Graph:
    path = folder / "m.onnx"
    onnx.save(onnx.load(fixture_path(name)), path, save_as_external_data=True, size_threshold=100, location="w")
    return probe_graph(load_model(path))


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_as_from_weights_inside(
    name: str, beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = convert_to_fp16(probe_graph(load_model(fixture_path(name))))
    graph = save_outside(name, tmp_path)
    if beyond:
        monkeypatch.setattr("corp_onnx.graph.model.MAX_PROTO_BYTES", 4000)
    (tmp_path / "work").mkdir()
    found = convert_to_fp16(graph, folder=tmp_path / "work")
    assert list_locations(found.proto) == ((HALVES,) if beyond else ())
    load_tensors(found.proto, tmp_path / "work")
    for tensor in found.proto.graph.initializer:
        tensor.ClearField("data_location")  # the default, spelled out
    assert found.proto.graph == inside.proto.graph
    assert (found.kept, found.n_clipped, found.n_subnormal, found.n_stored) == (
        inside.kept, inside.n_clipped, inside.n_subnormal, inside.n_stored,
    )  # fmt: skip


def test_what_is_small_or_no_float_stays(tmp_path: Path) -> None:
    proto = save_outside("timm_vit_ts17_fused", tmp_path).model.proto
    kinds = {t.name: t.data_type for t in proto.graph.initializer if t.external_data}
    small = [t.name for t in proto.graph.initializer if not t.external_data]
    found = set_aside(proto)
    assert found.keys() == {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}
    assert all([*t.dims] == [0] for t in proto.graph.initializer if t.name in found)
    assert small
    assert not found.keys() & {*small}


def test_weights_that_are_gone_are_one_sentence(tmp_path: Path) -> None:
    graph = save_outside("timm_vit_ts17_fused", tmp_path)
    (tmp_path / "w").unlink()
    with pytest.raises(ModelError, match=r"w: no regular file is there, and weight '.*' is stored in it\.$"):
        convert_to_fp16(graph, folder=tmp_path)


def test_a_folder_that_takes_no_file_is_one_sentence(tmp_path: Path) -> None:
    graph = save_outside("timm_vit_ts17_fused", tmp_path)
    with pytest.raises(OutputError, match=rf"^{HALVES}: could not be written to .* \(No such file or directory\)\.$"):
        convert_to_fp16(graph, folder=tmp_path / "none")


class TestIntegers:
    """The same file as from weights inside, byte for byte but for where they lie."""

    @pytest.fixture
    def work(self, tmp_path: Path) -> Path:
        (tmp_path / "work").mkdir()
        return tmp_path / "work"

    @pytest.mark.parametrize("beyond", [False, True])
    @pytest.mark.parametrize("name", [*NAMES, "torchvision_vit_ts17"])
    def test_dynamic(
        self, name: str, beyond: bool, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        graph = save_outside(name, tmp_path)
        products = [p for p in list_products(graph) if not p.reason]
        chosen = [p.node.position for p in products]
        inside = DynamicQuantiser(graph, products, work).quantise(chosen)
        quantiser = DynamicQuantiser(graph, products, work, lean=True)
        assert quantiser._aside
        if beyond:
            monkeypatch.setattr(aside, "LARGE", 1)
        found = quantiser.quantise(chosen)
        assert list_locations(found) == ((INTEGERS,) if beyond else ())
        require_same(found, inside, work)

    def test_what_stays_float_comes_back_whole(self, work: Path, tmp_path: Path) -> None:
        graph = save_outside(NAMES[0], tmp_path)
        products = [p for p in list_products(graph) if not p.reason]
        chosen = [p.node.position for p in products[1:]]
        found, inside = (DynamicQuantiser(graph, products, work, lean=lean).quantise(chosen) for lean in (True, False))
        require_same(found, inside, work)

    @pytest.mark.parametrize("name", ["w", "w_Transposed", "w_Transposed_2"])
    def test_a_gemm_has_its_own_weight_whatever_the_quantiser_calls_it(
        self, name: str, work: Path, tmp_path: Path
    ) -> None:
        """Older ones turn the weight of a Gemm and keep its name; one may leave it in float."""
        weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
        gemm = helper.make_node("Gemm", ["x", "w"], ["y"], name="g", transB=1)
        sides = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [2, 32]) for side in "xy"]
        made = helper.make_graph([gemm], "g", sides[:1], sides[1:], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=100, location="d")
        graph = probe_graph(load_model(tmp_path / "m.onnx"))
        quantiser = DynamicQuantiser(graph, list_products(graph), work, lean=True)
        assert quantiser._rows == {"w": [32, 1]}
        expected, scales = _quantise_columns(weight.T)
        result = onnx.ModelProto()
        for array, of in ((expected[:1], f"{name}_quantized"), (scales[:1], f"{name}_scale")):
            result.graph.initializer.append(numpy_helper.from_array(array, of))
        if name != "w":
            result.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 32), np.float32), name))
        quantiser._put_back(result)
        found = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
        np.testing.assert_array_equal(found[f"{name}_quantized"], expected)
        np.testing.assert_array_equal(found[f"{name}_scale"], scales)
        if name != "w":
            np.testing.assert_array_equal(found[name], weight.T)

    def test_a_weight_that_is_no_number_is_one_sentence(self, work: Path, tmp_path: Path) -> None:
        graph = save_outside(NAMES[0], tmp_path)
        products = [p for p in list_products(graph) if not p.reason]
        quantiser = DynamicQuantiser(graph, products, work, lean=True)
        (tmp_path / "w").write_bytes(b"\xff" * (tmp_path / "w").stat().st_size)  # NaN
        with pytest.raises(CheckFailedError, match="ONNX Runtime's quantiser fails on this model"):
            quantiser.quantise([p.node.position for p in products])

    def test_weights_that_are_gone_meanwhile_are_one_sentence(self, work: Path, tmp_path: Path) -> None:
        graph = save_outside(NAMES[0], tmp_path)
        products = [p for p in list_products(graph) if not p.reason]
        quantiser = DynamicQuantiser(graph, products, work, lean=True)
        (tmp_path / "w").unlink()
        with pytest.raises(ModelError, match=r"w: no regular file is there"):
            quantiser.quantise([p.node.position for p in products])
        assert not list(work.glob("int8-*"))

    @pytest.mark.parametrize("kind", ["int8", "uint8"])
    @pytest.mark.parametrize("name", NAMES)
    def test_static(self, name: str, kind: IntegerType, tmp_path: Path) -> None:
        def quantise(graph: Graph) -> onnx.ModelProto:
            products = [p for p in list_products(graph) if not p.reason]
            scales = {p.node.inputs[0]: choose_scale(-1.0, 2.0, kind) for p in products}
            return StaticQuantiser(graph, products, scales).quantise([p.node.position for p in products])

        inside = quantise(probe_graph(load_model(fixture_path(name))))
        require_same(quantise(save_outside(name, tmp_path)), inside, tmp_path)


def require_same(found: onnx.ModelProto, expected: onnx.ModelProto, folder: Path) -> None:
    for proto in (found, expected):
        load_tensors(proto, folder)
        for tensor in proto.graph.initializer:
            tensor.ClearField("data_location")  # the default, spelled out
    stored = [{t.name: numpy_helper.to_array(t) for t in proto.graph.initializer} for proto in (found, expected)]
    assert list(stored[0]) == list(stored[1])
    for name, array in stored[0].items():
        assert array.dtype == stored[1][name].dtype
        np.testing.assert_array_equal(array, stored[1][name])
    assert found.graph.node == expected.graph.node
