"""What pages of several verbs say: warnings, checks, time by stage, how to repeat it, environment and hashes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from corp_onnx.errors import InputError, clean_text
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.figures import Bar, draw_bars
from corp_onnx.report.outputs import list_legend
from corp_onnx.report.parts import (
    Bullets,
    Code,
    Datum,
    Facts,
    Figure,
    Form,
    Inline,
    Part,
    Section,
    Table,
    Text,
    digits,
    megabytes,
    seconds,
)
from corp_onnx.report.terminal import count_things
from corp_onnx.results.reading import read_result

Value = TypeVar("Value")


def show_warnings(facts: Facts) -> list[Section]:
    """What a reader must not miss."""
    lines = tuple(open_sentence(clean_text(line)) for line in facts.get("warnings"))
    return [Section("Warnings", (Text(lines, is_warning=True),))] if lines else []


def show_metrics(facts: Facts, source: str) -> Table:
    """Every figure of every output at a place, with its interval."""
    outputs = facts.get(source)
    rows: list[tuple[Inline, ...]] = []
    for o, output in enumerate(outputs):
        for m, metric in enumerate(output["metrics"]):
            at, name = f"{source}.{o}.metrics.{m}", metric["name"]
            form = partial(write_value, name)
            ends = (facts.datum(f"{at}.low", form), " to ", facts.datum(f"{at}.high", form))
            shown = "" if metric["low"] is None or metric["high"] is None else ends
            named = (clean_text(output["output"]),) if len(outputs) > 1 else ()
            rows.append((*named, name_metric(name), facts.datum(f"{at}.value", form), shown))
    legend = list_legend(metric["name"] for output in outputs for metric in output["metrics"])
    heads = (*(("output",) if len(outputs) > 1 else ()), "metric", "value", "interval")
    return Table(heads, tuple(rows), left=len(heads) - 2, caption="; ".join(legend))


def show_checks(facts: Facts) -> Section:
    """Every check with what it found and allowed."""
    rows: list[tuple[Inline, ...]] = []
    checks = facts.get("checks")
    for i, check in enumerate(checks):
        numbers = (facts.datum(f"checks.{i}.{name}", digits) for name in ("difference", "tolerance"))
        failed = "" if check["passed"] else "FAILED, "
        rows.append((f"{failed}{check['name']}: {clean_text(check['detail'])}", *numbers))
    lead = "All passed before the file got its name." if all(check["passed"] for check in checks) else ""
    return Section("Checks", (Table(("check", "difference", "allowed"), tuple(rows)),), lead)


def show_stages(facts: Facts) -> Section:
    """Wall time of every stage."""
    stages = facts.get("stages")
    bars = [Bar(stage["stage"], stage["seconds"], seconds(stage["seconds"])) for stage in stages]
    whole = facts.total("stages.*.seconds", seconds)
    figure = Figure("Wall time of each stage", partial(draw_bars, bars, "seconds"))
    table = _list_stages(facts)
    return Section("Where the time went", (figure, table), (whole, " in all."))


def _list_stages(facts: Facts) -> Table:
    stages = facts.get("stages")
    rows = [(stage["stage"], facts.datum(f"stages.{i}.seconds", seconds)) for i, stage in enumerate(stages)]
    return Table(("stage", "seconds"), tuple(rows), caption="The same in numbers", is_folded=True)


def show_origin(facts: Facts, files: Sequence[tuple[str, str]], parts: Sequence[Part] = ()) -> Section:
    """The command that repeats a run, and everything that its figures belong to.

    Args:
        files: (what a file is called, where its facts stand).
        parts: what else belongs here.
    """
    how = [show_command(facts)]
    rows: list[tuple[Inline, ...]] = []
    for title, at in files:
        size = (facts.datum(f"{at}.n_bytes", megabytes), f", sha256 {facts.text(f'{at}.sha256')}")
        path = facts.text(f"{at}.path")
        rows += [(path if title == path else f"{title}: {path}", size)]
    how.append(Table(("file", "size"), tuple(rows), left=2))
    how.append(Text((describe_machine(facts),)))
    how.extend(parts)
    return Section("How to repeat it", tuple(how))


def show_command(facts: Facts) -> Part:
    """What was typed, word by word."""
    command = facts.text("command")
    return Code(command) if command else Text(("Made by a program; its settings are below.",))


def describe_machine(facts: Facts) -> str:
    """The machine and the versions that figures belong to."""
    found = facts.get("environment")
    threads = "every core" if found["threads"] is None else count_things(found["threads"], "thread")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    software = f"corp-onnx {found['corp_onnx']}, Python {found['python']}, {versions}"
    return clean_text(f"Environment: {found['machine']}, {found['provider']}, {threads}; {software}.")


def read_facts(made: type[Value], facts: Facts) -> Value:
    """The result that a report is of, for who needs more than its numbers.

    Raises:
        InputError: something is missing: the report is of another version.
    """
    try:
        return read_result(made, facts.report)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{facts.name}: is of another version of corp-onnx ({error}). Make it anew.") from error


def list_settings(facts: Facts, source: str = "settings") -> Table:
    """Every setting, those inside others with a dot."""
    rows: list[tuple[Inline, ...]] = []

    def walk(value: object, name: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))
        else:
            rows.append((name, _write_setting(value)))

    walk(facts.get(source), "")
    return Table(("setting", "value"), tuple(rows), left=2, caption="Settings", is_folded=True)


def _write_setting(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(clean_text(str(item)) for item in value) or "none"
    return clean_text(str(value))


def bullets(title: str, lines: Sequence[str | Inline], lead: str = "") -> list[Section]:
    """A section of short texts; none where there are none."""
    texts = tuple(open_sentence(clean_text(line)) if isinstance(line, str) else line for line in lines)
    return [Section(title, (Bullets(texts),), lead)] if texts else []


def open_sentence(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def name_file(facts: Facts, source: str) -> str:
    """The last part of a path."""
    return facts.text(source).replace("\\", "/").rsplit("/", 1)[-1]


def spread(facts: Facts, low: str, high: str, form: Form) -> tuple[str | Datum, ...]:
    """The ends of an interval, in brackets; empty where there is none."""
    if facts.get(low) is None or facts.get(high) is None:
        return ()
    return (" (", facts.datum(low, form), " to ", facts.datum(high, form), ")")
