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
from samples import OPERATOR, fixture_path, write_photos

import corp_onnx
from corp_onnx import __version__
from corp_onnx.results import (
    CheckResult,
    Environment,
    Result,
    Rows,
    StageTime,
    UnitResult,
    describe_environment,
    to_json,
)


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


@dataclass(frozen=True, slots=True, repr=False)
class Made(Result):
    """A result of a verb that does not exist."""

    path: str

    @property
    def summary(self) -> str:
        """Its path."""
        return f"{self.path}: done"

    @property
    def table(self) -> Rows:
        """Its path."""
        return [("", "file"), ("new", self.path)]


class TestResult:
    def test_one_line_a_table_and_json(self) -> None:
        made = Made("a.onnx")
        assert repr(made) == str(made) == "Made(a.onnx: done)"
        assert json.loads(made.to_json()) == {"schema": 1, "verb": "", "path": "a.onnx"}
        assert made._repr_html_() == (
            "<table><thead><tr><th></th><th>file</th></tr></thead>"
            "<tbody><tr><td>new</td><td>a.onnx</td></tr></tbody></table>"
        )

    def test_a_name_is_text_wherever_it_is_shown(self) -> None:
        made = Made("<script src='//x'>&\x1b[2J\n.onnx")
        assert "\n" not in repr(made)
        assert "\x1b" not in repr(made) + made._repr_html_()
        assert "&lt;script src=&#x27;//x&#x27;&gt;&amp;" in made._repr_html_()
        assert "<script" not in made._repr_html_()

    def test_what_every_verb_returns_is_one(self) -> None:
        names = ["PruneResult", "Inspection", "Evaluation", "BenchResult", "ConvertResult", "EngineResult",
                 "ExportResult", "TritonRepository"]  # fmt: skip
        for name in names:
            kind = getattr(corp_onnx, name)
            assert issubclass(kind, Result)
            assert kind.__repr__ is Result.__repr__, f"{name}: repr=False"
            assert {"summary", "table"} <= set(vars(kind)), name

    def test_of_real_ones(self, tmp_path: Path) -> None:
        """One line that names the file and no dump of tuples; as many cells in every row as heads."""
        photos = write_photos(tmp_path / "photos", 16)
        model, small = fixture_path(OPERATOR), tmp_path / "small.onnx"
        found: list[Result] = [
            corp_onnx.inspect_model(model),
            corp_onnx.prune_model(model, photos, small, preset="paper"),
            corp_onnx.evaluate_models([small], photos, reference=model),
            corp_onnx.bench_models([model, small], repeats=1, batches=[1], providers=["cpu"]),
            corp_onnx.bench_models([small], repeats=1, batches=[1], providers=["cpu"]),
            corp_onnx.convert_model(small, tmp_path / "half.onnx", fp16=True),
        ]
        for result in found:
            said = repr(result)
            assert said.startswith(f"{type(result).__name__}(")
            assert "onnx" in said
            assert "((" not in said
            assert len(said.replace(str(tmp_path), "").replace(str(model.parent), "")) < 200
            heads, *rows = result.table
            assert rows
            assert all(len(row) == len(heads) for row in rows)
            assert json.loads(result.to_json())["schema"] == 1
        assert "units with" in repr(found[0])
        assert "of the MACs, " in repr(found[1])
        assert "agreement " in repr(found[1])
        assert "images" in repr(found[2])
        assert "times as fast at cpu batch 1" in repr(found[3])
        assert " ms at cpu batch 1" in repr(found[4])
        assert "float16" in repr(found[5])


def test_everything_that_is_offered_is_there() -> None:
    """All settings among it."""
    for name in corp_onnx.__all__:
        assert getattr(corp_onnx, name) is not None
    settings = {name for name in corp_onnx.__all__ if name.endswith("Settings")}
    assert settings == {
        "ConvertSettings",
        "EngineSettings",
        "ExportSettings",
        "PruneSettings",
        "SweepSettings",
        "TritonSettings",
    }
