"""Where a recipe comes from, in which order, and what is said of a guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processors import TIMM, processor, square

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images.preprocessing import choose_recipe, find_own_recipe, refuse_changes
from corp_onnx.images.recipe import METADATA_KEY, Recipe, default_recipe
from corp_onnx.settings import Preprocessing

SHAPE = (None, 3, 32, 32)
OWN = Recipe(size=(32, 32), interpolation="nearest")
NONE = Preprocessing()


def write(path: Path, stored: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored))
    return path


def test_a_guess_says_so_and_how_to_end_it(tmp_path: Path) -> None:
    found = choose_recipe(tmp_path / "m.onnx", {}, SHAPE, NONE)
    assert found.recipe == default_recipe((32, 32))
    assert (found.origin, found.guessed) == ("guessed (ImageNet, 32)", True)
    assert found.advise().startswith("preprocessing: guessed (ImageNet, 32); give --preprocessor FILE")
    assert choose_recipe(tmp_path / "m.onnx", {}, (1, 3, 24, 32), NONE).origin == "guessed (ImageNet, 24 x 32)"


def test_the_models_metadata(tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", processor("ViT", size=square(32)))
    found = choose_recipe(tmp_path / "m.onnx", {METADATA_KEY: OWN.to_json()}, SHAPE, NONE)
    assert (found.recipe, found.origin, found.guessed) == (OWN, "from the model's metadata", False)
    assert found.advise() == ""


def test_a_stored_guess_stays_one(tmp_path: Path) -> None:
    guess = choose_recipe(tmp_path / "m.onnx", {}, SHAPE, NONE)
    stored = {METADATA_KEY: guess.to_json()}
    found = choose_recipe(tmp_path / "m.pruned.onnx", stored, SHAPE, NONE)
    assert found.recipe == guess.recipe
    assert found.guessed
    assert found.origin == "guessed (ImageNet, 32) when the model was pruned"
    write(tmp_path / "preprocessor_config.json", processor("ViT", size=square(32)))
    assert not choose_recipe(tmp_path / "m.pruned.onnx", stored, SHAPE, NONE).guessed


@pytest.mark.parametrize("place", ["", "onnx/"])
@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("preprocessor_config.json", processor("ViT", size=square(32))),
        ("processor_config.json", {"image_processor": processor("ViT", size=square(32))}),
        ("config.json", {"pretrained_cfg": TIMM | {"input_size": [3, 32, 32]}}),
    ],
)
def test_a_file_beside_the_model(place: str, name: str, stored: dict[str, Any], tmp_path: Path) -> None:
    """In its folder, or above the folder `onnx` of a download."""
    path = write(tmp_path / name, stored)
    write(tmp_path / "config.json", {"model_type": "vit"} | (stored if name == "config.json" else {}))
    found = choose_recipe(tmp_path / place / "m.onnx", {}, SHAPE, NONE)
    assert (found.origin, found.guessed) == (f"from {path}, beside the model", False)
    assert found.recipe.mean == pytest.approx(TIMM["mean"])


def test_a_file_further_up_is_somebody_elses(tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", processor("ViT", size=square(32)))
    assert choose_recipe(tmp_path / "models" / "m.onnx", {}, SHAPE, NONE).guessed


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (processor("ViT", size=square(24)), "prepares 3 x 24 x 24 and the model takes 3 x 32 x 32"),
        (processor("ViT", size=square(32), do_pad=True), "do_pad is true"),
        ({"image_processor_type": "ViTImageProcessor"}, "'image_std'"),
    ],
)
def test_a_file_beside_the_model_that_is_of_no_use_is_named(stored: dict[str, Any], why: str, tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", stored)
    found = find_own_recipe(tmp_path / "m.onnx", {}, SHAPE)
    assert found.guessed
    assert f"guessed (ImageNet, 32), preprocessor_config.json beside it is of no use: {why}" in found.advise()


def test_a_file_that_is_given_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "given.json", processor("ViT", size=square(32)))
    found = choose_recipe(
        tmp_path / "m.onnx", {METADATA_KEY: OWN.to_json()}, SHAPE, Preprocessing(preprocessor=str(path))
    )
    assert (found.origin, found.recipe.fit) == (f"from {path}", "squash")
    changed = Preprocessing(preprocessor=path, interpolation="box")  # type: ignore[arg-type]
    found = choose_recipe(tmp_path / "m.onnx", {}, SHAPE, changed)
    assert (found.origin, found.recipe.interpolation) == (f"from {path}, changed by --interpolation", "box")
    write(path, processor("ViT", size=square(24)))
    with pytest.raises(ImageError, match=r"given\.json: prepares 3 x 24 x 24 and the model takes 3 x 32 x 32 .*give"):
        choose_recipe(tmp_path / "m.onnx", {}, SHAPE, Preprocessing(preprocessor=str(path)))
    assert choose_recipe(tmp_path / "m.onnx", {}, (None, 3, "h", "w"), changed).recipe.size == (24, 24)


def test_options_end_a_guess_where_they_say_all_of_it(tmp_path: Path) -> None:
    half = (0.5, 0.5, 0.5)
    given = choose_recipe(tmp_path / "m.onnx", {}, SHAPE, Preprocessing(mean=half, std=half, crop_pct=1.0))
    assert (given.origin, given.guessed) == ("given by --crop-pct, --mean, --std", False)
    partly = choose_recipe(tmp_path / "m.onnx", {}, SHAPE, Preprocessing(mean=half))
    assert (partly.origin, partly.guessed) == ("guessed (ImageNet, 32), changed by --mean", True)
    stored = {METADATA_KEY: partly.to_json()}
    assert (
        "guessed (in part, 32) when the model was pruned" in find_own_recipe(tmp_path / "p.onnx", stored, SHAPE).origin
    )


def test_models_of_no_images_and_broken_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "given.json", processor("ViT", size=square(32)))
    for changes in (NONE, Preprocessing(preprocessor=str(path))):
        with pytest.raises(ModelError, match="images go into"):
            choose_recipe(tmp_path / "m.onnx", {}, (None, 77), changes)
    with pytest.raises(ModelError, match="can not be read"):
        choose_recipe(tmp_path / "m.onnx", {METADATA_KEY: "{"}, SHAPE, NONE)


def test_arrays_are_not_preprocessed() -> None:
    refuse_changes(NONE, "x.npy")
    with pytest.raises(OptionError, match=r"x\.npy: holds arrays, which are not preprocessed; leave out --fit, --pre"):
        refuse_changes(Preprocessing(fit="squash", preprocessor="p.json"), "x.npy")
