"""Any number of reports side by side: an overview, then every one of them whole. Enters pages; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.figures import Spot, draw_plane
from corp_onnx.report.pages.common import spread
from corp_onnx.report.parts import (
    Bullets,
    Facts,
    Figure,
    Inline,
    Page,
    Section,
    Table,
    count,
    join,
    megabytes,
    percent,
    times,
)


def make_comparison(reports: Sequence[Facts], pages: Sequence[Page]) -> Page:
    """An overview of reports and, below it, their pages."""
    what = ", ".join(f"{n} of {verb}" for verb in dict.fromkeys(_verbs(reports)) for n in [_verbs(reports).count(verb)])
    lines = tuple(join([f"{facts.name}: ", page.sentence]) for facts, page in zip(reports, pages, strict=True))
    first = Section("In a sentence each", (Bullets(lines),))
    sections = (first, *_show_pruned([facts for facts in reports if facts.report["verb"] == "prune"], reports))
    return Page("Reports side by side", f"{len(reports)} reports: {what}.", (), sections, tuple(pages))


def _verbs(reports: Sequence[Facts]) -> list[str]:
    return [str(facts.report["verb"]) for facts in reports]


def _show_pruned(pruned: Sequence[Facts], reports: Sequence[Facts]) -> Iterator[Section]:
    if len(pruned) < 2:
        return
    metric = "held_out.promise.metric"
    alike = len({facts.get(metric) for facts in pruned}) == 1
    title = f"{name_metric(pruned[0].get(metric))}, with interval" if alike else "kept, with interval"
    rows: list[tuple[Inline, ...]] = []
    for facts in pruned:
        form = partial(write_value, facts.get(metric))
        name = "" if alike else f"{name_metric(facts.get(metric))} "
        kept = (name, facts.datum("held_out.promise.value", form),
                *spread(facts, "held_out.promise.low", "held_out.promise.high", form))  # fmt: skip
        rows.append((facts.name, facts.ratio("pruned.macs", "dense.macs", percent),
                     facts.ratio("pruned.n_parameters", "dense.n_parameters", percent),
                     facts.datum("pruned.n_bytes", megabytes), kept, facts.datum("held_out.promise.n_images", count),
                     _find_speed(facts, reports)))  # fmt: skip
    heads = ("report", "MACs kept", "parameters kept", "file", title, "on images", "speed-up")
    parts = [_draw(pruned)] if alike else []
    caption = (
        "Speed-up: measured by the run itself, or by a bench among these reports that timed the same two files (by "
        "their sha256), the largest batch; - where nobody did."
    )
    yield Section("Pruned models", (*parts, Table(heads, tuple(rows), caption=caption)))


def _draw(pruned: Sequence[Facts]) -> Figure:
    promise = [facts.get("held_out.promise") for facts in pruned]
    scale = 100 if write_value(promise[0]["metric"], 0.5).endswith("%") else 1
    spots = [
        Spot(facts.name, 100 * facts.get("pruned.macs") / facts.get("dense.macs"), scale * p["value"],
             *(None if p[end] is None else scale * p[end] for end in ("low", "high")))
        for facts, p in zip(pruned, promise, strict=True)
    ]  # fmt: skip
    unit = ", %" if scale == 100 else ""
    draw = partial(draw_plane, spots, "multiply-accumulates kept, %", f"{name_metric(promise[0]['metric'])}{unit}")
    caption = "Points: on each run's own held-back images; lines: their intervals. Only equal images compare exactly."
    return Figure("What is kept at which cost", draw, caption)


def _find_speed(facts: Facts, reports: Sequence[Facts]) -> Inline:
    """How many times as fast, by whoever measured it."""
    if facts.get("speed") and facts.get("speed.measured") is not None:
        return (facts.datum("speed.measured", times), *spread(facts, "speed.q1", "speed.q3", times))
    pair = (facts.get("dense.sha256"), facts.get("pruned.sha256"))
    for bench in (one for one in reports if one.report["verb"] == "bench"):
        hashes = {model["path"]: model["sha256"] for model in bench.get("models")}
        rows = bench.get("rows")
        own = [i for i, row in enumerate(rows) if row["speed"]["speedup"] is not None
               and (hashes.get(rows[0]["model"]), hashes.get(row["model"])) == pair]  # fmt: skip
        if own:
            at = f"rows.{max(own, key=lambda i: rows[i]['batch'])}.speed.speedup"
            return (bench.datum(f"{at}.median", times), *spread(bench, f"{at}.q1", f"{at}.q3", times))
    return "-"
