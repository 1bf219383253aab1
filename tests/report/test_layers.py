"""The layers of an engine as a table, from values made up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corp_onnx.report.layers import LEGEND, describe_reasons, print_layers
from corp_onnx.tensorrt.explain import Explanation, PartLayers

FUSED = PartLayers("blocks.0", "fused", (64, 64), 12, 4, 0, ("float16",), "")
APART = replace(FUSED, part="blocks.1", attention="apart", widths=(32, 64), kernels=16, paddings=3, reason="needs it")
BEFORE = PartLayers("before", "-", None, 3, 1, 1, ("float16", "float32"), "")
FOUND = Explanation(31, {"kgen": 20, "gemm": 11}, 1, 2, 4, (BEFORE, FUSED, APART))


def test_a_table_and_what_stands_below(capsys: pytest.CaptureFixture[str]) -> None:
    print_layers(FOUND)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["attention", "width", "kernels", "products", "padding", "precision"]
    assert [line.split() for line in lines[2:5]] == [
        ["before", "-", "-", "3", "1", "1", "float16,", "float32"],
        ["blocks.0", "fused", "64", "12", "4", "0", "float16"],
        ["blocks.1", "apart", "32/64", "16", "4", "3", "float16"],
    ]
    assert lines[5:] == [
        LEGEND,
        "31 kernels (20 kgen, 11 gemm), 4 padding copies",
        "fused attention: 1 of 2",
        "not fused: needs it (block 1)",
    ]
    assert max(map(len, lines[:5])) <= 80


def test_without_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    print_layers(Explanation(1, {"kgen": 1}, 0, 0, 1, (), "its blocks were not found: why"))
    assert capsys.readouterr().out.splitlines() == [
        "1 kernel (1 kgen), 1 padding copy", "fused attention: 0", "its blocks were not found: why"
    ]  # fmt: skip


def test_blocks_with_the_same_reason_are_one_line() -> None:
    odd = replace(FUSED, reason="is odd")
    found = replace(FOUND, parts=(BEFORE, APART, APART, APART, FUSED, odd, APART, odd, odd))
    assert describe_reasons(found) == [
        "not fused: needs it (blocks 0 to 2, 5)",
        "fused at a cost: is odd (blocks 4, 6, 7)",
    ]
