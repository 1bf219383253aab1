"""Recipes: geometry against torchvision's steps one by one, what a model keeps, and options out of range."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import photo
from PIL import Image

from corp_onnx.errors import ModelError, OptionError
from corp_onnx.images.crop import crop_image, normalize_crops
from corp_onnx.images.recipe import METADATA_KEY, Recipe, default_recipe, find_recipe, make_recipe


def torchvision_oracle(image: Image.Image, size: tuple[int, int], short: int, filter_: int, mean, std) -> np.ndarray:
    """Resize(short) + CenterCrop(size) + ToTensor + Normalize, step by step on a padded canvas."""
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    pixels = np.asarray(image.resize((width, height), filter_))
    pixels = pixels.reshape(height, width, -1)
    pad_y, pad_x = max(size[0] - height, 0), max(size[1] - width, 0)
    pixels = np.pad(pixels, ((pad_y // 2, (pad_y + 1) // 2), (pad_x // 2, (pad_x + 1) // 2), (0, 0)))
    top = round((pixels.shape[0] - size[0]) / 2.0)
    left = round((pixels.shape[1] - size[1]) / 2.0)
    pixels = pixels[top : top + size[0], left : left + size[1]]
    out = np.empty((pixels.shape[2], *size), dtype=np.float64)
    for c in range(pixels.shape[2]):
        out[c] = (pixels[:, :, c] / 255.0 - mean[c]) / std[c]
    return out


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(3, 90),
    height=st.integers(3, 90),
    size=st.tuples(st.integers(2, 50), st.integers(2, 50)),
    short=st.integers(2, 60),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
)
def test_geometry_is_torchvisions(width, height, size, short, interpolation):
    recipe = Recipe(size=size, resize=short, interpolation=interpolation)
    image = photo(width, height)
    found = normalize_crops(crop_image(image, recipe)[None], recipe)[0]
    expected = torchvision_oracle(
        image, size, short, getattr(Image.Resampling, interpolation.upper()), recipe.mean, recipe.std
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(("size", "crop_pct", "short"), [(224, 0.9, 248), (224, 0.875, 256), (384, 1.0, 384)])
def test_short_side_comes_from_the_crop_fraction(size, crop_pct, short):
    image = photo(500, 400)
    derived = crop_image(image, Recipe(size=(size, size), crop_pct=crop_pct))
    np.testing.assert_array_equal(derived, crop_image(image, Recipe(size=(size, size), resize=short)))


def test_an_input_that_is_not_square_is_covered_on_both_sides():
    recipe = Recipe(size=(20, 40), crop_pct=0.8)
    image = photo(60, 90)
    ratio = min(90 / math.floor(20 / 0.8), 60 / math.floor(40 / 0.8))
    width, height = round(60 / ratio), round(90 / ratio)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 20) / 2.0), round((width - 40) / 2.0)
    np.testing.assert_array_equal(crop_image(image, recipe), whole[top : top + 20, left : left + 40])


def test_the_real_default_recipe():
    assert Recipe() == default_recipe((224, 224))
    assert (Recipe().mean, Recipe().std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    grey = default_recipe((28, 28), "L")
    assert crop_image(photo(40, 40), grey).shape == (28, 28, 1)


def test_recipe_survives_json():
    recipe = Recipe(size=(192, 256), resize=200, interpolation="bilinear", mean=(0.5,), std=(0.25,), channels="L")
    stored = json.loads(recipe.to_json())
    assert stored["schema"] == 1
    first = {"schema", "size", "resize", "interpolation", "crop_pct", "mean", "std", "channels"}
    assert set(stored) == first | {"fit", "fill", "crop_rounding"}
    assert Recipe.from_json(recipe.to_json()) == recipe
    old = json.dumps({key: value for key, value in stored.items() if key in first})
    assert Recipe.from_json(old) == recipe, "as the first release wrote it"
    padded = replace(recipe, fit="letterbox", fill=(114,), crop_rounding="down")
    squashed = replace(recipe, resize=(200, 300), fit="squash")
    assert [Recipe.from_json(r.to_json()) for r in (padded, squashed)] == [padded, squashed]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "can not be read"),
        ("[]", "expected an object with schema 1"),
        ('{"schema": 2}', "expected an object with schema 1"),
        ('{"schema": 1}', "'size' is missing"),
        (Recipe().to_json().replace("0.485", "NaN"), "mean must be 3 finite numbers"),
        (Recipe().to_json().replace("[224, 224]", "224"), "not iterable"),
        (Recipe().to_json().replace("0.485", "1" + "0" * 400), "int too large to convert to float"),
        (Recipe().to_json().replace("0.485", "1" + "0" * 5000), "Exceeds the limit"),
        (Recipe().to_json().replace("bicubic", r"\ud800"), "half a character, a lone surrogate"),
        ("[" * 100_000, "too many brackets in brackets"),
        ('{"a":' * 100_000, "too many brackets in brackets"),
    ],
)
def test_a_broken_recipe_in_a_model_is_a_model_error(text, match):
    with pytest.raises(ModelError, match=match):
        find_recipe({METADATA_KEY: text}, [1, 3, 224, 224])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crop_pct": 1.5}, r"crop fraction must lie in \(0, 1\], found 1.5"),
        ({"crop_pct": math.nan}, "crop fraction"),
        ({"resize": 0}, "resize must be a positive number of pixels, found 0"),
        ({"resize": 200, "crop_pct": 0.5}, "give one of the two"),
        ({"interpolation": "cubic"}, "bicubic, bilinear, nearest, lanczos, box, hamming, found 'cubic'"),
        ({"mean": (0.5,)}, r"mean must be 3 finite numbers for RGB, found \(0.5,\)"),
        ({"std": (1.0, 1.0, math.inf)}, "std must be 3 finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"mean": (1e308, 0.0, 0.0)}, r"mean \(1e\+308, .*make pixels that float32 can not hold"),
        ({"std": (1.0, 1e-320, 1.0)}, "make pixels that float32 can not hold"),
        ({"fit": "stretch"}, "fit must be one of cover, squash, letterbox, found 'stretch'"),
        ({"fill": (0, 0)}, r"fill must be 3 numbers 0..255 for RGB, found \(0, 0\)"),
        ({"fill": (0, 0, 256)}, r"fill must be 3 numbers 0..255"),
        ({"channels": "BGR"}, "channels must be RGB or L, found 'BGR'"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(OptionError, match=match):
        make_recipe((32, 32), **options)
    with pytest.raises(OptionError, match="two positive integers"):
        make_recipe((32, 0))


def test_given_options_overlay_the_base():
    base = Recipe(size=(64, 64), resize=70, interpolation="bilinear", mean=(0.5, 0.5, 0.5))
    found = make_recipe((96, 96), base=base, std=[0.5, 0.5, 0.5])
    assert found == Recipe((96, 96), 70, 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert make_recipe((96, 96), base=base, crop_pct=0.8).resize is None
    assert make_recipe((96, 96), base=base, resize=100).resize == 100
    assert make_recipe((32, 48)) == default_recipe((32, 48))


def test_recipe_of_a_model():
    own = Recipe(size=(64, 64), interpolation="bilinear")
    assert find_recipe({METADATA_KEY: own.to_json()}, ["batch", 3, 64, 64]) == own
    assert find_recipe({}, ["batch", 3, 64, 96]).size == (64, 96)
    assert find_recipe({}, [None, 3, "h", "w"]).size == (224, 224)
    assert find_recipe({}, [8, 1, 28, 28]).channels == "L"
    for shape in ([1, 224, 224, 3], [1, 77]):
        with pytest.raises(ModelError, match=r"give preprocessed arrays as .npy or .npz"):
            find_recipe({}, shape)
