"""Figures as functions of values: rows of numbers and a width in pixels -> an Altair chart.

What a chart shows is its data, so that the numbers of a figure can be read back out of its specification. Blocks run
down the page in the order in which an image meets them; kinds of units stand side by side in columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from corp_onnx.report.theme import BLUE, FAINT, INK, MUTED, PAPER, SERIES, import_altair

STEP = 17
"""Pixels of a row."""

MARGIN = 34
"""Pixels for the names of rows, as `11`."""

GAP, NUMBER = 18, 26
"""Pixels between two columns, and for the number at the end of a row."""


MOST = 300
"""Pixels of a column: one alone need not fill the page."""


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of unit, block by block: `rows` hold `block` and the numbers that a figure reads.

    Attributes:
        title: of the kind.
        subtitle: in what it is counted, or of how many.
        blocks: all rows of the figure; set by who puts columns side by side.
    """

    title: str
    subtitle: str
    rows: tuple[dict[str, Any], ...]
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with its name, and the ends of an interval where there is one; `note` is written behind it."""

    name: str
    value: float
    note: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """A model in a plane: its cost, what it keeps, the ends of an interval of that, and its name."""

    name: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


def draw_widths(columns: Sequence[Column], width: int) -> Any:
    """Every unit's width before (grey) and after (colour); rows hold `before` and `after`."""
    alt = import_altair()

    def draw(column: Column, colour: str, first: bool, room: int) -> Any:
        top = max(row["before"] for row in column.rows)
        scale = alt.Scale(domain=[0, top])
        base = _rows(alt, column, first, room - NUMBER)
        x = alt.X("before:Q", scale=scale, axis=None)
        before = base.mark_bar(color=FAINT, height=STEP - 5).encode(x=x)
        after = base.mark_bar(color=colour, height=STEP - 5).encode(x=alt.X("after:Q", scale=scale, axis=None))
        number = base.mark_text(align="left", dx=4, color=INK).encode(x=alt.datum(top), text=alt.Text("after:Q"))
        return before + after + number

    return _side_by_side(alt, columns, width, draw)


