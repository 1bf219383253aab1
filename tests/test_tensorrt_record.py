"""docs/compatibility.md carries what docs/tensorrt.json says of these graphs; make test-tensorrt builds them."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
from samples import FIXTURES, ROOT

RECORD = json.loads((ROOT / "docs" / "tensorrt.json").read_text(encoding="utf-8"))


def test_the_section_is_that_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import tensorrt_builds

    monkeypatch.delitem(sys.modules, "tensorrt_builds")
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert page.endswith(tensorrt_builds.render(RECORD))


def test_the_record_is_of_these_bytes() -> None:
    found = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in FIXTURES.glob("*.onnx")}
    assert found == {name: file["sha256"] for name, file in RECORD["files"].items()}


def test_every_refusal_has_a_reason() -> None:
    files = RECORD["files"].values()
    errors = [
        way["error"] for file in files for way in (file["as_it_stands"], file["float16"]) if way and "error" in way
    ]
    assert errors
    assert all(errors)
