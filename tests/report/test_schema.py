"""The published schemas are those of the results, and every report validates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from golden import invoke
from reports import make_bench_result, make_prune_result
from samples import OPERATOR, fixture_path, write_photos
from schemas import FOLDER, RESULTS, make_schema, require_valid, schema_texts

from corp_onnx.cli.main import cli

SCHEMAS = {result.verb: make_schema(result) for result in RESULTS}


@pytest.mark.parametrize("name", sorted(schema_texts()))
def test_stored_schema_is_that_of_the_dataclasses(name: str) -> None:
    """A field that appears, goes or changes fails here: `python tests/support/golden.py`, and look at the diff."""
    stored = (FOLDER / name).read_text(encoding="utf-8")
    assert json.loads(stored) == json.loads(schema_texts()[name])


def test_every_verb_has_a_schema() -> None:
    assert len(SCHEMAS) == len(RESULTS) >= 12
    assert "" not in SCHEMAS, "a result that does not say its verb"
    assert {path.stem for path in FOLDER.glob("*.json")} == set(SCHEMAS)


def test_made_up_reports_validate_and_a_changed_field_does_not() -> None:
    report = json.loads(make_prune_result().to_json())
    jsonschema.validate(report, SCHEMAS["prune"])
    jsonschema.validate(json.loads(make_bench_result().to_json()), SCHEMAS["bench"])
    broken: list[dict[str, Any]] = [
        {**report, "more": 1},
        {key: value for key, value in report.items() if key != "network"},
        {**report, "verb": "bench"},
        {**report, "held_out": {**report["held_out"], "n_images": "80"}},
        {**report, "schema": 2},
    ]
    for one in broken:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(one, SCHEMAS["prune"])


def test_numbers_that_json_does_not_know_are_null() -> None:
    units = make_prune_result().units
    report = json.loads(make_prune_result(expected_memory_bytes=1).to_json())
    report["units"][0]["condition_number"] = None
    assert units
    jsonschema.validate(report, SCHEMAS["prune"])


CALLS: dict[str, tuple[str, ...]] = {
    "inspect": ("{dense}",),
    "prune": ("{dense}", "--calib", "photos", "--macs", "0.8", "--no-refit", "-o", "s.onnx"),
    "prune --plan": ("{dense}", "--calib", "photos", "--macs", "0.8"),
    "evaluate": ("s.onnx", "--images", "photos", "--reference", "{dense}"),
    "convert": ("s.onnx", "--fp16", "-o", "h.onnx"),
    "fit": ("s.onnx", "--target", "tensorrt", "-o", "f.onnx"),
    "bench": ("{dense}", "s.onnx", "--repeats", "2", "--batch", "1", "--threads", "1", "--provider", "cpu"),
    "triton": ("s.onnx", "-o", "repository"),
    "calibrate": ("{dense}", "--calib", "photos", "-o", "a.safetensors"),
    "merge": ("a.safetensors", "b.safetensors", "-o", "c.safetensors"),
    "sweep": ("{dense}", "--calib", "photos", "--budgets", "0.8", "--bench", "-o", "sweep"),
    "analyze": (
        "{dense}", "--calib", "photos", "--seeds", "2",
        *(word for study in ("depth", "images", "seeds", "shift") for word in ("--study", study)),
    ),
}  # fmt: skip
"""What is called with --json, in an order in which each finds its files."""

ELSEWHERE = {"engine": "tensorrt/test_engine.py", "export": "zoo/test_export.py"}
"""Reports of verbs whose libraries need a stand-in: they are validated where that stands."""

VERBS = {"merge": "calibrate", "prune --plan": "plan"}
"""By what is called: the verb that its report says it is of, where it is another."""


NO_TYPE = object()
"""Of no type that JSON has."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What verbs print with --json, of a small model."""
    folder, dense = tmp_path_factory.mktemp("reports"), str(fixture_path(OPERATOR))
    write_photos(folder / "photos", 24)
    write_photos(folder / "others", 8, seed=1)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke("calibrate", dense, "--calib", "others", "-o", "b.safetensors")
        for call, words in CALLS.items():
            found[call] = json.loads(invoke(*call.split(), *(w.format(dense=dense) for w in words), "--json"))
    return found


def test_every_verb_that_prints_a_report_is_called() -> None:
    prints = {name for name, verb in cli.commands.items() if any("--json" in option.opts for option in verb.params)}
    called = {call.split()[0] for call in CALLS} | set(ELSEWHERE)
    assert called == prints - {"report"}  # which prints the paths that it wrote
    assert {VERBS.get(call, call) for call in CALLS} | set(ELSEWHERE) == set(SCHEMAS)
    for place in ELSEWHERE.values():
        assert "require_valid(" in (Path(__file__).parent.parent / place).read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
def test_report_of_a_run_validates(call: str, reports: dict[str, Any]) -> None:
    require_valid(reports[call], VERBS.get(call, call))


@pytest.mark.long
@pytest.mark.parametrize("call", CALLS)
def test_a_changed_field_of_a_run_is_refused(call: str, reports: dict[str, Any]) -> None:
    verb, report = VERBS.get(call, call), reports[call]
    changed = [{key: value for key, value in report.items() if key != name} for name in report]
    changed += [{**report, name: NO_TYPE} for name in report]
    for one in [*changed, {**report, "more": 1}]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(one, SCHEMAS[verb])


def test_schemas_are_schemas() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert Path(FOLDER).name == "schema"
