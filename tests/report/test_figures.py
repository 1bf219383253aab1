"""Figures are data: what their specifications hold, in which units, with titles, in colours that a page can turn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from reports import SCRIPT

from corp_onnx.report.figures import (
    Bar,
    Column,
    Spot,
    draw_bars,
    draw_depth,
    draw_losses,
    draw_plane,
    draw_tried,
    draw_unit_errors,
    draw_widths,
)
from corp_onnx.report.theme import COLOURS, NARROW, SERIES, WIDE, draw_svg, write_spec

MLP = Column("MLP", "of 768", ({"block": 0, "before": 768, "after": 312}, {"block": 2, "before": 768, "after": 768}))
QK = Column("QK", "of 64", ({"block": 1, "before": 64, "after": 8},))
ERRORS = Column("MLP", "1 unit", ({"block": 0, "error": 0.125, "error_without": 0.5},))
TRIED = ({"macs": 0.8, "value": 1.0, "low": 0.95, "how": "one-shot"},
         {"macs": 0.6, "value": 0.9, "low": 0.8, "how": "refitted"})  # fmt: skip
ALL = {
    "widths": lambda width: draw_widths((MLP, QK), width),
    "errors": lambda width: draw_unit_errors((ERRORS,), width),
    "losses": lambda width: draw_losses((Column("MLP", "at 384", ({"block": 0, "loss": 0.02},)),), "KL, nats", width),
    "depth": lambda width: draw_depth((0.01, 0.02, 0.05), width),
    "tried": lambda width: draw_tried(TRIED, 0.61, 0.9, "agreement", width),
    "bars": lambda width: draw_bars((Bar("load", 0.5, "0.5 s"), Bar("solve", 9.0, "9.0 s")), "seconds", width),
    "ratios": lambda width: draw_bars((Bar("a", 1.5, "1.50×", 1.4, 1.6),), "times as fast", width, mark=1.0),
    "plane": lambda width: draw_plane((Spot("a", 80, 97, 90, 99), Spot("b", 60, 92)), "MACs, %", "agreement, %", width),
}


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a specification."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of data in a specification."""
    stored = [row for rows in spec.get("datasets", {}).values() for row in rows]
    return stored + [row for part in walk(spec) if isinstance(part.get("values"), list) for row in part["values"]
                     if isinstance(row, dict)]  # fmt: skip


def test_widths_are_in_the_specification_row_by_row() -> None:
    spec = write_spec(draw_widths((MLP, QK), WIDE))
    assert [one["title"]["text"] for one in spec["hconcat"]] == ["MLP", "QK"]
    rows = values(spec)
    assert all(row in rows for row in (*MLP.rows, *QK.rows))
    domains = [part["scale"]["domain"] for part in walk(spec) if part.get("field") == "block"]
    assert domains
    assert all(domain == [0, 1, 2] for domain in domains)  # every column has every row, so that they can be read across


def test_errors_are_in_percent_and_depth_counts_blocks() -> None:
    rows = values(write_spec(draw_unit_errors((ERRORS,), WIDE)))
    assert {"block": 0, "error": 12.5, "error_without": 50.0} in rows
    assert {"block": 2, "error": 5.0, "part": 0} in values(write_spec(draw_depth((0.01, 0.02, 0.05), WIDE)))


def test_tried_sizes_with_what_was_asked_and_what_was_written() -> None:
    spec = write_spec(draw_tried(TRIED, 0.61, 0.9, "agreement", WIDE))
    rows = values(spec)
    assert {"macs": 80.0, "value": 100.0, "low": 95.0, "how": "one-shot"} in rows
    assert {"x": 61.0, "words": "written"} in rows
    assert {"y": 90.0, "words": "asked for: 0.9"} in rows


def test_bars_keep_their_order_and_intervals() -> None:
    spec = write_spec(draw_bars((Bar("z", 1.5, "1.50×", 1.4, 1.6), Bar("a", 2.0, "2.00×")), "times as fast", WIDE))
    named = [row["name"] for row in values(spec) if "end" not in row]
    assert named[:2] == ["z", "a"]
    assert all(part["sort"] is None for part in walk(spec) if part.get("field") == "name" and "sort" in part)


@pytest.mark.parametrize("name", ALL)
def test_axes_have_titles_with_units(name: str) -> None:
    spec = write_spec(ALL[name](WIDE))
    said = {part["title"] for part in walk(spec) if isinstance(part.get("title"), str)}
    wanted = {"widths": set(), "errors": {"error, %"}, "losses": {"KL, nats"}, "bars": {"seconds"},
              "depth": {"behind block", "error of the residual stream, %"}, "ratios": {"times as fast"},
              "tried": {"multiply-accumulates kept, %", "agreement kept, %"},
              "plane": {"MACs, %", "agreement, %"}}  # fmt: skip
    assert wanted[name] <= said


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", ALL)
def test_svg_turns_with_the_page_and_fits(name: str, width: int) -> None:
    svg = draw_svg(ALL[name](width))
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg)) - {"none", "transparent"}
    assert colours
    assert all(colour.startswith("var(--") for colour in colours), colours
    assert float(re.findall(r"max-width:([\d.]+)px", svg)[0]) <= width + 1
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_series_are_told_apart_with_any_colour_blindness() -> None:
    """Okabe and Ito's, and their lightness differs, so that paper without colour shows them, too."""
    light = [sum(w * int(c[i : i + 2], 16) for w, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5))) for c in SERIES]
    assert len({round(value) for value in light}) == len(SERIES)
    assert set(SERIES) <= set(COLOURS)


def test_names_inside_of_drawings_are_their_own() -> None:
    """Two drawings stand in one page, where an id must be of one of them."""
    import altair as alt

    def draw(width: int) -> str:
        data = alt.Data(values=[{"x": 0, "c": 0.0}, {"x": 1, "c": 1.0}])
        return draw_svg(alt.Chart(data, width=width, height=40).mark_point().encode(x="x:Q", color="c:Q"))

    wide = draw(WIDE)
    first, second = (set(re.findall(r' id="([^"]+)"', svg)) for svg in (wide, draw(NARROW)))
    assert first
    assert not first & second
    assert set(re.findall(r"url\(#([^)]+)\)", wide)) <= first


def test_names_are_escaped_in_figures() -> None:
    svg = draw_svg(draw_bars((Bar(SCRIPT, 1.0, SCRIPT),), "x", WIDE))
    assert "<script" not in svg
    assert "&lt;script" in svg
