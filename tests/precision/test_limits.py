"""A conversion that some runtime answers wrongly says so."""

from __future__ import annotations

from pathlib import Path

from samples import DEMO

from corp_onnx.precision.convert import convert_model
from corp_onnx.precision.limits import warn_of_runtimes

SENTENCE = (
    "MNN 3.6.1 answers this file wrongly without a word; OpenCV dnn 5.0.0 and ncnn (20261020, behind pnnx) refuse it "
    "(docs/runtimes.md)."
)


def test_a_silent_runtime_is_named_and_a_loud_one_beside_it() -> None:
    assert warn_of_runtimes("int8-dynamic") == [SENTENCE]


def test_a_refusal_alone_is_no_warning() -> None:
    assert warn_of_runtimes("int8-static") == warn_of_runtimes("fp16") == []


def test_convert_warns(tmp_path: Path) -> None:
    assert SENTENCE in convert_model(DEMO, tmp_path / "m.onnx", int8="dynamic").warnings
