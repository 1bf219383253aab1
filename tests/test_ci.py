"""GitHub's CI runs what .ci/run runs, on the Pythons that the package says it supports."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def listed(key: str) -> set[str]:
    """The values of a list of the workflow that stands on one line."""
    (values,) = re.findall(rf"^ +{key}: \[(.+)\]$", WORKFLOW, re.MULTILINE)
    return {value.strip(' "') for value in values.split(",")}


def test_the_workflow_runs_every_target_of_the_script() -> None:
    lines = re.findall(r"^ *make ([^#\n]+)", RUN, re.MULTILINE)
    lines += re.findall(r"^browser=\((.+)\)$", RUN, re.MULTILINE)
    called = {word for line in lines for word in line.split() if not word.startswith(("-", '"', "."))}
    run = set(re.findall(r"run: make (\S+) PYTHON=python$", WORKFLOW, re.MULTILINE))
    assert (
        called
        == run | listed("target")
        == {
            *(
                "test",
                "test-long",
                "docs",
                "fuzz-short",
                "test-taylor",
                "test-triton",
                "test-tensorrt",
                "test-openvino",
                "test-cpp",
                "test-ray",
                "test-web",
            ),
        }
    )


def test_tests_of_a_kind_lie_where_their_target_looks() -> None:
    """A target reads a few files, since all of them take half a minute to collect."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {kind: places.split() for kind, places in re.findall(r"pytest -m (\w+)((?: tests/\S+)+)$", makefile, re.M)}
    assert named.keys() >= {"triton", "tensorrt", "openvino", "browser", "ray"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        kinds = set(re.findall(r"pytest\.mark\.(\w+)", path.read_text(encoding="utf-8"))) & named.keys()
        place = path.relative_to(ROOT).as_posix()
        assert all(any(f"{place}/".startswith(f"{at}/") for at in named[kind]) for kind in kinds), (place, kinds)


def test_its_targets_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"test", *listed("target")} <= targets


def test_it_tests_on_every_python_that_the_package_names() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert listed("python") == set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project))
