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
from schemas import FOLDER, RESULTS, make_schema, schema_texts

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


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What verbs print with --json, of a small model."""
    folder = tmp_path_factory.mktemp("reports")
    dense, small, half, photos = fixture_path(OPERATOR), folder / "s.onnx", folder / "h.onnx", folder / "photos"
    write_photos(photos, 16)
    calls: dict[str, tuple[object, ...]] = {
        "inspect": (dense,),
        "prune": (dense, "--calib", photos, "--macs", "0.8", "--no-refit", "-o", small),
        "evaluate": (small, "--images", photos, "--reference", dense),
        "convert": (small, "--fp16", "-o", half),
        "fit": (small, "--target", "tensorrt", "-o", folder / "f.onnx"),
        "bench": (dense, small, "--repeats", "2", "--batch", "1", "--threads", "1", "--provider", "cpu"),
        "triton": (small, "-o", folder / "repository"),
    }
    return {verb: json.loads(invoke(verb, *map(str, call), "--json")) for verb, call in calls.items()}


@pytest.mark.parametrize("verb", ["inspect", "prune", "evaluate", "convert", "fit", "bench", "triton"])
def test_report_of_a_run_validates(verb: str, reports: dict[str, Any]) -> None:
    jsonschema.validate(reports[verb], SCHEMAS[verb])
    assert reports[verb]["verb"] == verb


def test_schemas_are_schemas() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert Path(FOLDER).name == "schema"
