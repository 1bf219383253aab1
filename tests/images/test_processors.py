"""Files of Hugging Face and timm: the recipe of each kind, its pixels by hand, and what no recipe can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photos import photo
from PIL import Image
from processors import BASE, MEAN, STD, TIMM, processor, square

from corp_onnx.errors import ImageError
from corp_onnx.images.crop import crop_image, normalize_crops
from corp_onnx.images.processors import is_preprocessor, parse_preprocessor, read_preprocessor
from corp_onnx.images.recipe import Recipe


def recipe(size: int, resize: object, fit: str, interpolation: str = "bicubic") -> Recipe:
    return Recipe(
        (size, size), resize, 1.0, interpolation, tuple(MEAN), tuple(STD), "RGB", fit, (), "down"  # type: ignore[arg-type]
    )  # fmt: skip


def short(side: int) -> dict[str, int]:
    return {"shortest_edge": side}


KINDS = [
    ("ViT", processor("ViT", size=square(224), resample=2), recipe(224, (224, 224), "squash", "bilinear")),
    ("old ViT", BASE | {"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, recipe(32, (32, 32), "squash")),
    ("fast", processor("ViT") | {"image_processor_type": "ViTImageProcessorFast", "size": square(96)},
     recipe(96, (96, 96), "squash")),
    ("DeiT", processor("DeiT", size=square(256), do_center_crop=True, crop_size=square(224)),
     recipe(224, (256, 256), "squash")),
    ("BEiT", processor("Beit", size=square(224), do_center_crop=False, crop_size=square(224)),
     recipe(224, (224, 224), "squash")),
    ("CLIP", processor("CLIP", size=short(224), do_center_crop=True, crop_size=square(224), do_convert_rgb=True),
     recipe(224, 224, "cover")),
    ("old CLIP", BASE | {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "do_center_crop": True,
                         "crop_size": 224}, recipe(224, 224, "cover")),
    ("SigLIP", processor("Siglip", size=square(384)), recipe(384, (384, 384), "squash")),
    ("DINOv2", processor("Bit", size=short(256), do_center_crop=True, crop_size=square(224)),
     recipe(224, 256, "cover")),
    ("ConvNeXt", processor("ConvNext", size=short(224), crop_pct=0.875), recipe(224, 256, "cover")),
    ("large ConvNeXt", processor("ConvNext", size=short(384)), recipe(384, (384, 384), "squash")),
    ("LeViT", processor("Levit", size=short(224), do_center_crop=True, crop_size=square(224)),
     recipe(224, 256, "cover")),
    ("PoolFormer", processor("PoolFormer", size=short(224), crop_pct=0.9, do_center_crop=True, crop_size=square(224)),
     recipe(224, 248, "cover")),
    ("nested", {"processor_class": "CLIPProcessor", "image_processor": processor("ViT", size=square(32))},
     recipe(32, (32, 32), "squash")),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "expected"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_geometry_of_every_kind(stored: dict[str, Any], expected: Recipe) -> None:
    found = parse_preprocessor(stored)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)
    assert (found.size, found.resize, found.fit, found.interpolation, found.crop_rounding) == (
        expected.size, expected.resize, expected.fit, expected.interpolation, "down",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "of_pixel"),
    [
        ({}, lambda x, m, s: (x / 255 - m) / s),
        ({"do_normalize": False}, lambda x, _m, _s: x / 255),
        ({"do_rescale": False}, lambda x, m, s: (x - m) / s),
        ({"do_rescale": False, "do_normalize": False}, lambda x, _m, _s: x),
        ({"rescale_factor": 1 / 127.5}, lambda x, m, s: (x / 127.5 - m) / s),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, lambda x, m, s: (x / 127.5 - 1 - m) / s),
        ({"include_top": True}, lambda x, m, s: (x / 255 - m) / s / s),
        ({"include_top": True, "do_normalize": False}, lambda x, _m, s: x / 255 / s),
    ],
)
def test_colours_of_every_kind(changes: dict[str, Any], of_pixel: Any) -> None:
    """The steps that the processor does one after the other, on the crop of a photograph."""
    found = parse_preprocessor(processor("EfficientNet", size=square(16), include_top=False) | changes)
    crop = crop_image(photo(40, 30), found)
    expected = np.asarray(photo(40, 30).resize((16, 16), Image.Resampling.BICUBIC), dtype=np.float64)
    np.testing.assert_array_equal(crop, expected)
    wanted = of_pixel(expected, np.array(MEAN), np.array(STD)).transpose(2, 0, 1)
    np.testing.assert_allclose(normalize_crops(crop[None], found)[0], wanted, rtol=2e-5, atol=2e-5)


def test_efficientnet_divides_twice_unless_it_says_no() -> None:
    assert parse_preprocessor(processor("EfficientNet", size=square(16))).std == pytest.approx([s * s for s in STD])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Recipe((32, 48), None, 0.8, "bilinear", tuple(MEAN), tuple(STD))),
        ({"crop_mode": "squash"}, Recipe((32, 48), None, 0.8, "bilinear", tuple(MEAN), tuple(STD), fit="squash")),
        ({"crop_mode": "border", "crop_pct": 1.0},
         Recipe((32, 48), None, 1.0, "bilinear", tuple(MEAN), tuple(STD), fit="letterbox", fill=(102, 128, 153))),
        ({"crop_pct": None}, Recipe((32, 48), None, 0.875, "bilinear", tuple(MEAN), tuple(STD))),
    ],
)  # fmt: skip
def test_timm(changes: dict[str, Any], expected: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architecture": "vit", "pretrained_cfg": TIMM | changes}))
    assert read_preprocessor(path) == expected
    path.write_text(json.dumps(TIMM | changes))
    assert read_preprocessor(path) == expected, "as older files have it"


def test_our_own_recipe(tmp_path: Path) -> None:
    own = Recipe(size=(48, 32), fit="letterbox", fill=(1, 2, 3))
    (tmp_path / "r.json").write_text(own.to_json())
    assert read_preprocessor(tmp_path / "r.json") == own


def test_one_channel() -> None:
    found = parse_preprocessor(processor("ViT", size=square(28), image_mean=[0.1], image_std=[0.3]))
    assert (found.channels, len(found.mean)) == ("L", 1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"do_resize": False}, "do_resize is false, which no recipe can say"),
        ({"do_pad": True}, "do_pad is true, which no recipe can say"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is true"),
        (
            {"size": {"shortest_edge": 800, "longest_edge": 1333}},
            "or the shortest_edge alone; found shortest_edge, lo",
        ),
        ({"size": {"longest_edge": 512}}, "size must say height and width, .*found longest_edge"),
        ({"size": short(224)}, "size is the short side alone and do_center_crop is off, so images differ in size"),
        ({"size": 224, "image_processor_type": "Odd"}, "whether 'Odd' means the short side by it is not known"),
        ({"size": square(0)}, "the input size must be two positive integers"),
        ({"resample": 7}, "resample must be a number 0 to 5 .* found 7"),
        ({"resample": None}, "resample must be a number 0 to 5 .* found None"),
        ({"image_mean": [0.5, 0.5]}, "photographs have 1 or 3 channels, found 2"),
        ({"image_std": [0.0, 1, 1]}, "std must be positive"),
        ({"rescale_factor": 0}, "rescale_factor must be positive, found 0"),
    ],
)
def test_what_no_recipe_can_say(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(processor("ViT", size=square(224)) | changes))
    with pytest.raises(ImageError, match=rf"p\.json: no preprocessing can be read from it: .*{match}"):
        read_preprocessor(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "can not be read .not a JSON text"),
        ("[]", "it has neither image_mean .Hugging Face. nor pretrained_cfg .timm. nor a schema .ours"),
        ('{"model_type": "vit"}', "it has neither image_mean"),
        (json.dumps({"image_processor_type": "ViTImageProcessor", "size": 3}), "'image_std' is missing"),
        (
            json.dumps({"pretrained_cfg": TIMM | {"crop_mode": "odd"}}),
            "crop_mode must be one of center, squash, border",
        ),
        (json.dumps({"pretrained_cfg": TIMM | {"interpolation": "random"}}), "interpolation must be one of"),
        ('{"schema": 1, "interpolation": "bicubic"}', "'size' is missing"),
    ],
)
def test_other_files(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ImageError, match=match):
        read_preprocessor(tmp_path / "p.json")
    with pytest.raises(ImageError, match=r"no\.json: the preprocessor file can not be read \(No such file"):
        read_preprocessor(tmp_path / "no.json")


def test_a_configuration_of_something_else_is_none() -> None:
    assert not is_preprocessor({"model_type": "vit", "image_size": 224, "hidden_size": 192})
    assert is_preprocessor({"pretrained_cfg": TIMM})
