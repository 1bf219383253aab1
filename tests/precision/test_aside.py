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
from corp_onnx.graph.external import list_locations, load_tensor, load_tensors
from corp_onnx.precision import aside
from corp_onnx.precision.aside import set_aside
from corp_onnx.precision.fp16 import HALVES, convert_to_fp16
from corp_onnx.precision.int8 import INTEGERS, DynamicQuantiser, _quantise_columns
from corp_onnx.precision.products import Product, list_products
from corp_onnx.precision.qdq import IntegerType, choose_scale
from corp_onnx.precision.static import StaticQuantiser
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import start_session

NAMES = ["timm_vit_ts17_fused", "timm_vit_dynamo18_fused", "timm_siglip_map_ts17", "handmade_ms_mha_bias"]


def of_fixture(name: str) -> Graph:
    return probe_graph(load_model(fixture_path(name)))


def make_quantiser(
    graph: Graph, work: Path, *, static: bool
) -> tuple[Graph, DynamicQuantiser | StaticQuantiser, list[Product]]:
    products = [p for p in list_products(graph) if not p.reason]
    if not static:
        return graph, DynamicQuantiser(graph, products, work), products
    scales = {p.node.inputs[0]: choose_scale(-1.0, 2.0, "uint8") for p in products}
    return graph, StaticQuantiser(graph, products, scales), products


def save_outside(name: str, folder: Path) -> Graph:
    path = folder / "m.onnx"
    onnx.save(onnx.load(fixture_path(name)), path, save_as_external_data=True, size_threshold=100, location="w")
    return probe_graph(load_model(path))


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_as_from_weights_inside(
    name: str, beyond: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = convert_to_fp16(of_fixture(name))
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
        inside = DynamicQuantiser(of_fixture(name), products, work).quantise(chosen)
        quantiser = DynamicQuantiser(graph, products, work)
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
        found, inside = (DynamicQuantiser(at, products, work).quantise(chosen) for at in (graph, of_fixture(NAMES[0])))
        require_same(found, inside, work)

    @pytest.mark.parametrize("static", [False, True])
    @pytest.mark.parametrize("name", [*NAMES, "torchvision_vit_ts17"])
    def test_float_stays_where_it_is_to_be_asked_once(
        self, name: str, static: bool, work: Path, tmp_path: Path
    ) -> None:
        """The model with one product in integers, from beside the source: the same answers, hardly anything inside."""
        found, inside = (
            make_quantiser(at, work, static=static) for at in (save_outside(name, tmp_path), of_fixture(name))
        )
        graph, position = found[0], found[2][0].node.position
        asked, expected = (q.quantise([position], stays=stays) for (_, q, _), stays in ((found, True), (inside, False)))
        outside = {t.name for t in asked.graph.initializer if t.external_data}
        stay = {p.node.inputs[1] for p in found[2][1:] if static or not p.node.attrs.get("transB")}  # else turned
        assert stay <= outside
        assert {*list_locations(asked)} <= {"w"}
        feeds = random_feeds(graph.model, 2)
        answers = [start_session(proto, graph.model).run(None, feeds) for proto in (asked, expected)]
        for one, other in zip(*answers, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)

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
        quantiser = DynamicQuantiser(graph, list_products(graph), work)
        assert quantiser._rows == {"w": [32, 1]}
        expected, scales = _quantise_columns(weight.T)
        result = onnx.ModelProto()
        for array, of in ((expected[:1], f"{name}_quantized"), (scales[:1], f"{name}_scale")):
            result.graph.initializer.append(numpy_helper.from_array(array, of))
        if name != "w":
            result.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 32), np.float32), name))
        quantiser._put_back(result, tmp_path)
        found = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
        np.testing.assert_array_equal(found[f"{name}_quantized"], expected)
        np.testing.assert_array_equal(found[f"{name}_scale"], scales)
        if name != "w":
            np.testing.assert_array_equal(found[name], weight.T)

    def test_a_weight_that_is_no_number_is_one_sentence(self, work: Path, tmp_path: Path) -> None:
        graph = save_outside(NAMES[0], tmp_path)
        products = [p for p in list_products(graph) if not p.reason]
        quantiser = DynamicQuantiser(graph, products, work)
        (tmp_path / "w").write_bytes(b"\xff" * (tmp_path / "w").stat().st_size)  # NaN
        with pytest.raises(CheckFailedError, match="ONNX Runtime's quantiser fails on this model"):
            quantiser.quantise([p.node.position for p in products])

    def test_weights_that_are_gone_meanwhile_are_one_sentence(self, work: Path, tmp_path: Path) -> None:
        graph = save_outside(NAMES[0], tmp_path)
        products = [p for p in list_products(graph) if not p.reason]
        quantiser = DynamicQuantiser(graph, products, work)
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

        require_same(quantise(save_outside(name, tmp_path)), quantise(of_fixture(name)), tmp_path)

    @pytest.mark.parametrize("name", NAMES)
    def test_static_with_the_rest_in_float16(
        self, name: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No float weight of an integer product comes into the message on the way."""
        (_, inside, products), (_, outside, _) = (
            make_quantiser(at, work, static=True) for at in (of_fixture(name), save_outside(name, tmp_path))
        )
        positions, loaded = [p.node.position for p in products[1:]], set[str]()

        def load(tensor: TensorProto, folder: Path) -> None:
            loaded.add(tensor.name)
            load_tensor(tensor, folder)

        monkeypatch.setattr(aside, "load_tensor", load)
        expected = inside.quantise_half(positions, keep_io=True)
        found = outside.quantise_half(positions, keep_io=True, folder=work)
        assert not loaded & {p.node.inputs[1] for p in products[1:]}
        require_same(found.proto, expected.proto, work)
        assert (found.kept, found.n_clipped, found.n_stored) == (expected.kept, expected.n_clipped, expected.n_stored)


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
