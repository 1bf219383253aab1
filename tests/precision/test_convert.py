"""A conversion as a whole: one file and one result, checked against the source, or one sentence and nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from samples import DEMO, EXTERNAL, FIXED, GUESS, OPERATOR, ROOT, TEXT, fixture_path, listing, paper, write_photos

from corp_onnx.errors import CheckFailedError, ImageError, ModelError, NonFiniteError, OptionError, OutputError
from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import open_images
from corp_onnx.images.recipe import METADATA_KEY
from corp_onnx.precision.checks import TOLERANCES
from corp_onnx.precision.conversion import Target
from corp_onnx.precision.convert import ConvertSettings, convert_model, default_output
from corp_onnx.prune import prune_model
from corp_onnx.results import CheckResult, to_json

FP16, DYNAMIC, STATIC = (ConvertSettings(t) for t in ("fp16", "int8-dynamic", "int8-static"))
VIT = fixture_path(OPERATOR)
DEMO_IMAGES = ROOT / "models" / "calib"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 24)


class TestDemo:
    """The demo model, whose answers on its test images are right 97.5 times in 100."""

    @pytest.mark.long
    def test_dynamic_int8_keeps_the_answers(self, tmp_path: Path) -> None:
        found = convert_model(DEMO, tmp_path / "m.onnx", settings=DYNAMIC, images=DEMO_IMAGES)
        assert found.comparison.agreement is not None
        assert found.comparison.agreement >= 0.97
        assert found.comparison.kl is not None
        assert 0 < found.comparison.kl < 0.02
        assert found.converted.n_bytes < 0.4 * found.source.n_bytes
        assert found.integer_share > 0.8

    @pytest.mark.long
    def test_static_int8_measures_on_held_back_images(self, tmp_path: Path) -> None:
        settings = replace(STATIC, limit=96, keep_float=2)
        found = convert_model(DEMO, tmp_path / "m.onnx", settings=settings, calib=DEMO_IMAGES)
        assert (found.n_calibration, found.comparison.n_images) == (72, 24)
        assert found.comparison.data == str(DEMO_IMAGES)
        assert found.comparison.agreement is not None
        assert found.comparison.agreement >= 0.9
        kept = [k for k in found.kept_products if k.loss is not None]
        assert len(kept) == 2
        losses = [k.loss or 0.0 for k in kept]
        assert min(losses) > 0
        assert found.n_integer == found.n_products - len(found.kept_products)

    @pytest.mark.long
    @pytest.mark.parametrize("options", [{}, {"fp16": True}, {"activations": "uint8"}, {"calibrator": "minmax"}])
    def test_static_forms(self, options: dict[str, Any], tmp_path: Path) -> None:
        """What stays in float in float16 as well; other integers, other scales."""
        found = convert_model(DEMO, tmp_path / "m.onnx", int8="static", calib=DEMO_IMAGES, limit=96, **options)
        assert found.comparison.kl is not None
        assert 0 < found.comparison.kl < 0.01
        proto = onnx.load(tmp_path / "m.onnx")
        kinds = {t.data_type for t in proto.graph.initializer}
        half = "fp16" in options
        assert (TensorProto.FLOAT16 in kinds) == half
        assert (TensorProto.UINT8 in kinds) == ("activations" in options)
        assert found.converted.precision == ("int8 and float16" if half else "int8")
        assert (set(found.kept_ops) == {"LayerNormalization", "Softmax"}) == half
        assert {k.op for k in found.kept_products} == {"Conv", "MatMul"}
        assert found.n_integer == 25

    def test_fp16_is_the_same_model(self, tmp_path: Path) -> None:
        found = convert_model(DEMO, tmp_path / "m.onnx", settings=FP16)
        assert found.comparison.data == "noise"
        assert 0 < found.comparison.max_difference < 5e-3
        assert 0.4 < found.converted.n_bytes / found.source.n_bytes < 0.6
        assert found.kept_ops["Softmax"] == 6


class TestPruned:
    def test_recipe_labels_and_history_are_carried_on(self, photos: Path, tmp_path: Path) -> None:
        """`evaluate` prepares images for the converted file as it does for the pruned one."""
        dense = labelled(tmp_path / "dense.onnx")
        settings = replace(paper(), preprocessing=replace(paper().preprocessing, resize=9, mean=(0.5,) * 3))
        prune_model(dense, photos, tmp_path / "pruned.onnx", settings=settings)
        for target in (FP16, DYNAMIC):
            output = tmp_path / f"{target.target}.onnx"
            convert_model(tmp_path / "pruned.onnx", output, settings=target)
            before, after = metadata_of(tmp_path / "pruned.onnx"), metadata_of(output)
            assert before == after
            assert {METADATA_KEY, "corp_onnx.labels", "corp_onnx.prune"} <= set(after)
            (score,) = evaluate_models([output], open_images(photos), reference=tmp_path / "pruned.onnx").scores
            assert score.recipe is not None
            assert (score.recipe.resize, score.recipe.mean) == (9, (0.5,) * 3)
            assert score.relative_error is not None
            assert score.relative_error < 0.1

    def test_a_recipe_given_here_is_stored(self, photos: Path, tmp_path: Path) -> None:
        settings = replace(STATIC, preprocessing=replace(STATIC.preprocessing, crop_pct=1.0))
        convert_model(VIT, tmp_path / "m.onnx", settings=settings, calib=photos)
        assert json.loads(metadata_of(tmp_path / "m.onnx")[METADATA_KEY])["crop_pct"] == 1.0


class TestKinds:
    @pytest.mark.parametrize("settings", [FP16, DYNAMIC], ids=lambda s: s.target)
    def test_text(self, settings: ConvertSettings, tmp_path: Path) -> None:
        """Three integer inputs: they stay integers."""
        found = convert_model(fixture_path(TEXT), tmp_path / "m.onnx", settings=settings)
        assert found.comparison.max_difference < 0.1
        kinds = [v.type.tensor_type.elem_type for v in onnx.load(tmp_path / "m.onnx").graph.input]
        assert kinds == [TensorProto.INT64] * 3

    @pytest.mark.parametrize("settings", [FP16, DYNAMIC], ids=lambda s: s.target)
    def test_external_weights_move_into_the_file(self, settings: ConvertSettings, tmp_path: Path) -> None:
        found = convert_model(fixture_path(EXTERNAL), tmp_path / "m.onnx", settings=settings)
        assert listing(tmp_path) == ["m.onnx"]
        assert found.converted.n_bytes == (tmp_path / "m.onnx").stat().st_size
        assert found.source.n_bytes > fixture_path(EXTERNAL).stat().st_size

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("target", "keep_float"),
        [("fp16", 0), ("int8-dynamic", 0), ("int8-dynamic", 1), ("int8-static", 0), ("int8-static", 1)],
    )
    def test_weights_beyond_protobuf(
        self, target: Target, keep_float: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trap 8, with a limit of 4 kB in place of 2 GB: one file of weights beside, on the way and at the end."""
        monkeypatch.setattr("corp_onnx.graph.model.MAX_PROTO_BYTES", 4000)
        settings = ConvertSettings(target, keep_float=keep_float)
        calib = photos if keep_float or target == "int8-static" else None
        found = convert_model(fixture_path(EXTERNAL), tmp_path / "m.onnx", settings=settings, calib=calib)
        assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
        assert found.converted.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
        assert found.comparison.max_difference < 0.1
        assert (tmp_path / "m.onnx.data").stat().st_size < 0.6 * fixture_path(EXTERNAL).with_name(
            f"{EXTERNAL}.onnx.data"
        ).stat().st_size

    def test_fixed_batch(self, photos: Path, tmp_path: Path) -> None:
        found = convert_model(fixture_path(FIXED), tmp_path / "m.onnx", settings=STATIC, calib=photos)
        assert found.comparison.n_images == 6
        assert found.comparison.max_difference < 0.2

    @pytest.mark.parametrize("settings", [FP16, DYNAMIC], ids=lambda s: s.target)
    def test_bfloat16(self, settings: ConvertSettings, tmp_path: Path) -> None:
        found = convert_model(fixture_path("timm_vit_ts17_bf16"), tmp_path / "m.onnx", settings=settings)
        assert found.source.precision == "bfloat16"
        assert found.comparison.max_difference < 0.1

    def test_float16_inputs_and_outputs(self, tmp_path: Path) -> None:
        convert_model(VIT, tmp_path / "m.onnx", settings=replace(FP16, io="float16"))
        graph = onnx.load(tmp_path / "m.onnx").graph
        kinds = {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
        assert kinds == {TensorProto.FLOAT16}

    @pytest.mark.long
    def test_twice_gives_the_same_file(self, photos: Path, tmp_path: Path) -> None:
        for settings, calib in ((FP16, None), (DYNAMIC, None), (STATIC, photos)):
            for name in ("a", "b"):
                convert_model(VIT, tmp_path / f"{name}.onnx", settings=settings, calib=calib, force=True)
            assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_result_as_json(self, tmp_path: Path) -> None:
        found = json.loads(to_json(convert_model(VIT, tmp_path / "m.onnx", settings=DYNAMIC)))
        assert found["schema"] == 1
        assert found["converted"]["precision"] == "int8"
        assert [c["name"] for c in found["checks"]] == ["loading", "structure", "signature", "answers"]
        assert {k["op"] for k in found["kept_products"]} == {"Conv", "Attention"}


class TestWarnings:
    def test_a_clipped_weight_fails(self, tmp_path: Path) -> None:
        """A weight beyond float16 is another weight afterwards."""
        spoil(VIT, tmp_path / "dense.onnx", 1e6, 1)
        with pytest.raises(CheckFailedError, match=r"'answers' check: .* \(difference inf, allowed 0\.02\)"):
            convert_model(tmp_path / "dense.onnx", tmp_path / "m.onnx", settings=FP16)
        assert listing(tmp_path) == ["dense.onnx"]

    def test_a_clipped_mask_is_told(self, tmp_path: Path) -> None:
        """-3.4e38 in the mask of a text model."""
        found = convert_model(fixture_path("hf_bert_ts17_eager"), tmp_path / "m.onnx", settings=FP16)
        sentence = "1 stored number lies beyond ±65504, the range of float16, and is clipped to it: harmless in an "
        assert found.warnings == (sentence + "attention mask, not in a weight.",)

    def test_weights_with_few_bits(self, tmp_path: Path) -> None:
        spoil(VIT, tmp_path / "dense.onnx", 1e-6, 400)
        found = convert_model(tmp_path / "dense.onnx", tmp_path / "m.onnx", settings=FP16)
        assert found.n_subnormal >= 400
        assert any("keep fewer than 11 bits in float16" in w for w in found.warnings)

    def test_files_that_are_no_images(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("corp_onnx.precision.processor.has_whole_sums", lambda: True)
        shutil.copytree(photos, tmp_path / "photos")
        (tmp_path / "photos" / "note.txt").write_text("no image")
        found = convert_model(VIT, tmp_path / "m.onnx", settings=STATIC, calib=tmp_path / "photos")
        assert found.warnings == ("1 file gave no image and were left out: note.txt (not an image).", GUESS)
        assert found.recipe_origin == "guessed (ImageNet, 8)"


class TestRefusals:
    @pytest.mark.parametrize("settings", [FP16, DYNAMIC], ids=lambda s: s.target)
    def test_float16_already(self, settings: ConvertSettings, tmp_path: Path) -> None:
        sentence = r"its weights are float16( already)?, and conversion starts from float32 or bfloat16; give the model"
        with pytest.raises(ModelError, match=sentence):
            convert_model(fixture_path("timm_vit_ts17_fp16"), tmp_path / "m.onnx", settings=settings)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize("name", ["timm_vit_ts17_qdq", "timm_vit_ts17_int8dynamic"])
    def test_quantised_already(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="already quantised"):
            convert_model(fixture_path(name), tmp_path / "m.onnx", settings=DYNAMIC)

    def test_nothing_to_quantise(self, tmp_path: Path) -> None:
        shutil.copy(fixture_path("torch_convnet_ts17"), tmp_path / "net.onnx")
        found = convert_model(tmp_path / "net.onnx", tmp_path / "m.onnx", settings=DYNAMIC)
        assert found.n_integer == 1  # its classifier is a product

    @pytest.mark.parametrize(
        ("settings", "calib", "sentence"),
        [
            (STATIC, False, r"--int8 static measures on images: give --calib"),
            (replace(DYNAMIC, keep_float=1), False, r"--keep-float measures on images: give --calib"),
            (DYNAMIC, True, r"--calib is for --int8 static and --keep-float"),
            (replace(DYNAMIC, keep_float=9), True, r"--keep-float 9 leaves nothing to quantise; the model has 9"),
            (replace(DYNAMIC, limit=9), False, r"--limit and --seed draw calibration images, and no --calib"),
            (replace(FP16, seed=1), False, r"--limit and --seed draw calibration images, and no --calib"),
            (replace(FP16, preprocessing=replace(FP16.preprocessing, resize=9)), False, r"--resize says how images"),
        ],
    )
    def test_options(self, settings: ConvertSettings, calib: bool, sentence: str, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=sentence):
            convert_model(VIT, tmp_path / "m.onnx", settings=settings, calib=photos if calib else None)
        assert listing(tmp_path) == []

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"target": "int4"}, r"target must be fp16, int8-dynamic, int8-static; found int4"),
            ({"target": "int8-dynamic", "io": "float16"}, r"--io float16 goes with --fp16"),
            ({"target": "fp16", "keep_float": 1}, r"--keep-float goes with --int8"),
            ({"target": "int8-static", "limit": 1}, r"--limit 2 or more"),
        ],
    )
    def test_settings(self, options: dict[str, object], sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence):
            ConvertSettings(**options)  # type: ignore[arg-type]

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ImageError, match="the folder is empty; give a folder of images"):
            convert_model(VIT, tmp_path / "m.onnx", settings=STATIC, calib=tmp_path / "empty")

    def test_destinations(self, tmp_path: Path) -> None:
        shutil.copy(VIT, tmp_path / "m.onnx")
        with pytest.raises(OutputError, match=r"is the model itself; give another -o"):
            convert_model(tmp_path / "m.onnx", tmp_path / "m.onnx", settings=FP16, force=True)
        (tmp_path / "m.fp16.onnx").touch()
        with pytest.raises(OutputError, match=r"exists already; give another -o, or --force"):
            convert_model(tmp_path / "m.onnx", settings=FP16)
        convert_model(tmp_path / "m.onnx", settings=FP16, force=True)
        assert listing(tmp_path) == ["m.fp16.onnx", "m.onnx"]
        assert default_output(tmp_path / "a.pruned.onnx", "int8-static") == tmp_path / "a.pruned.int8.onnx"

    @pytest.mark.parametrize("settings", [FP16, DYNAMIC])
    def test_source_whose_answers_are_not_finite(self, settings: ConvertSettings, tmp_path: Path) -> None:
        """The source is to blame, and not the conversion."""
        proto = onnx.load(fixture_path(OPERATOR))
        weight = next(t for t in proto.graph.initializer if tuple(t.dims) == (10, 20))
        weight.CopyFrom(numpy_helper.from_array(np.full((10, 20), 3e38, np.float32), weight.name))
        onnx.save(proto, tmp_path / "m.onnx")
        with pytest.raises(NonFiniteError, match=r"m\.onnx: output 'logits' holds NaN or Inf on noise"):
            convert_model(tmp_path / "m.onnx", tmp_path / "o.onnx", settings=settings)

    def test_a_failed_check_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = CheckResult("loading", False, None, None, "ONNX Runtime crashes on it (signal 11)")
        monkeypatch.setattr("corp_onnx.precision.convert.check_loading", lambda _path: broken)
        with pytest.raises(
            CheckFailedError, match=r"'loading' check: ONNX Runtime crashes on it \(signal 11\)\. Nothing"
        ):
            convert_model(VIT, tmp_path / "m.onnx", settings=FP16)
        assert listing(tmp_path) == []

    def test_answers_that_moved_too_far(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TOLERANCES, "int8-dynamic", 1e-9)
        with pytest.raises(CheckFailedError, match=r"'answers' check: .+ \(difference 0\.0\d+, allowed 1e-09\)"):
            convert_model(VIT, tmp_path / "m.onnx", settings=DYNAMIC)
        assert listing(tmp_path) == []


def labelled(path: Path) -> Path:
    """The sample model with class names, as `corp-onnx export` writes them."""
    proto = onnx.load(VIT)
    proto.metadata_props.add(key="corp_onnx.labels", value=json.dumps(["a", "b"]))
    onnx.save(proto, path)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(path).metadata_props}


def spoil(source: Path, path: Path, value: float, n: int) -> None:
    """The source with `value` in the first `n` numbers of its largest weights."""
    proto = onnx.load(source)
    for tensor in sorted(proto.graph.initializer, key=lambda t: -len(t.raw_data)):
        if n > 0 and len(tensor.dims) == 2:
            array = numpy_helper.to_array(tensor).copy()
            n_here = min(n, array.size)
            array.reshape(-1)[:n_here] = np.float32(value)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            n -= n_here
    onnx.save(proto, path)
