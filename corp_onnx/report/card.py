"""A report of `prune` as a model card in the form of the Hugging Face hub: a README.md with metadata in YAML.

Enters the report; leaves the text. What nobody but the publisher knows, the licence first of all, is left to fill in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corp_onnx._version import __version__
from corp_onnx.errors import InputError, clean_text
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.outputs import describe_promise
from corp_onnx.report.page import flatten
from corp_onnx.report.pages.common import open_sentence
from corp_onnx.report.pages.prune import write_sentence
from corp_onnx.report.parts import Datum, Facts
from corp_onnx.report.theme import require_report
from corp_onnx.results import Promise
from corp_onnx.staging import staged_files, write_text

PIPELINES = {"classify": "image-classification", "embed": "image-feature-extraction"}
"""The hub's name of a task, where photographs go in and the task leaves no doubt."""


def write_card(facts: Facts, path: Path, *, force: bool = False) -> None:
    """Write the card of a report of `prune`.

    Raises:
        InputError: it is no report of `prune`.
        MissingExtraError: the extra `report` is not installed.
        OutputError: it can not be written.
    """
    text = render_card(facts)
    with staged_files({"--card": path}, force=force) as (staged,):
        write_text(text, staged, path)


def render_card(facts: Facts) -> str:
    """The text of a card; names that others chose are escaped or stand in code spans."""
    if facts.report.get("verb") != "prune":
        raise InputError(f"{facts.name or 'the report'}: a model card is made of a report of prune.")
    jinja2 = require_report("jinja2")
    markup = require_report("markupsafe").Markup
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corp_onnx.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["code"] = lambda text: markup(write_code(str(text)))
    environment.filters["quote"] = lambda value: markup(json.dumps(value))
    held = facts.get("held_out")
    return environment.get_template("card.md.j2").render(
        facts=facts.report, name=Path(facts.text("pruned.path")).name, base=Path(facts.text("dense.path")).name,
        pipeline=find_pipeline(facts), metrics=list_metrics(facts), version=__version__,
        sentence="".join(p.text if isinstance(p, Datum) else p for p in flatten(write_sentence(facts))),
        promise=open_sentence(describe_promise(Promise(**held["promise"]))),
    )  # fmt: skip


def find_pipeline(facts: Facts) -> str | None:
    """The hub's name of the task of what is judged; None where inputs are no photographs, or there is no such name."""
    if facts.get("calibration.recipe") is None:
        return None
    task = next((output["task"] for output in facts.get("held_out.outputs") if output["is_judged"]), "")
    return PIPELINES.get(task)


def list_metrics(facts: Facts) -> list[dict[str, Any]]:
    """Every metric of what is judged, with its name, value and interval in words."""
    found: list[dict[str, Any]] = []
    for output in (output for output in facts.get("held_out.outputs") if output["is_judged"]):
        for metric in output["metrics"]:
            ends = [write_value(metric["name"], metric[end]) for end in ("low", "high") if metric[end] is not None]
            found.append({
                "type": metric["name"], "value": metric["value"], "title": name_metric(metric["name"]),
                "output": clean_text(output["output"]), "text": write_value(metric["name"], metric["value"]),
                "interval": " to ".join(ends),
            })  # fmt: skip
    return found


def write_code(text: str) -> str:
    """Text as a code span of Markdown, which shows it letter by letter."""
    inner = " ".join(clean_text(text).replace("`", "'").replace("|", "¦").split())
    return f"`{inner}`"
