"""The JSON schemas of reports, made from the dataclasses by pydantic. `python tests/support/golden.py` writes them.

They stand in docs/schema/, one a verb: whoever reads reports can hold them against these, and a field that appears,
goes or changes its type changes a file that a test compares.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import jsonschema
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

import corp_onnx
from corp_onnx.results import SCHEMA, Result

FOLDER = Path(__file__).parent.parent.parent / "docs" / "schema"

MODULES = [importlib.import_module(m.name) for m in pkgutil.walk_packages(corp_onnx.__path__, "corp_onnx.")
           if not m.name.endswith("__main__")]  # fmt: skip
_found = {value for module in MODULES for value in vars(module).values()
          if isinstance(value, type) and issubclass(value, Result) and value is not Result}  # fmt: skip
RESULTS: tuple[type[Result], ...] = tuple(sorted(_found, key=lambda result: result.verb))
"""What verbs return: every one that any module of the package defines."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """As JSON is written: a number may be null, since NaN and infinities become that."""

    def float_schema(self, schema: Any) -> Any:
        return {"anyOf": [super().float_schema(schema), {"type": "null"}]}


def make_schema(result: type[Result]) -> dict[str, Any]:
    """The schema of a verb's report: every field is there, and no other."""
    made = TypeAdapter(result).json_schema(mode="serialization", schema_generator=_Generator)
    made["properties"] = {"schema": {"const": SCHEMA}, "verb": {"const": result.verb}, **made["properties"]}
    for part in (made, *made.get("$defs", {}).values()):
        if "properties" in part:
            part["required"], part["additionalProperties"] = list(part["properties"]), False
    return {"$schema": DIALECT, **_untitled(made)}


def _untitled(value: Any) -> Any:
    """Without the titles that pydantic makes of names, which say nothing new."""
    if isinstance(value, list):
        return [_untitled(item) for item in value]
    if isinstance(value, dict):
        return {k: _untitled(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    return value


def require_valid(report: dict[str, Any], verb: str) -> None:
    """Fail unless a report says that it is of this verb, and validates against the schema that is published for it."""
    assert report["verb"] == verb
    jsonschema.validate(report, json.loads((FOLDER / f"{verb}.json").read_text(encoding="utf-8")))


def schema_texts() -> dict[str, str]:
    """Every schema as it is stored, by file name."""
    return {f"{result.verb}.json": json.dumps(make_schema(result), indent=1) + "\n" for result in RESULTS}
