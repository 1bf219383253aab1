"""Values on their way into JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from corp_onnx import __version__
from corp_onnx.results import CheckResult, Environment, StageTime, UnitResult, describe_environment, to_json


@dataclass(frozen=True)
class Holder:
    """Anything that a result may hold."""

    value: Any


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float64("nan"), None),
        (np.float32("-inf"), None),
        (np.float16(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (Path("a/b.onnx"), "a/b.onnx"),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ({"a": [np.float32("nan")], 3: "x"}, {"a": [None], "3": "x"}),
        ("± é \udcff", "± é \udcff"),
        (StageTime("load", 0.25), {"stage": "load", "seconds": 0.25}),
        ([CheckResult("x", True, np.nan, None, "y")],
         [{"name": "x", "passed": True, "difference": None, "tolerance": None, "detail": "y"}]),
    ],
)  # fmt: skip
def test_value_as_json(value: Any, expected: Any) -> None:
    assert json.loads(to_json(Holder(value))) == {"schema": 1, "value": expected}


def test_json_is_ascii() -> None:
    """A report can be written and printed in every encoding, whatever names the files have."""
    assert to_json(Holder("± \udcff")).isascii()


def test_schema_comes_first_and_fields_keep_their_order() -> None:
    unit = UnitResult("blocks.0.mlp", "mlp", 0, 8, 4, 0.1, 0.2, 3.0)
    assert list(json.loads(to_json(unit))) == [
        "schema", "key", "kind", "block", "width_before", "width_after", "error", "error_without", "condition_number",
    ]  # fmt: skip


def test_unknown_type_is_an_error() -> None:
    with pytest.raises(TypeError):
        to_json(Holder(object()))


def test_environment() -> None:
    found = describe_environment("cpu", 3)
    assert isinstance(found, Environment)
    assert (found.corp_onnx, found.provider, found.threads) == (__version__, "cpu", 3)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.versions["numpy"] == np.__version__
    assert found.versions["onnxruntime"] == onnxruntime.__version__
    assert found.machine