def draw_unit_errors(columns: Sequence[Column], width: int) -> Any:
    """Every unit's error with compensation (filled) and only cut (hollow), in percent; rows: `error`, `error_without`.

    All columns have one scale.
    """
    alt = import_altair()
    top = max(100 * max(row["error"], row["error_without"]) for column in columns for row in column.rows)
    scale = alt.Scale(domain=[0, max(top, 1e-6)], nice=True)

    def draw(column: Column, colour: str, first: bool, room: int) -> Any:
        rows = [
            {**row, "error": 100 * row["error"], "error_without": 100 * row["error_without"]} for row in column.rows
        ]
        base = _rows(alt, replace(column, rows=tuple(rows)), first, room - GAP // 2)
        axis = alt.Axis(title="error, %", tickCount=3)
        x = alt.X("error:Q", scale=scale, axis=axis)
        line = base.mark_rule(color=FAINT, strokeWidth=2).encode(x=x, x2="error_without:Q")
        hollow = base.mark_point(filled=True, color=PAPER, stroke=colour, size=42, opacity=1, strokeWidth=1.5)
        filled = base.mark_point(filled=True, color=colour, size=42, opacity=1)
        return line + hollow.encode(x=alt.X("error_without:Q", scale=scale)) + filled.encode(x=x)

    return _side_by_side(alt, columns, width, draw)


def draw_losses(columns: Sequence[Column], unit: str, width: int) -> Any:
    """What every unit alone costs at its probe's width: bars, all columns on one scale; rows hold `loss`."""
    alt = import_altair()
    top = max(row["loss"] for column in columns for row in column.rows)
    scale = alt.Scale(domain=[0, top or 1e-6], nice=True)

    def draw(column: Column, colour: str, first: bool, room: int) -> Any:
        base = _rows(alt, column, first, room - GAP // 2)
        axis = alt.Axis(title=unit, tickCount=2, format=".3~g")
        return base.mark_bar(color=colour, height=STEP - 5).encode(x=alt.X("loss:Q", scale=scale, axis=axis))

    return _side_by_side(alt, columns, width, draw)


def draw_depth(errors: Sequence[float], width: int, merged: int | None = None) -> Any:
    """The error of the residual stream behind every block, in percent.

    Args:
        merged: first block behind which other tokens are compared; the line begins anew there.
    """
    alt = import_altair()
    rows = [{"block": block, "error": 100 * error, "part": int(merged is not None and block >= merged)}
            for block, error in enumerate(errors)]  # fmt: skip
    base = alt.Chart(alt.Data(values=rows), width=width - 60, height=170).encode(
        x=alt.X("block:Q", title="behind block", scale=alt.Scale(domain=[0, max(len(rows) - 1, 1)]),
                axis=alt.Axis(format="d", values=_ticks(len(rows), width), grid=False)),
        y=alt.Y("error:Q", title="error of the residual stream, %", scale=alt.Scale(zero=True),
                axis=alt.Axis(tickCount=5)),
    )  # fmt: skip
    line = base.mark_line(color=BLUE, strokeWidth=2).encode(detail="part:N")
    return line + base.mark_point(filled=True, color=BLUE, size=36, opacity=1)


def draw_tried(
    sizes: Sequence[dict[str, Any]], chosen: float | None, wanted: float | None, metric: str, width: int
) -> Any:
    """Sizes that a search tried: what they keep, from the lower end of the interval to the value.

    Args:
        sizes: with `macs`, `value`, `low` as shares, and `how`: one of two words.
        chosen: share of the MACs that the written file has.
        wanted: what the lower ends have to reach.
        metric: what is kept.
    """
    alt = import_altair()
    rows = [{**row, "macs": 100 * row["macs"], "value": 100 * row["value"], "low": 100 * row["low"]} for row in sizes]
    names = list(dict.fromkeys(row["how"] for row in rows))
    hues = alt.Scale(domain=names, range=list(SERIES[: len(names)]))
    shapes = alt.Scale(domain=names, range=["circle", "diamond"][: len(names)])
    floor = min([row["low"] for row in rows] + ([100 * wanted] if wanted is not None else []))
    scale = alt.Scale(domain=[max(0.0, floor - 2), 100], nice=False, zero=False)
    y = alt.Y("value:Q", title=f"{metric} kept, %", scale=scale, axis=alt.Axis(tickCount=5))
    base = alt.Chart(alt.Data(values=rows), width=width - 60, height=240).encode(
        x=alt.X("macs:Q", title="multiply-accumulates kept, %", scale=alt.Scale(zero=False, padding=12),
                axis=alt.Axis(grid=False, tickCount=max(4, width // 90))),
        color=alt.Color("how:N", title=None, scale=hues, legend=alt.Legend(symbolOpacity=1)),
    )  # fmt: skip
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.45).encode(y=alt.Y("low:Q", scale=scale), y2="value:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=y, shape=alt.Shape("how:N", title=None, scale=shapes)
        ),
    ]
    if wanted is not None:
        layers.append(_rule(alt, "y", 100 * wanted, f"asked for: {wanted:.4g}", width))
    if chosen is not None:
        layers.append(_rule(alt, "x", 100 * chosen, "written", width))
    return alt.layer(*layers)


def draw_bars(bars: Sequence[Bar], title: str, width: int, *, zero: bool = True, mark: float | None = None) -> Any:
    """Named numbers as bars with what is written behind them, their intervals as lines."""
    alt = import_altair()
    rows = [{"name": b.name, "value": b.value, "note": b.note, "low": b.low, "high": b.high} for b in bars]
    label = min(max(7 * max(len(b.name) for b in bars), 40), width // 3)
    note = 7 * max(len(b.note) for b in bars) + 8
    base = alt.Chart(alt.Data(values=rows), width=max(width - label - note - 20, 80), height={"step": STEP + 4}).encode(
        y=alt.Y("name:N", sort=None, title=None,
                axis=alt.Axis(labelLimit=label, ticks=False, domain=False, labelColor=INK, grid=False)),
    )  # fmt: skip
    scale = alt.Scale(zero=zero)
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4))
    layers = [base.mark_bar(color=BLUE, height=STEP - 4).encode(x=x)]
    if any(b.low is not None for b in bars):
        layers.append(base.mark_rule(color=INK, strokeWidth=1.5).encode(x=alt.X("low:Q"), x2="high:Q"))
    far = alt.X("end:Q", scale=scale)
    ended = [{**row, "end": max(row["value"], row["high"] or 0.0)} for row in rows]
    notes = base.properties(data=alt.Data(values=ended)).mark_text(align="left", dx=5, color=INK)
    layers.append(notes.encode(x=far, text="note:N"))
    if mark is not None:
        layers.append(
            alt.Chart(alt.Data(values=[{"x": mark}])).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x="x:Q")
        )
    return alt.layer(*layers)


def draw_plane(spots: Sequence[Spot], x_title: str, y_title: str, width: int) -> Any:
    """Models by what they cost and what they keep, with intervals; numbers in percent."""
    alt = import_altair()
    rows = [{"name": s.name, "x": s.x, "y": s.y, "low": s.low, "high": s.high} for s in spots]
    names = [s.name for s in spots]
    hues = [SERIES[i % len(SERIES)] for i in range(len(names))]
    base = alt.Chart(alt.Data(values=rows), width=width - 60, height=260).encode(
        x=alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=18), axis=alt.Axis(grid=False)),
        color=alt.Color("name:N", scale=alt.Scale(domain=names, range=hues), legend=None),
    )
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False, padding=12))
    return alt.layer(
        base.mark_rule(strokeWidth=2, opacity=0.45).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=y),
        base.mark_text(align="left", dx=8, limit=width // 3, color=INK).encode(
            y=y, text="name:N", color=alt.value(INK)
        ),
    )


