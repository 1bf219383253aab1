"""tools/runtimes.py without other runtimes: its child process, what is said of a failure, the record and the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from samples import DEMO, ROOT

from corp_onnx.precision.conversion import SUFFIXES
from corp_onnx.precision.limits import LIMITS

RECORD = json.loads((ROOT / "docs" / "runtimes.json").read_text(encoding="utf-8"))
NOT_OURS = {("tvm", "fp16"), ("reference", "fp16"), ("reference", "int8-static")}
"""Too slow here, and the evaluator knows no DequantizeLinear of opset 17. Nobody deploys with these."""

TARGETS = {"float16": "fp16", "int8-static": "int8-static", "int8-dynamic": "int8-dynamic"}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import runtimes

    yield runtimes
    for name in [name for name in sys.modules if name.partition(".")[0] in ("runners", "runtimes")]:
        del sys.modules[name]


@pytest.fixture
def cache(tool: ModuleType, tmp_path: Path) -> Path:
    """In it the environment of ONNX Runtime is the one that runs the tests."""
    programs = tmp_path / tool.REFERENCE.name / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    (programs.parent / ".installed").write_text("\n".join(tool.REFERENCE.packages))
    return tmp_path


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    np.save(tmp_path / "pixels.npy", np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32))
    return tmp_path / "pixels.npy"


def test_a_child_answers_and_times(tool: ModuleType, cache: Path, pixels: Path) -> None:
    answers = json.loads(tool.run_child(tool.REFERENCE, cache, ["answer", DEMO, pixels, "2:4", "1:2"], 60))
    assert [np.shape(answers[batch]) for batch in "21"] == [(4, 10), (2, 10)]
    np.testing.assert_allclose(answers["1"], answers["2"][:2], atol=1e-5)
    taken = json.loads(tool.run_child(tool.REFERENCE, cache, ["time", DEMO, DEMO, pixels, "1:2"], 60))
    assert np.shape(taken["1"]) == (2, 2)
    assert np.min(taken["1"]) > 0


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("kill -SEGV $$", "crashes (signal 11)"),
        ("sleep 9", "no answer within 1 s"),
        ("echo 'Traceback:' >&2; echo 'x.RuntimeError: no /a/b/such.onnx' >&2; exit 1", "x.RuntimeError: no such.onnx"),
        ("true", ""),
    ],
)
def test_a_failure_is_a_sentence(tool: ModuleType, cache: Path, program: str, sentence: str) -> None:
    (cache / tool.REFERENCE.name / "bin" / "python").write_text(f"#!/bin/sh\n{program}\n")
    with pytest.raises(tool.Broken) as found:
        tool.run_child(tool.REFERENCE, cache, ["answer"], 1)
    assert str(found.value) == sentence


@pytest.mark.usefixtures("tool")
def test_no_backtrace_and_no_novel() -> None:
    from runners.environments import LONGEST, shorten

    assert shorten("a.TractError: one\nStack backtrace:\n 0: two") == "a.TractError: one"
    assert len(shorten("ValueError: " + "x" * 999)) == LONGEST + 2


def test_answers_beside_each_other(tool: ModuleType) -> None:
    expected = np.array([[1.0, 2.0], [4.0, 3.0]])
    found = tool.compare(expected + np.array([[1.5, 0.0], [0.0, 0.0]]), expected)
    assert found == {"n": 2, "equal": 1, "difference": 1.5, "relative": 0.375}
    assert tool.compare(expected[:1], expected)["equal"] == 0


def test_only_takes_runtimes_and_files(tool: ModuleType) -> None:
    runtimes, files = ["tract", "tvm"], ["demo.dense.float32", "demo.merged.float32"]
    assert [name for name in runtimes if tool.is_asked(name, ["tract", "*merged*"], runtimes)] == ["tract"]
    assert [name for name in files if tool.is_asked(name, ["tract", "*merged*"], files)] == files[1:]
    assert all(tool.is_asked(name, None, files) for name in files)


def test_the_page_is_that_of_the_record(tool: ModuleType) -> None:
    """`python tools/runtimes.py --table` changes nothing, and every runtime was tried."""
    assert list(RECORD["runtimes"]) == [runtime.name for runtime in tool.RUNTIMES]
    assert tool.write_page(RECORD) == (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")


def test_the_record_is_of_the_versions_that_the_tool_installs(tool: ModuleType) -> None:
    for runtime in tool.RUNTIMES:
        assert RECORD["runtimes"][runtime.name]["packages"] == [*runtime.packages, *runtime.bare]


def test_the_known_limits_are_those_of_the_record(tool: ModuleType) -> None:
    """Of files without merged tokens, in converted precisions: what is silently wrong, and what is refused."""
    assert {*TARGETS.values()} == {*SUFFIXES}
    for silent, verdict in ((True, "wrong"), (False, "refused")):
        known = {(limit.runtime, target) for limit in LIMITS if limit.silent == silent for target in limit.targets}
        found = {
            (name, TARGETS[precision])
            for name, rows in RECORD["runtimes"].items()
            for stem, row in rows["files"].items()
            for _, shape, precision in [stem.split(".")]
            if precision in TARGETS and shape == "pruned" and tool.judge(row) == verdict
        }
        assert found - NOT_OURS == known


def test_nothing_in_float32_is_wrong(tool: ModuleType) -> None:
    for name, rows in RECORD["runtimes"].items():
        wrong = [stem for stem, row in rows["files"].items() if "float32" in stem and tool.judge(row) == "wrong"]
        assert not wrong, name
