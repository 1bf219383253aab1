"""The report of `bench` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from corp_onnx.errors import clean_text
from corp_onnx.report.figures import Bar, draw_bars
from corp_onnx.report.pages.common import bullets, show_origin, spread
from corp_onnx.report.parts import (
    Facts,
    Figure,
    Inline,
    Page,
    Section,
    Table,
    Text,
    count,
    digits,
    join,
    milliseconds,
    percent,
    times,
)
from corp_onnx.report.terminal import count_things, fit_names

NAME_ROOM = 24
"""Letters for the name of a model in a figure."""

CAPTION = (
    "Speed-up over the first model, round by round: the bar is the median, the line the middle half of the rounds."
)


def make_page(facts: Facts) -> Page:
    """All of one report."""
    return Page("Latency and speed-up", write_sentence(facts), (), tuple(_list_sections(facts)))


def write_sentence(facts: Facts) -> Inline:
    """The largest median speed-up, with the middle half of its rounds; or the latency of a model alone."""
    rows = facts.get("rows")
    names = name_models(facts)
    timed = [i for i, row in enumerate(rows) if row["speed"]["speedup"] is not None]
    if not timed:
        row = rows[0]
        return (f"{names[row['model']]} takes ", facts.datum("rows.0.speed.latency.p50", milliseconds),
                f" for batch {row['batch']} on {clean_text(row['provider'])}.")  # fmt: skip
    best = max(timed, key=lambda i: rows[i]["speed"]["speedup"]["median"])
    at, row = f"rows.{best}.speed.speedup", rows[best]
    ends = spread(facts, f"{at}.q1", f"{at}.q3", times)
    return join([
        f"{names[row['model']]} runs ", facts.datum(f"{at}.median", times), " as fast as "
        f"{names[rows[0]['model']]} at batch {row['batch']} on {clean_text(row['provider'])}", ends,
        "; in brackets the middle half of the rounds.",
    ])  # fmt: skip


def name_models(facts: Facts) -> dict[str, str]:
    """What stands for every path: as much of its end as tells it from the others."""
    paths = [row["model"] for row in facts.get("rows")]
    names, numbered = fit_names(paths, NAME_ROOM)
    return {path: clean_text(path if numbered else name) for path, name in names.items()}


def _list_sections(facts: Facts) -> Iterator[Section]:
    rows, names = facts.get("rows"), name_models(facts)
    for provider, batch in dict.fromkeys((row["provider"], row["batch"]) for row in rows):
        own = [i for i, row in enumerate(rows) if (row["provider"], row["batch"]) == (provider, batch)]
        yield _show_lane(facts, own, names, f"{clean_text(provider)}, batch {batch}")
    yield from bullets("Notes", facts.get("notes"))
    schedule, session = facts.get("schedule"), facts.get("session")
    threads = "every core" if session["threads"] is None else count_things(session["threads"], "thread")
    warmup = count_things(schedule["warmup"], "round")
    how = (
        f"Models took turns, {warmup} of warm-up; graph optimisation {session['optimisation']}, "
        f"{session['execution']}, {threads}."
    )
    files = [(names.get(model["path"], "model"), f"models.{i}") for i, model in enumerate(facts.get("models"))]
    yield show_origin(facts, files, (Text((how,)),))


def _show_lane(facts: Facts, own: list[int], names: dict[str, str], title: str) -> Section:
    rows = facts.get("rows")
    table: list[tuple[Inline, ...]] = []
    for i in own:
        at = f"rows.{i}.speed"
        has = rows[i]["speed"]["speedup"] is not None
        speedup = (facts.datum(f"{at}.speedup.median", times), *spread(
            facts, f"{at}.speedup.q1", f"{at}.speedup.q3", times)) if has else "-"  # fmt: skip
        table.append((names[rows[i]["model"]], facts.datum(f"{at}.latency.p50", milliseconds),
                      facts.datum(f"{at}.latency.p99", milliseconds), facts.datum(f"{at}.throughput", digits), speedup,
                      facts.datum(f"rows.{i}.ideal", times), facts.datum(f"rows.{i}.achieved", percent)))  # fmt: skip
    heads = ("model", "median", "99 of 100", "images/s", "speed-up", "by MACs", "of that")
    parts: list[Any] = [Table(heads, tuple(table))]
    bars = [_make_bar(rows[i], names) for i in own if rows[i]["speed"]["speedup"] is not None]
    if bars:
        draw = partial(draw_bars, bars, "times as fast as the first model", mark=1.0)
        parts.insert(0, Figure(f"Speed-up, {title}", draw, CAPTION))
    return Section(title, tuple(parts), (facts.datum(f"rows.{own[0]}.rounds", count), " rounds."))


def _make_bar(row: dict[str, Any], names: dict[str, str]) -> Bar:
    ratio = row["speed"]["speedup"]
    return Bar(names[row["model"]], ratio["median"], times(ratio["median"]), ratio["q1"], ratio["q3"])
