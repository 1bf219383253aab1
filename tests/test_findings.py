"""What is found out once is not found out again, under the same conditions only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corp_onnx.errors import InputError
from corp_onnx.findings import Findings, Subject, read_findings
from corp_onnx.tensor_file import write_tensors


def make(value: float) -> dict[str, np.ndarray]:
    return {"x": np.array(value), "y": np.full(3, value)}


def test_a_stage_works_once_for_each_key() -> None:
    findings, calls = Findings(), list[float]()

    def ask(of: Findings, key: dict[str, object], value: float) -> float:
        return float(of.recall("probes", key, lambda: (calls.append(value), make(value))[1])["x"])

    assert [ask(findings, {"seed": 0}, 1), ask(findings, {"seed": 0}, 2), ask(findings, {"seed": 1}, 3)] == [1, 1, 3]
    assert ask(findings.part("fold 0"), {"seed": 0}, 4) == 4
    assert ask(findings.part("fold 0"), {"seed": 0}, 5) == 4
    assert calls == [1, 3, 4]
    assert findings.find("other", {"seed": 0}) is None


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    findings = Findings(Subject("model", "images", "recipe"), {"images": "here"})
    assert not findings.is_new
    findings.part("fold").keep("moments/a.b", {"n": (1, 2)}, make(1))
    findings.keep("orders/c", {}, make(2))
    assert findings.is_new
    size = findings.write(tmp_path / "f")
    assert size == (tmp_path / "f").stat().st_size
    assert not findings.is_new
    again = read_findings(tmp_path / "f")
    assert (again.subject, again.about, again.is_new) == (findings.subject, {"images": "here"}, False)
    assert again.list_stages() == ("moments", "orders")
    assert again.list_parts("moments") == ("moments/a.b",)
    found = again.part("fold").find("moments/a.b", {"n": [1, 2]})
    assert found is not None
    assert found["y"].tolist() == [1, 1, 1]
    assert again.find("moments/a.b", {"n": (1, 2)}) is None


def test_names_differ_with_the_subject() -> None:
    names = {Subject(m, i, r).name for m in "ab" for i in "cd" for r in "ef"}
    assert len(names) == 8


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {}, {})
    with pytest.raises(InputError, match="found another safetensors file; calibrate anew"):
        read_findings(tmp_path / "a")
    write_tensors(tmp_path / "a", {}, {"schema": "99", "subject.model": "m"})
    with pytest.raises(InputError, match="of schema 1, found schema 99"):
        read_findings(tmp_path / "a")


def test_values_are_held_where_runs_share_them() -> None:
    """By the key and by the part of the images, like everything that is found; made each time for a single run."""
    findings, made = Findings(), []

    def make() -> object:
        made.append(object())
        return made[-1]

    assert findings.hold("choices", {"seed": 0}, make) is not findings.hold("choices", {"seed": 0}, make)
    findings.share()
    first = findings.hold("choices", {"seed": 0}, make)
    assert findings.hold("choices", {"seed": 0}, make) is first
    assert findings.hold("choices", {"seed": 1}, make) is not first
    assert findings.part("fold 1").hold("choices", {"seed": 0}, make) is not first
    assert not findings.is_new
