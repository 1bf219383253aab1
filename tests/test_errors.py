"""Texts of errors: what a model says in them reaches no terminal as a command."""

from __future__ import annotations

import pytest

from corp_onnx.errors import CorpOnnxError, ModelError, clean_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/blocks.0/attn/MatMul: 3 ± 1 — naïve 学习 🦆", "/blocks.0/attn/MatMul: 3 ± 1 — naïve 学习 🦆"),
        ("\x1b[2J\x1b]0;title\x07name", "[2J]0;titlename"),
        ("\x9b31mred\x9c", "31mred"),
        ("name\ncorp-onnx: all is well.\r\n", "name corp-onnx: all is well.  "),
        ("a\tb\x0b\x0c\x85\u2028\u2029c", "a b     c"),
        ("x\u202egpj.exe\u2066", "xgpj.exe"),
        ("\ud800half\udcff\0", "\ufffdhalf\ufffd"),
        ("\xa0wide", "\xa0wide"),
    ],
)
def test_clean_text(text: str, shown: str) -> None:
    assert clean_text(text) == shown
    assert str(ModelError(text)) == shown


def test_every_error_is_clean() -> None:
    kinds, todo = [], [CorpOnnxError]
    while todo:
        kinds.append(todo.pop())
        todo += kinds[-1].__subclasses__()
    assert len(kinds) > 9
    assert {str(kind("a\x1bb\nc")) for kind in kinds} == {"ab c"}