def _rows(alt: Any, column: Column, first: bool, width: int) -> Any:
    """The frame of a column: its blocks as rows, named where it is the first."""
    axis = alt.Axis(title=None, labels=first, ticks=False, domain=False, grid=False)
    y = alt.Y("block:O", axis=axis, scale=alt.Scale(domain=list(column.blocks)))
    return alt.Chart(alt.Data(values=list(column.rows)), width=width, height=STEP * len(column.blocks)).encode(y=y)


def _side_by_side(alt: Any, columns: Sequence[Column], width: int, draw: Any) -> Any:
    """One chart a column with its title above; all have the same rows, named left of the first."""
    blocks = tuple(sorted({row["block"] for column in columns for row in column.rows}))
    room = min((width - MARGIN - GAP * (len(columns) - 1)) // len(columns), MOST)
    charts = [
        draw(replace(column, blocks=blocks), SERIES[i % len(SERIES)], i == 0, room).properties(
            title=alt.Title(column.title, subtitle=column.subtitle, frame="group")
        )
        for i, column in enumerate(columns)
    ]
    return alt.hconcat(*charts)


def _rule(alt: Any, axis: str, value: float, words: str, width: int) -> Any:
    data = alt.Data(values=[{axis: value, "words": words}])
    rule = alt.Chart(data).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(**{axis: f"{axis}:Q"})
    at = {"x": alt.value(width - 62)} if axis == "y" else {"y": alt.value(10)}
    place = {"align": "right", "dy": -6} if axis == "y" else {"align": "left", "dx": 5}
    text = alt.Chart(data).mark_text(color=MUTED, **place).encode(text="words:N", **{axis: f"{axis}:Q"}, **at)
    return rule + text


def _ticks(n_blocks: int, width: int) -> list[int]:
    step = max(1, -(-n_blocks * 26 // width))
    return list(range(0, n_blocks, step))
