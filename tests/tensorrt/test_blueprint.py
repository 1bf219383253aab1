"""What an engine is to be built from and for, before TensorRT: batches, shapes, precision."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import onnx
import pytest
from samples import FIXED, OPERATOR, TEXT, fixture_path

from corp_onnx.errors import ModelError, OptionError
from corp_onnx.tensorrt.blueprint import EngineSettings, Shapes, choose_flags, plan_shapes, read_source

FLAGS = ("FP16", "INT8")


class TestBatches:
    @pytest.mark.parametrize(
        ("given", "batches"),
        [
            ((None, None, None), (1, 8, 32)),
            ((2, None, None), (2, 8, 32)),
            ((16, None, None), (16, 16, 32)),
            ((64, None, None), (64, 64, 64)),
            ((None, 3, None), (1, 3, 32)),
            ((None, 100, None), (1, 100, 100)),
            ((None, None, 4), (1, 4, 4)),
            ((2, 2, 2), (2, 2, 2)),
        ],
    )
    def test_what_is_not_given_gives_way(
        self, given: tuple[int | None, int | None, int | None], batches: tuple[int, int, int]
    ) -> None:
        assert EngineSettings(*given).batches == batches

    @pytest.mark.parametrize(
        ("given", "found"), [((4, 2, 8), "4, 2, 8"), ((1, 9, 8), "1, 9, 8"), ((9, None, 8), "9, 8, 8")]
    )
    def test_they_must_not_decrease(self, given: tuple[int, int, int], found: str) -> None:
        with pytest.raises(OptionError, match=f"must not decrease from --min over --opt to --max; found {found}"):
            EngineSettings(*given)

    @pytest.mark.parametrize(("name", "option"), [("minimum", "min"), ("maximum", "max"), ("workspace", "workspace")])
    def test_nothing_below_one(self, name: str, option: str) -> None:
        with pytest.raises(OptionError, match=f"--{option} must be at least 1; found 0"):
            EngineSettings(**{name: 0})


class TestGpus:
    @pytest.mark.parametrize(("gpus", "found"), [(("SM86", "SM86"), "SM86,SM86"), (("SM86", ""), "SM86,"), (("",), "")])
    def test_each_once(self, gpus: tuple[str, ...], found: str) -> None:
        with pytest.raises(OptionError, match=rf"--gpu names each GPU once, as SM86,SM120; found {found}\.$"):
            EngineSettings(gpus=gpus)


class TestShapes:
    def test_a_dynamic_batch(self) -> None:
        source = read_source(fixture_path(OPERATOR))
        (name,) = source.inputs
        shapes = plan_shapes(source, EngineSettings(2, 4, 6))
        assert shapes == (Shapes(name, (2, 3, 8, 8), (4, 3, 8, 8), (6, 3, 8, 8)),)

    def test_a_fixed_batch_has_none(self) -> None:
        assert plan_shapes(read_source(fixture_path(FIXED)), EngineSettings()) == ()

    def test_batches_for_a_fixed_batch_are_refused(self) -> None:
        with pytest.raises(OptionError, match="has a fixed batch of 1; leave --min, --opt and --max out"):
            plan_shapes(read_source(fixture_path(FIXED)), EngineSettings(maximum=8))

    def test_several_inputs_with_another_dynamic_axis(self) -> None:
        """The length of a text: the one that the model runs with."""
        source = read_source(fixture_path(TEXT))
        shapes = plan_shapes(source, EngineSettings(1, 2, 3))
        assert [s.name for s in shapes] == list(source.inputs)
        assert len(shapes) == 3
        for one in shapes:
            assert [s[0] for s in (one.minimum, one.optimum, one.maximum)] == [1, 2, 3]
            assert one.minimum[1] == one.maximum[1] > 0

    def test_a_stored_weight_that_is_an_input_as_well_is_none(self) -> None:
        source = read_source(fixture_path("timm_vit_ts17_inputs"))
        assert len(source.inputs) == 1


class TestPrecision:
    @pytest.mark.parametrize(
        ("name", "precision"),
        [(OPERATOR, "float32"), ("timm_vit_ts17_fp16", "float16"), ("timm_vit_ts17_qdq", "int8 and float32")],
    )
    def test_of_the_file(self, name: str, precision: str) -> None:
        assert read_source(fixture_path(name)).precision == precision

    @pytest.mark.parametrize("offered", [FLAGS, ()])
    def test_nothing_asked_is_the_precision_of_the_file(self, offered: tuple[str, ...]) -> None:
        assert choose_flags(read_source(fixture_path(OPERATOR)), EngineSettings(), offered, "TensorRT") == ()

    def test_flags_where_the_builder_has_them(self) -> None:
        source = read_source(fixture_path("timm_vit_ts17_qdq"))
        assert choose_flags(source, EngineSettings(fp16=True), FLAGS, "TensorRT") == ("FP16",)
        assert choose_flags(source, EngineSettings(fp16=True, int8=True), FLAGS, "TensorRT") == FLAGS
        assert choose_flags(source, EngineSettings(int8=True), (), "TensorRT") == ()

    def test_without_flags_half_precision_comes_from_the_file(self) -> None:
        settings = EngineSettings(fp16=True)
        assert choose_flags(read_source(fixture_path("timm_vit_ts17_fp16")), settings, (), "TensorRT") == ()
        path = fixture_path(OPERATOR)
        sentence = f"TensorRT 11 takes the precision from the ONNX file, and {path} is float32; run `corp-onnx convert"
        with pytest.raises(OptionError, match=re.escape(sentence)):
            choose_flags(read_source(path), settings, (), "TensorRT 11")

    @pytest.mark.parametrize("offered", [FLAGS, ()])
    def test_int8_needs_a_file_that_says_where(self, offered: tuple[str, ...]) -> None:
        with pytest.raises(ModelError, match=r"it has no QuantizeLinear\): `corp-onnx convert .* --int8 static`"):
            choose_flags(read_source(fixture_path(OPERATOR)), EngineSettings(int8=True), offered, "TensorRT")


class TestFiles:
    def test_what_can_not_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is a folder"):
            read_source(tmp_path)
        with pytest.raises(ModelError, match="no such file"):
            read_source(tmp_path / "m.onnx")
        (tmp_path / "m.onnx").write_bytes(b"\xff\xfe no model" * 9)
        with pytest.raises(ModelError, match=r"not a readable ONNX file"):
            read_source(tmp_path / "m.onnx")
        onnx.save(onnx.ModelProto(ir_version=8), tmp_path / "empty.onnx")
        with pytest.raises(ModelError, match="has no graph with nodes"):
            read_source(tmp_path / "empty.onnx")

    def test_quantised_for_cpus(self) -> None:
        sentence = r"quantised for CPUs \(it has DynamicQuantizeLinear, MatMulInteger\).*convert --int8 static"
        with pytest.raises(ModelError, match=sentence):
            read_source(fixture_path("timm_vit_ts17_int8dynamic"))

    def test_quantised_for_cpus_and_fused(self, tmp_path: Path) -> None:
        """What ONNX Runtime saves of such a file joins the product and its scale."""
        node = onnx.helper.make_node("MatMulIntegerToFloat", [*"abcd"], ["y"], domain="com.microsoft")
        graph = onnx.helper.make_graph([node], "g", [], [onnx.ValueInfoProto(name="y")])
        onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=r"quantised for CPUs \(it has MatMulIntegerToFloat\)"):
            read_source(tmp_path / "m.onnx")

    def test_a_name_with_another_ending_is_read_as_onnx(self, tmp_path: Path) -> None:
        shutil.copy(fixture_path(OPERATOR), tmp_path / "model.json")
        assert read_source(tmp_path / "model.json").precision == "float32"
