"""How figures look, and how they become SVG: Vega-Altair makes the specification, vl-convert draws it, both offline.

Enters an Altair chart; leaves its Vega-Lite specification as data, or inline SVG for a page. A specification holds the
colours of the light page; in the SVG each of them becomes a CSS variable with that colour as its default, so that a
page that is dark redefines them, and the SVG stands alone as well.

Colours are those of Okabe and Ito, which people with any colour blindness tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

import importlib
import re
import zlib
from typing import Any

from corp_onnx.errors import MissingExtraError

INK, MUTED, GRID, FAINT, PAPER = "#1b1f24", "#59636e", "#e4e7eb", "#d3d9e0", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"

DEPTHS = ("#86bbdf", "#3f8fc7", "#0d659f", "#00304d")
"""Of quarters of a network, from the first block to the last: further from the paper with depth."""

COLOURS: dict[str, tuple[str, str]] = {
    INK: ("ink", "#e6e9ed"),
    MUTED: ("muted", "#9aa4b0"),
    GRID: ("grid", "#2c333b"),
    FAINT: ("faint", "#3b444e"),
    PAPER: ("paper", "#14181d"),
    BLUE: ("blue", "#56b4e9"),
    ORANGE: ("orange", "#f08a3c"),
    GREEN: ("green", "#2fbf93"),
    PURPLE: ("purple", "#e29ac3"),
    **dict(
        zip(
            DEPTHS,
            (("depth-1", "#33658c"), ("depth-2", "#4f96c9"), ("depth-3", "#8fc7ee"), ("depth-4", "#dcf0fd")),
            strict=True,
        )
    ),
}
"""Of the light page -> (name of the variable, the same on the dark page)."""

SERIES = (BLUE, ORANGE, GREEN, PURPLE)
"""One after another, of things that are told apart."""

FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"
"""What vl-convert measures text with has the widths of these."""

WIDE, NARROW = 720, 352
"""Pixels of a figure on a screen and on a phone: two drawings, since text must not shrink with the page."""

SIZE = 11
"""Of the text in figures, in pixels."""


def require_report(module: str) -> Any:
    """A module of the extra `report`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"pages and cards need {error.name}, which is not installed; pip install 'corp-onnx[report]'."
        ) from error


def import_altair() -> Any:
    """Vega-Altair."""
    return require_report("altair")


def write_spec(chart: Any) -> dict[str, Any]:
    """The Vega-Lite specification of a chart in our looks: data that a test can read."""
    text = {"font": FONT, "labelColor": MUTED, "titleColor": INK}
    small = {"labelFontSize": SIZE, "titleFontSize": SIZE, "titleFontWeight": "normal"}
    return chart.configure(
        background="transparent",
        font=FONT,
        view={"stroke": None},
        axis={**_without_font(text), **small, "gridColor": GRID, "domainColor": MUTED, "tickColor": MUTED,
              "tickSize": 4, "labelOverlap": True, "labelFlush": False},
        legend={**_without_font(text), **small, "orient": "top", "offset": 4, "symbolStrokeColor": MUTED},
        title={"color": INK, "subtitleColor": MUTED, "fontSize": SIZE + 1, "subtitleFontSize": SIZE,
               "anchor": "start", "fontWeight": "bold", "offset": 6},
        text={"color": INK, "fontSize": SIZE},
        concat={"spacing": 18},
    ).to_dict()  # fmt: skip


def _without_font(style: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in style.items() if key != "font"}


def draw_svg(chart: Any) -> str:
    """A chart as inline SVG that is as wide as there is room, at most as wide as it was drawn.

    Raises:
        MissingExtraError: vl-convert is not installed.
    """
    svg: str = require_report("vl_convert").vegalite_to_svg(write_spec(chart))
    for colour, (name, _) in COLOURS.items():
        svg = re.sub(f'(fill|stroke)="{colour}"', rf'\1="var(--{name},{colour})"', svg, flags=re.IGNORECASE)
    own = f"{zlib.crc32(svg.encode()):08x}"  # several drawings stand in one page, and names are the page's
    svg = re.sub(r'( id="|url\(#|href="#)([\w-]+)', rf"\1\2-{own}", svg)
    head = re.match(r'<svg [^>]*?width="([\d.]+)" height="[\d.]+" viewBox="([^"]*)">', svg)
    if head is None:  # another version of vl-convert: it is shown as it is
        return svg
    start = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="{head[2]}" style="max-width:{head[1]}px">'
    return start + svg[head.end() :]
