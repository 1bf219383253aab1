"""A conversion in words, from results made up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corp_onnx.precision.conversion import ConvertResult, FileFacts, KeptProduct
from corp_onnx.report.convert import describe_conversion
from corp_onnx.results import CheckResult, Environment, Metric, OutputScore, StageTime
from corp_onnx.run.comparison import Comparison

NOISE = Comparison("noise", 4, 0.0123, 0.01)
FIGURES = (
    Metric("agreement", 0.96875, 0.893, 0.991),
    Metric("kl", 0.00123, 0.001, 0.002),
    Metric("relative_error", 0.02),
)
LOGITS = OutputScore("logits", "classify", "its name", (10,), True, FIGURES)
CONV = KeptProduct("/patch", "Conv", 10, "few multiply-accumulates")
PHOTOS = Comparison("photos", 64, 0.0234, 0.02, (LOGITS,))


def conversion(**changes: object) -> ConvertResult:
    base = ConvertResult(
        source=FileFacts("vit.onnx", "0" * 64, 20_000_000, "float32"),
        converted=FileFacts("vit.fp16.onnx", "1" * 64, 10_500_000, "float16"),
        settings={"target": "fp16", "io": "float32", "rest": "float32"},
        n_products=50, n_integer=0, integer_share=0.0, kept_products=(), kept_ops={}, n_clipped=0, n_subnormal=0,
        n_calibration=0, data_hash=None, comparison=NOISE,
        checks=(CheckResult("structure", True, None, None, ""), CheckResult("answers", True, 0.01, 0.02, "")),
        warnings=("said elsewhere",), stages=(StageTime("convert", 1.2), StageTime("compare", 2.4)),
        environment=Environment("0.1", "3.12", "Linux", "cpu", None, {}),
    )  # fmt: skip
    return replace(base, **changes)


def integers(target: str, **changes: object) -> ConvertResult:
    settings = {"target": target, "rest": "float32", "activations": "int8", "calibrator": "minmax", "io": "float32"}
    return conversion(
        converted=FileFacts("vit.int8.onnx", "1" * 64, 5_300_000, "int8"), settings=settings,
        n_integer=48, integer_share=0.987, comparison=PHOTOS, **changes,
    )  # fmt: skip


def test_half_precision() -> None:
    assert describe_conversion(conversion()).splitlines() == [
        "vit.onnx: 20.0 MB in float32 -> 10.5 MB (52.5%)",
        "float16, inputs and outputs float32",
        "on 4 rows of noise: answers off by at most 1.23% of the largest",
        "checks passed: structure, answers; 4 s",
        "converted -> vit.fp16.onnx",
    ]


def test_half_precision_at_both_ends() -> None:
    found = describe_conversion(conversion(settings={"target": "fp16", "io": "float16", "rest": "float32"}))
    assert "float16, inputs and outputs float16\n" in found


def test_operators_that_stay_in_float32_are_counted() -> None:
    lines = describe_conversion(conversion(kept_ops={"LayerNormalization": 25, "Softmax": 12})).splitlines()
    assert lines[2] == "  float32: 25 LayerNormalization, 12 Softmax"


def test_integers() -> None:
    assert describe_conversion(integers("int8-dynamic")).splitlines() == [
        "vit.onnx: 20.0 MB in float32 -> 5.3 MB (26.5%)",
        "int8, dynamic: 48 of 50 products, 98.7% of the multiply-accumulates",
        "on 64 images: agreement 96.9% [89.3, 99.1], KL 0.0012, error 2.0%, "
        "answers off by at most 2.34% of the largest",
        "checks passed: structure, answers; 4 s",
        "converted -> vit.int8.onnx",
    ]


def test_scales_from_images() -> None:
    lines = describe_conversion(integers("int8-static", n_calibration=192)).splitlines()
    assert lines[1].startswith("int8, static, int8 activations, scales from 192 images by minmax: 48 of 50 products")


def test_integers_in_a_float16_model() -> None:
    settings = {"target": "int8-static", "rest": "float16", "activations": "int8", "calibrator": "minmax"}
    found = integers("int8-static", n_calibration=192, kept_ops={"Softmax": 12}, kept_products=(CONV,))
    found = replace(found, settings=settings | {"io": "float32"})
    found = replace(found, converted=replace(found.converted, precision="int8 and float16"))
    lines = describe_conversion(found).splitlines()
    assert lines[1] == (
        "int8, static, int8 activations, scales from 192 images by minmax, the rest in float16, inputs and outputs "
        "float32: 48 of 50 products, 98.7% of the multiply-accumulates"
    )
    assert lines[2:4] == ["  float32: 12 Softmax", "  float16: 1 Conv (few multiply-accumulates)"]


def test_products_that_stay_are_counted_by_kind_and_reason_and_measured_ones_named() -> None:
    kept = (
        CONV,
        KeptProduct("/blocks.3/down", "MatMul", 10, "kept by --keep-float", 0.01234),
        KeptProduct("/head", "Gemm", 10, "two inputs"),
        KeptProduct("/head2", "Gemm", 10, "two inputs"),
        KeptProduct("/head3", "Gemm", 10, "a bias of another shape"),
    )
    assert describe_conversion(integers("int8-dynamic", kept_products=kept)).splitlines()[2:6] == [
        "  float32: 1 Conv (few multiply-accumulates)",
        "  float32: 2 Gemm (two inputs)",
        "  float32: 1 Gemm (a bias of another shape)",
        "  float32: MatMul '/blocks.3/down' (kept by --keep-float: alone it moves the answers by 0.012)",
    ]


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (replace(NOISE, n_images=1), "on 1 row of noise: answers off by at most 1.23% of the largest"),
        (replace(PHOTOS, n_images=1, outputs=()), "on 1 image: answers off by at most 2.34% of the largest"),
    ],
)  # fmt: skip
def test_how_far_the_answers_moved(comparison, said) -> None:
    assert said in describe_conversion(conversion(comparison=comparison)).splitlines()


def test_warnings_are_not_part_of_it() -> None:
    assert "said elsewhere" not in describe_conversion(conversion())
