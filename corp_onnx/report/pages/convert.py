"""The report of `convert` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator

from corp_onnx.errors import clean_text
from corp_onnx.report.pages.common import (
    list_settings,
    name_file,
    show_checks,
    show_metrics,
    show_origin,
    show_stages,
    show_warnings,
)
from corp_onnx.report.parts import (
    Facts,
    Inline,
    Page,
    Part,
    Section,
    Table,
    Text,
    Tile,
    count,
    digits,
    join,
    megabytes,
    percent,
)


def make_page(facts: Facts) -> Page:
    """All of one report."""
    title = f"{name_file(facts, 'converted.path')}, {facts.text('converted.precision')}"
    tiles = (
        Tile("of the bytes", facts.ratio("converted.n_bytes", "source.n_bytes", percent),
             (facts.datum("source.n_bytes", megabytes), " → ", facts.datum("converted.n_bytes", megabytes))),
        Tile("of the MACs in 8 bits", facts.datum("integer_share", percent)),
    )  # fmt: skip
    return Page(title, write_sentence(facts), tiles, tuple(_list_sections(facts)))


def write_sentence(facts: Facts) -> Inline:
    """The new file, its size, and how far its answers are off."""
    judged = facts.get("comparison.outputs")
    at = next((f"comparison.outputs.{o}.metrics.{m}" for o, output in enumerate(judged) if output["is_judged"]
               for m, metric in enumerate(output["metrics"]) if metric["name"] == "agreement"), "")  # fmt: skip
    start = (f"{name_file(facts, 'converted.path')} is {name_file(facts, 'source.path')} in "
             f"{facts.text('converted.precision')}: ", facts.ratio("converted.n_bytes", "source.n_bytes", percent),
             " of the bytes")  # fmt: skip
    n = facts.datum("comparison.n_images", count)
    what = " rows of noise." if facts.get("comparison.data") == "noise" else " images."
    if at:
        return join([start, "; the same first answer on ", facts.datum(f"{at}.value", percent), " of ", n, what])
    off = facts.datum("comparison.max_difference", percent)
    return join([start, "; outputs are off by at most ", off, " of the largest value, on ", n, what])


def _list_sections(facts: Facts) -> Iterator[Section]:
    yield from show_warnings(facts)
    parts: list[Part] = [show_metrics(facts, "comparison.outputs")] if facts.get("comparison.outputs") else []
    parts.append(Text((("Largest difference, over the largest value: ",
                        facts.datum("comparison.max_difference", digits), "."),)))  # fmt: skip
    yield Section("How far the answers moved", tuple(parts))
    if kept := facts.get("kept_products"):
        rows: list[tuple[Inline, ...]] = [
            (clean_text(one["node"]), clean_text(one["op"]), clean_text(one["reason"]),
             facts.datum(f"kept_products.{i}.macs", count))
            for i, one in enumerate(kept)
        ]  # fmt: skip
        yield Section("Products that stay in float", (Table(("node", "operator", "why", "MACs"), tuple(rows), left=3),))
    yield show_checks(facts)
    yield show_stages(facts)
    yield show_origin(facts, [("source", "source"), ("converted", "converted")], (list_settings(facts),))
