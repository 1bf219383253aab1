"""Each model sees the images through its own recipe; a guess gives way to what another model knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from classes import ACCURACY, NAMES, RECIPE, make_classifier, write_classes
from onnx import helper

from corp_onnx.errors import OptionError
from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import open_images
from corp_onnx.images.preprocessing import FoundRecipe
from corp_onnx.images.recipe import METADATA_KEY, Recipe, default_recipe
from corp_onnx.run.runner import open_runner
from corp_onnx.run.views import prepare_views, require_labels, stream_views
from corp_onnx.settings import Preprocessing

NONE = Preprocessing()
OTHER = Recipe(size=(8, 8), mean=(0.1, 0.2, 0.3))


def with_recipe(path: Path, stored: str | None) -> Path:
    make_classifier(path)
    model = onnx.load(path)
    del model.metadata_props[:]
    if stored is not None:
        helper.set_model_props(model, {METADATA_KEY: stored})
    onnx.save(model, path)
    return path


def guess(recipe: Recipe = OTHER) -> str:
    return FoundRecipe(recipe, "guessed", guessed=True).to_json()


@pytest.mark.parametrize(
    ("stored", "recipes", "origins"),
    [
        ((None, None), (default_recipe((8, 8)),) * 2, ("guessed (ImageNet, 8)",) * 2),
        ((None, RECIPE.to_json()), (RECIPE, RECIPE), ("from the model's metadata",) * 2),
        ((None, guess()), (OTHER, OTHER), ("guessed (in part, 8) when the model was pruned",) * 2),
        ((RECIPE.to_json(), guess()), (RECIPE, RECIPE), ("from the model's metadata",) * 2),
        ((RECIPE.to_json(), OTHER.to_json()), (RECIPE, OTHER), ("from the model's metadata",) * 2),
    ],
    ids=["both guess", "one knows", "one guessed before", "a guess gives way", "both know"],
)
def test_recipes_of_a_pair(
    stored: tuple[str | None, str | None], recipes: tuple[Recipe, Recipe], origins: tuple[str, str], tmp_path: Path
) -> None:
    write_classes(tmp_path / "val")
    paths = [with_recipe(tmp_path / f"{i}.onnx", text) for i, text in enumerate(stored)]
    found = evaluate_models(paths, tmp_path / "val", reference=paths[0])
    assert tuple(score.recipe for score in found.scores) == recipes
    assert found.preprocessing == origins
    guesses = [warning for warning in found.warnings if warning.startswith("preprocessing")]
    assert len(guesses) == len({o for o in origins if o.startswith("guessed")})


def test_three_models_of_two_recipes_keep_their_guess(tmp_path: Path) -> None:
    write_classes(tmp_path / "val")
    texts = (None, RECIPE.to_json(), OTHER.to_json())
    paths = [with_recipe(tmp_path / f"{i}.onnx", text) for i, text in enumerate(texts)]
    found = evaluate_models(paths, tmp_path / "val", reference=paths[0])
    assert [s.recipe for s in found.scores] == [default_recipe((8, 8)), RECIPE, OTHER]


def test_preprocessing_by_keyword_is_that_of_all(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    paths = [make_classifier(tmp_path / "a.onnx"), make_classifier(tmp_path / "b.onnx")]
    changes = Preprocessing(fit="squash", interpolation="bilinear")
    found = evaluate_models(paths, tmp_path / "val", labels=NAMES, preprocessing=changes)
    assert {s.recipe for s in found.scores} == {
        Recipe((8, 8), None, 1.0, "bilinear", RECIPE.mean, RECIPE.std, fit="squash")
    }
    assert found.preprocessing == ("from the model's metadata, changed by --interpolation, --fit",) * 2
    assert found.scores[0].top1 == pytest.approx(ACCURACY)


def test_batches_side_by_side_are_labelled_for_each(tmp_path: Path) -> None:
    rows = write_classes(tmp_path / "val", NAMES)
    images = open_images(tmp_path / "val", labels="folders")
    key = {"corp_onnx.labels": json.dumps(NAMES)}
    turned = {"corp_onnx.labels": json.dumps([f"class {n}" for n in NAMES])}
    runners = [open_runner(make_classifier(tmp_path / f"{i}.onnx", m)) for i, m in enumerate((key, turned))]
    views = prepare_views(images, runners, None, NONE)
    assert views[1].labels.indices is None
    pairs = list(stream_views(images, views, 10))
    assert [len(first) for first, _ in pairs] == [10, 10, 10, 6]
    assert np.concatenate([first.labels for first, _ in pairs]).tolist() == [label for _, label in rows]
    assert all(second.labels is None for _, second in pairs)


def test_arrays_take_no_preprocessing(tmp_path: Path) -> None:
    model = make_classifier(tmp_path / "m.onnx")
    arrays = {"x": np.zeros((3, 3, 8, 8), np.float32), "labels": np.array([0, 1, 2])}
    assert evaluate_models([model], arrays).n_images == 3
    assert evaluate_models([model], ({"x": a, "labels": 0} for a in arrays["x"])).preprocessing == ()
    with pytest.raises(OptionError, match=r"arrays in memory: holds arrays, .* leave out --mean"):
        evaluate_models([model], arrays, preprocessing=Preprocessing(mean=(0, 0, 0)))
    with pytest.raises(
        OptionError, match=r"no array called labels, no --labels and no --reference: nothing to measure"
    ):
        evaluate_models([model], arrays["x"])
    assert evaluate_models([model], list(arrays["x"]), labels=[0, 1, 2]).scores[0].top1 is not None


def test_images_opened_without_labels_have_none(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", NAMES)
    with pytest.raises(OptionError, match=r"val: no class folders, no --labels and no --reference: nothing to measure"):
        require_labels(open_images(tmp_path / "val"))
    require_labels(open_images(tmp_path / "val", labels="folders"))
