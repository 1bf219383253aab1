"""Calibration images from wherever they are give the same model; the recipe and who said it are in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from processors import processor, square
from samples import GUESS, OPERATOR, TEXT, fixture_path, paper, write_photos

from corp_onnx.calibrate.data import name_source, split_calibration
from corp_onnx.cli import main
from corp_onnx.errors import ImageError, OptionError
from corp_onnx.images import Images, open_images
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.options import choose_settings
from corp_onnx.precision.conversion import ConvertSettings
from corp_onnx.precision.convert import convert_model
from corp_onnx.prune import prune_model
from corp_onnx.settings import Preprocessing

PIXELS = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
STATIC = ConvertSettings("int8-static")


def prune(calib: Any, output: Path, **options: Any) -> bytes:
    prune_model(fixture_path(OPERATOR), calib, output, settings=paper(**options))
    return output.read_bytes()


def stored_recipe(path: Path) -> dict[str, Any]:
    return next(json.loads(p.value) for p in onnx.load(path).metadata_props if p.key == METADATA_KEY)


class TestInMemory:
    @pytest.mark.long
    def test_every_form_gives_the_same_model(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", PIXELS)
        expected = prune(tmp_path / "x.npy", tmp_path / "a.onnx")
        forms: list[Any] = [
            str(tmp_path / "x.npy"), open_images(tmp_path / "x.npy"), PIXELS, {"x": PIXELS}, list(PIXELS),
            (batch for batch in (PIXELS[:5], PIXELS[5:])), ({"x": p} for p in PIXELS),
        ]  # fmt: skip
        for i, form in enumerate(forms):
            assert prune(form, tmp_path / f"{i}.onnx") == expected

    def test_the_report_says_so(self, tmp_path: Path) -> None:
        result = prune_model(fixture_path(OPERATOR), PIXELS, tmp_path / "a.onnx", settings=paper())
        found = result.calibration
        assert (found.path, found.recipe, found.recipe_origin) == ("arrays in memory", None, None)
        assert not any(w.startswith("preprocessing") for w in result.warnings)

    def test_text_by_the_names_of_the_inputs(self, tmp_path: Path) -> None:
        ids = np.random.default_rng(0).integers(0, 30, (12, 8))
        rows = [{"input_ids": r, "attention_mask": np.ones(8, int), "token_type_ids": np.zeros(8, int)} for r in ids]
        result = prune_model(fixture_path(TEXT), iter(rows), tmp_path / "a.onnx", settings=paper())
        assert result.calibration.n_images + result.calibration.n_held_out == 12

    def test_preprocessing_and_shapes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="arrays in memory: holds arrays, which are not preprocessed; leave out"):
            prune(PIXELS, tmp_path / "a.onnx", preprocessing=Preprocessing(resize=9))
        with pytest.raises(ImageError, match=r"expected samples of 3 axes or batches of one more, and .* pixels"):
            prune(list(PIXELS[:, 0]), tmp_path / "a.onnx")

    def test_convert_takes_them_too(self, tmp_path: Path) -> None:
        path = fixture_path("timm_vit_ts17_unfused")
        found = convert_model(path, tmp_path / "a.onnx", settings=STATIC, calib=list(PIXELS))
        assert (found.n_calibration, found.comparison.data, found.recipe_origin) == (12, "arrays in memory", None)
        again = convert_model(path, tmp_path / "b.onnx", settings=STATIC, calib=PIXELS[:8], images={"x": PIXELS[8:]})
        assert (again.n_calibration, again.comparison.n_images) == (8, 8)


def rows_of(images: Images | None) -> set[bytes]:
    return set() if images is None else {row.tobytes() for batch in images.batches(64) for row in batch.pixels}


class TestSplit:
    @pytest.mark.parametrize(
        ("n", "options", "sizes", "is_crossed"),
        [
            (200, {"macs": 0.5}, (160, 0, 40), False),
            (2000, {"preset": "paper"}, (1872, 0, 128), False),
            (300, {}, (180, 60, 60), False),
            (160, {"min_similarity": 0.9}, (96, 32, 32), False),
            (3000, {"min_agreement": 0.9}, (2488, 256, 256), False),
            (159, {}, (119, 0, 40), True),
            (20, {}, (15, 0, 5), True),
        ],
    )
    def test_no_image_has_two_uses(
        self, n: int, options: dict[str, Any], sizes: tuple[int, int, int], is_crossed: bool
    ) -> None:
        pixels = np.random.default_rng(1).standard_normal((n, 1, 2, 2)).astype(np.float32)
        found = split_calibration(open_images(pixels, ranks={"x": 4}), choose_settings(**options))
        parts = [rows_of(part) for part in (found.fitting, found.choosing, found.reporting)]
        assert tuple(map(len, parts)) == sizes
        assert len(set().union(*parts)) == n
        assert found.is_crossed == is_crossed


class TestRecipe:
    def test_images_that_were_opened_keep_the_recipe_they_were_given(self, tmp_path: Path) -> None:
        photos = write_photos(tmp_path / "photos", 12)
        given = Recipe(size=(8, 8), mean=(0.1, 0.2, 0.3))
        result = prune_model(fixture_path(OPERATOR), open_images(photos, given), tmp_path / "a.onnx", settings=paper())
        assert result.calibration.recipe == json.loads(given.to_json())
        assert result.calibration.recipe_origin == "given with the images"
        assert not any(w.startswith("preprocessing") for w in result.warnings)
        changed = paper(preprocessing=Preprocessing(resize=9))
        other = prune_model(fixture_path(OPERATOR), open_images(photos, given), tmp_path / "b.onnx", settings=changed)
        assert other.calibration.recipe_origin == "guessed (ImageNet, 8), changed by --resize"

    def test_without_one_they_take_the_models(self, tmp_path: Path) -> None:
        photos = write_photos(tmp_path / "photos", 12)
        assert prune(open_images(photos), tmp_path / "a.onnx") == prune(photos, tmp_path / "b.onnx")

    def test_a_guess_is_said_and_stays_one_in_the_file(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        photos = write_photos(tmp_path / "photos", 12)
        words = ["prune", str(fixture_path(OPERATOR)), "--calib", str(photos), "--preset", "paper", "-o"]
        assert main([*words, str(tmp_path / "a.onnx")]) == 0
        out, err = capfd.readouterr()
        assert f"warning: {GUESS}" in err.splitlines()
        assert "preprocessing" not in out
        assert stored_recipe(tmp_path / "a.onnx")["guessed"] is True
        (tmp_path / "p.json").write_text(json.dumps(processor("ViT", size=square(8))))
        assert main([*words, str(tmp_path / "b.onnx"), "--preprocessor", str(tmp_path / "p.json")]) == 0
        out, err = capfd.readouterr()
        assert f"preprocessing: from {tmp_path / 'p.json'}" in out.splitlines()
        assert "guessed" not in err
        assert "guessed" not in stored_recipe(tmp_path / "b.onnx")

    def test_convert_says_a_guess_too(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        photos = write_photos(tmp_path / "photos", 12)
        words = [
            "convert",
            str(fixture_path("timm_vit_ts17_unfused")),
            "--int8",
            "static",
            "--calib",
            str(photos),
            "-o",
        ]
        assert main([*words, str(tmp_path / "a.onnx")]) == 0
        assert f"warning: {GUESS}" in capfd.readouterr().err.splitlines()
        options = ["--fit", "letterbox", "--fill", "114,114,114", "--mean", "0,0,0", "--std", "1,1,1"]
        assert main([*words, str(tmp_path / "b.onnx"), *options]) == 0
        out, err = capfd.readouterr()
        assert "preprocessing: given by --mean, --std, --fit, --fill" in out.splitlines()
        assert "guessed" not in err
        stored = stored_recipe(tmp_path / "b.onnx")
        assert (stored["fit"], stored["fill"], stored["crop_pct"]) == ("letterbox", [114, 114, 114], 1.0)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ("--fill 1,2", "fill must be 3 numbers 0..255 for RGB, found (1, 2)"),
            ("--fill 0.5,0,0", "fill must be 3 numbers 0..255 for RGB, found (-1, 0, 0)"),
            ("--fill nan,0,0", "fill must be 3 numbers 0..255"),
            ("--preprocessor no.json", "no.json: the preprocessor file can not be read (No such file or directory)."),
        ],
    )
    def test_options_out_of_range(
        self, options: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        photos = write_photos(tmp_path / "photos", 3)
        words = ["prune", str(fixture_path(OPERATOR)), "--calib", str(photos), "-o", str(tmp_path / "a.onnx")]
        assert main([*words, *options.split()]) == 2
        assert sentence in capfd.readouterr().err


def test_names_of_sources(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    np.save(tmp_path / "x.npy", PIXELS)
    sources: list[Any] = ["a", Path("a"), open_images(tmp_path / "photos"), open_images(tmp_path / "x.npy"), PIXELS]
    names = ["a", "a", str(tmp_path / "photos"), str(tmp_path / "x.npy"), "arrays in memory"]
    assert [name_source(source) for source in sources] == names
