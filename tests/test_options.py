"""Options by name, as the functions of the package take them: the same refusals as on the command line."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from samples import OPERATOR, fixture_path, write_photos

import corp_onnx
from corp_onnx.errors import OptionError
from corp_onnx.latency.turns import Schedule, choose_schedule
from corp_onnx.options import choose_settings, fill_settings, names_no_size
from corp_onnx.precision.conversion import ConvertSettings, choose_conversion
from corp_onnx.settings import BEST, METHODS, PAPER, Budget, Fractions, Method, Preprocessing, PruneSettings, Threshold
from corp_onnx.zoo.export import ExportSettings


class TestPrune:
    @pytest.mark.parametrize(
        ("options", "method"),
        [
            ({}, BEST),
            ({"preset": "paper"}, PAPER),
            ({"macs": 0.6}, replace(BEST, widths=Budget("macs", 0.6))),
            ({"params": 0.6, "allocate": "uniform"}, replace(BEST, widths=Budget("params", 0.6, "uniform"))),
            ({"min_agreement": 0.9}, replace(BEST, widths=Budget("agreement", 0.9))),
            ({"mlp": 0.3, "preset": "paper"}, replace(PAPER, widths=Fractions(0.3, 0.0))),
            ({"allocate": "amp", "amp_threshold": 0.1}, replace(BEST, units=("mlp",), widths=Threshold(0.1))),
            ({"macs": None, "refit": False, "merge": "none"}, replace(BEST, refit=False, merge="none")),
            ({"units": "mlp, qk"}, replace(BEST, units=("mlp", "qk"))),
            ({"units": ["vo"], "merge_blocks": [1, 2]}, replace(BEST, units=("vo",), merge_blocks=(1, 2))),
        ],
    )  # fmt: skip
    def test_the_method(self, options: dict[str, Any], method: Method) -> None:
        assert choose_settings(**options) == PruneSettings(method)

    def test_the_run_and_the_preprocessing(self) -> None:
        found = choose_settings(n_images=9, batch_size=2, seed=4, provider="cuda", mean=[0.5, 0.4, 0.3], resize=9)
        changes = Preprocessing(resize=9, mean=(0.5, 0.4, 0.3))
        assert found == PruneSettings(BEST, 9, 2, 4, "cuda", preprocessing=changes)

    def test_every_field_has_its_name(self) -> None:
        for kind, besides in ((Method, {"widths"}), (PruneSettings, {"method", "preprocessing"})):
            for f in fields(kind):
                value = getattr(kind(), f.name)
                if f.name not in besides and value is not None:
                    assert choose_settings(**{f.name: value}) == PruneSettings()

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"mac": 0.6}, "there is no option 'mac'; did you mean macs"),
            ({"min_agrement": 0.6}, "did you mean min_agreement"),
            ({"xyzxyz": 1}, "there is no option 'xyzxyz'; known are preset, min_agreement, min_similarity, macs,"),
            ({"preset": "fast"}, "--preset must be best or paper; found fast"),
            ({"macs": 0.5, "params": 0.5}, "--params, --speedup and --latency exclude each other"),
            ({"macs": 0.5, "mlp": 0.5}, "--mlp and --attn fix the widths and a budget searches them"),
            ({"macs": 0.5, "preset": "paper"}, "the paper's method takes fractions"),
            ({"allocate": "amp", "macs": 0.5}, "--allocate amp takes widths from --amp-threshold alone"),
            ({"amp_threshold": 0.1}, "--amp-threshold goes with --allocate amp"),
            ({"rank": "obs", "preset": "paper"}, "--rank obs is not in the paper"),
            ({"params": 0.5, "merge_metric": "keys"}, "tokens merge under a budget of MACs or a promise"),
            ({"macs": 1.5}, "--macs is a fraction and must lie between 0 and 1; found 1.5"),
        ],
    )  # fmt: skip
    def test_refusals(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence):
            choose_settings(**options)

    def test_settings_and_names_exclude_each_other(self) -> None:
        with pytest.raises(OptionError, match=r"as one value and also by name \(macs, seed\); give one or the other"):
            choose_settings(PruneSettings(), macs=0.5, seed=1)
        assert choose_settings(PruneSettings(PAPER), macs=None) == PruneSettings(PAPER)

    @pytest.mark.parametrize("preset", METHODS)
    def test_whether_a_size_is_named(self, preset: str) -> None:
        assert names_no_size({"preset": preset, "seed": 1}) == (preset == "best")
        assert not names_no_size({"preset": preset, "macs": 0.5})
        assert not names_no_size({"allocate": "amp"})


class TestOthers:
    @pytest.mark.parametrize(
        ("options", "settings"),
        [
            ({"fp16": True}, ConvertSettings("fp16")),
            ({"int8": "static", "limit": 9}, ConvertSettings("int8-static", limit=9)),
            ({"int8": "static", "fp16": True}, ConvertSettings("int8-static", rest="float16")),
            (
                {"int8": "static", "activations": "uint8", "calibrator": "minmax"},
                ConvertSettings("int8-static", activations="uint8", calibrator="minmax"),
            ),
            ({"target": "int8-dynamic"}, ConvertSettings("int8-dynamic")),
            ({"int8": "dynamic", "resize": 9}, ConvertSettings("int8-dynamic", preprocessing=Preprocessing(resize=9))),
        ],
    )
    def test_a_conversion(self, options: dict[str, Any], settings: ConvertSettings) -> None:
        assert choose_conversion(**options) == settings
        assert choose_conversion(settings) == settings

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({}, "give --fp16, --int8 dynamic|static, or --int8 static with --fp16; found neither"),
            ({"fp16": True, "int8": "dynamic"}, "--fp16 beside --int8 goes with --int8 static; --int8 dynamic leaves"),
            (
                {"int8": "dynamic", "calibrator": "minmax"},
                "--activations and --calibrator go with --int8 static, whose",
            ),
            (
                {"fp16": True, "activations": "uint8"},
                "--activations and --calibrator go with --int8 static, whose scales",
            ),
            ({"int8": "static", "calibrator": "best"}, "calibrator must be percentile or minmax; found best"),
            ({"int8": "static", "activations": "int4"}, "activations must be int8 or uint8; found int4"),
            ({"int8": "static", "rest": "float64"}, "rest must be float32 or float16; found float64"),
            ({"int8": "static", "io": "float16"}, "--io float16 goes with --fp16; a quantised model takes and gives"),
            ({"int8": "fast"}, "--int8 must be dynamic or static; found fast"),
            ({"int8": "static", "target": "fp16"}, "target is given and also --fp16 or --int8"),
            ({"int9": "static"}, "there is no option 'int9'; did you mean int8"),
        ],
    )
    def test_a_conversion_refused(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence.replace("|", r"\|")):
            choose_conversion(**options)

    def test_a_schedule(self) -> None:
        assert choose_schedule(repeats=5, seed=2) == Schedule(repeats=5, seed=2)
        assert choose_schedule(seconds=None) == Schedule()
        with pytest.raises(OptionError, match="--repeats and --seconds both say how long to measure"):
            choose_schedule(repeats=5, seconds=1.0)

    def test_fields_by_name_and_paths_as_text(self, tmp_path: Path) -> None:
        weights = tmp_path / "w.pth"
        weights.touch()
        found = fill_settings(ExportSettings, None, {"checkpoint": str(weights), "opset": 20})
        assert found == ExportSettings(opset=20, checkpoint=weights)
        with pytest.raises(OptionError, match="there is no option 'opsat'; did you mean opset"):
            fill_settings(ExportSettings, None, {"opsat": 20})

    @pytest.mark.parametrize(
        "call",
        [
            lambda: corp_onnx.bench_models(["m.onnx"], repeat=3),
            lambda: corp_onnx.convert_model("m.onnx", int9="static"),
            lambda: corp_onnx.prune_model("m.onnx", "photos", mac=0.6),
            lambda: corp_onnx.build_engine("m.onnx", minimom=3),
            lambda: corp_onnx.export_model("deit", opsat=18),
            lambda: corp_onnx.write_triton_repository(["m.onnx"], "r", backand="python"),
        ],
    )
    def test_every_function_knows_its_names(self, call: Any) -> None:
        with pytest.raises(OptionError, match=r"there is no option '.*'; did you mean"):
            call()


def test_by_name_all_the_way(tmp_path: Path) -> None:
    """A path of images for every function that takes images."""
    photos = write_photos(tmp_path / "photos" / "a", 16).parent
    model, small = fixture_path(OPERATOR), tmp_path / "small.onnx"
    result = corp_onnx.prune_model(model, photos, small, macs=0.7, align=2, merge="none", refit=False)
    assert 0.6 < result.kept_macs <= 0.7
    assert result.settings["method"]["widths"] == {"kind": "macs", "value": 0.7, "allocate": "search"}
    evaluation = corp_onnx.evaluate_models([small], str(photos), reference=model)
    assert evaluation.n_images == 16
    eight = corp_onnx.convert_model(small, tmp_path / "eight.onnx", int8="static", calib=photos, limit=8)
    assert eight.n_calibration == 6
