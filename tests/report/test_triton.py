"""The table of a Triton repository, from results made up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corp_onnx.report.triton import print_repository
from corp_onnx.triton.repository import ServedModel, ServedTensor, ServedVersion, TritonRepository

DIGITS = ServedModel(
    name="digits", path="repo/digits", backend="onnxruntime", max_batch_size=8,
    inputs=(ServedTensor("x", "TYPE_FP32", (3, 32, 32)),), outputs=(ServedTensor("logits", "TYPE_FP32", (10,)),),
    n_labels=10, recipe=None, versions=(ServedVersion(1, "digits.onnx", "0" * 64, 1_550_000),),
)  # fmt: skip
TEXT = replace(
    DIGITS, name="text", path="repo/text", backend="python", max_batch_size=0, n_labels=0,
    inputs=(ServedTensor("ids", "TYPE_INT64", (-1, 9)), ServedTensor("mask", "TYPE_INT64", (-1, 9))),
    versions=(ServedVersion(1, "a.onnx", "0" * 64, 1_000_000), ServedVersion(3, "b.onnx", "1" * 64, 2_300_000)),
)  # fmt: skip


def test_models_versions_and_how_to_serve_them(printed) -> None:
    print_repository(TritonRepository("repo", (DIGITS,), ("said elsewhere",)))
    assert printed() == [
        "model backend takes gives labels max batch",
        "digits onnxruntime x TYPE_FP32 [3, 32, 32] logits TYPE_FP32 [10] 10 8",
        "repo/digits/1: digits.onnx, 1.6 MB",
        "serve it: tritonserver --model-repository=repo",
    ]


def test_several_inputs_no_labels_and_requests_that_are_not_joined(printed) -> None:
    print_repository(TritonRepository("repo", (TEXT,), ()))
    cells = " ".join(printed())
    for said in ("ids TYPE_INT64 [-1, 9],", "mask TYPE_INT64 [-1, 9]", "- fixed"):
        assert said in cells


def test_a_line_for_every_version_that_was_written(printed) -> None:
    print_repository(TritonRepository("a/b", (DIGITS, TEXT), ()))
    assert printed()[-4:] == [
        "repo/digits/1: digits.onnx, 1.6 MB",
        "repo/text/1: a.onnx, 1.0 MB",
        "repo/text/3: b.onnx, 2.3 MB",
        "serve it: tritonserver --model-repository=a/b",
    ]


def test_a_model_that_got_no_new_version_is_in_the_table_alone(printed) -> None:
    print_repository(TritonRepository("repo", (replace(DIGITS, versions=()),), ()))
    lines = printed()
    assert lines[1].startswith("digits ")
    assert lines[2:] == ["serve it: tritonserver --model-repository=repo"]


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_cuts_no_number(printed, narrow, kind) -> None:
    narrow(kind)
    print_repository(TritonRepository("repo", (replace(DIGITS, n_labels=1_000_000, max_batch_size=123_456),), ()))
    text = "\n".join(printed())
    for whole in ("1000000", "123456", "onnxruntime", "TYPE_FP32", "32]"):
        assert whole in text
