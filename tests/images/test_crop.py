"""What squashing, letterboxes and the two roundings of a crop do, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import photo
from PIL import Image

from corp_onnx.images.crop import crop_image, normalize_crops, resized_size
from corp_onnx.images.recipe import Recipe, make_recipe

WHITE = Image.new("RGB", (40, 20), (255, 255, 255))


def columns(crop: np.ndarray) -> list[int]:
    """Which columns are the image, where the rest is a colour of padding other than white."""
    return [x for x in range(crop.shape[1]) if (crop[crop.shape[0] // 2, x] == 255).all()]


def rows(crop: np.ndarray) -> list[int]:
    return columns(crop.transpose(1, 0, 2))


def test_squash_keeps_everything_and_no_ratio() -> None:
    image = photo(90, 30)
    found = crop_image(image, Recipe(size=(16, 24), resize=(16, 24), fit="squash", interpolation="bilinear"))
    np.testing.assert_array_equal(found, np.asarray(image.resize((24, 16), Image.Resampling.BILINEAR)))


def test_squash_then_crop_as_deit_does() -> None:
    image = photo(90, 30)
    found = crop_image(image, Recipe(size=(14, 14), resize=20, fit="squash", crop_rounding="down"))
    whole = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found, whole[3:17, 3:17])


@pytest.mark.parametrize(
    ("size", "inside", "where"),
    [((16, 16), (16, 8), (4, 12)), ((15, 15), (15, 8), (3, 11)), ((10, 30), (20, 10), None)],
)
def test_letterbox_fits_inside_and_fills(
    size: tuple[int, int], inside: tuple[int, int], where: tuple[int, int] | None
) -> None:
    """40 x 20: halved or so; of an odd number of pixels, the larger part is right and below."""
    recipe = Recipe(size=size, crop_pct=1.0, fit="letterbox", fill=(114, 115, 116))
    assert resized_size(40, 20, recipe) == inside
    found = crop_image(WHITE, recipe)
    assert found.shape == (*size, 3)
    if where is not None:
        assert rows(found) == list(range(*where))
        assert found[0, 0].tolist() == [114, 115, 116]
        assert columns(found) == list(range(size[1]))
    else:
        assert columns(found) == list(range(5, 25))


def test_letterbox_is_black_by_default_and_may_be_grey() -> None:
    black = crop_image(WHITE, Recipe(size=(16, 16), crop_pct=1.0, fit="letterbox"))
    assert black[0, 0].tolist() == [0, 0, 0]
    grey = Recipe(size=(16, 16), crop_pct=1.0, fit="letterbox", fill=(7,), mean=(0.5,), std=(0.5,), channels="L")
    assert crop_image(WHITE, grey)[0, 0].tolist() == [7]


def test_a_letterbox_that_is_cropped() -> None:
    """timm's border mode: the long side becomes size / crop_pct."""
    recipe = Recipe(size=(16, 16), crop_pct=0.8, fit="letterbox", fill=(9, 9, 9))
    assert resized_size(40, 20, recipe) == (20, 10)
    found = crop_image(WHITE, recipe)
    assert columns(found) == list(range(16))
    assert rows(found) == list(range(3, 13))


@pytest.mark.parametrize(
    ("width", "even", "down"), [(17, 0, 0), (18, 1, 1), (19, 2, 1), (21, 2, 2), (23, 4, 3), (15, 0, 0)]
)
def test_half_a_difference_is_rounded_to_even_or_down(width: int, even: int, down: int) -> None:
    """19 - 16 = 3: torchvision rounds 1.5 to 2, Hugging Face to 1."""
    image = photo(width, 16)
    for rounding, left in (("even", even), ("down", down)):
        recipe = Recipe(size=(16, min(width, 16)), resize=(16, width), fit="squash", crop_rounding=rounding)
        found = crop_image(image, recipe)
        np.testing.assert_array_equal(found, np.asarray(image)[:, left : left + min(width, 16)])


def test_the_odd_pixel_of_padding_is_below_or_above() -> None:
    small = Image.new("RGB", (8, 5), (255, 255, 255))
    for rounding, top in (("even", 1), ("down", 2)):
        recipe = Recipe(size=(8, 8), resize=(5, 8), fit="squash", crop_rounding=rounding)
        assert rows(crop_image(small, recipe)) == list(range(top, top + 5))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.integers(2, 40))
def test_a_letterbox_shows_the_whole_image_at_one_scale(width: int, height: int, high: int, wide: int) -> None:
    recipe = Recipe(size=(high, wide), crop_pct=1.0, fit="letterbox")
    found_width, found_height = resized_size(width, height, recipe)
    assert found_width <= wide
    assert found_height <= high
    assert (found_width == wide) or (found_height == high)
    scale = min(wide / width, high / height)
    assert abs(found_width - width * scale) <= 0.5 + 1e-9
    assert abs(found_height - height * scale) <= 0.5 + 1e-9


def test_another_fit_crops_nothing_unless_it_is_said() -> None:
    base = Recipe(size=(32, 32), resize=40)
    assert make_recipe((32, 32), base=base, fit="squash") == Recipe(size=(32, 32), crop_pct=1.0, fit="squash")
    kept = make_recipe((32, 32), base=base, fit="letterbox", resize=36, fill=[1, 2, 3])
    assert kept == Recipe(size=(32, 32), resize=36, fit="letterbox", fill=(1, 2, 3))
    assert make_recipe((32, 32), base=base, fit="cover") == base


def test_normalised_by_hand() -> None:
    recipe = Recipe(size=(1, 2), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    crops = np.array([[[[255, 0, 51], [0, 255, 102]]]], dtype=np.uint8)  # [1, 1, 2, 3]
    found = normalize_crops(crops, recipe)
    np.testing.assert_allclose(found[0, :, 0], [[1, -1], [-1, 3], [0.2, 0.4]], atol=1e-7)
