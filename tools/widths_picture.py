"""docs/widths.svg: the width of every unit and the tokens behind every attention, before and after a prune.

    .venv/bin/corp-onnx prune deit_tiny_patch16_224.onnx --calib photos/ --macs 0.5 -o half.onnx
    .venv/bin/python tools/widths_picture.py half.report.json    # writes docs/widths.json and draws it
    .venv/bin/python tools/widths_picture.py                     # draws docs/widths.json

The record is what the picture shows of the report, with the hashes of both files and the environment.
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from corp_onnx.inspect import inspect_model

DOCS = Path(__file__).parent.parent / "docs"
RECORD, PICTURE = DOCS / "widths.json", DOCS / "widths.svg"

LEFT, STEP, BAR, HEIGHT, GAP, TOP = 140, 52, 40, 56, 30, 74
ROWS = (
    ("mlp", "MLP", "channels"),
    ("qk", "query, key", "per head"),
    ("vo", "value", "per head"),
    ("tokens", "tokens", ""),
)
"""Of the picture: the kind, and its name in two lines; pixels above."""

STYLE = """
svg { font-family: system-ui, sans-serif; font-size: 12px }
.page { fill: #fcfcfb } .ink { fill: #1c1c1a } .quiet { fill: #5f5e59 }
.before { fill: #dcdbd5 } .after { fill: #2166ac } .after.tokens { fill: #c2570c }
@media (prefers-color-scheme: dark) {
.page { fill: #171716 } .ink { fill: #ececea } .quiet { fill: #a5a49e }
.before { fill: #3a3a37 } .after { fill: #6cb2f0 } .after.tokens { fill: #f0964d }
}
"""
"""The page is part of the picture, so that it reads on any background."""


def read_report(path: Path) -> dict[str, Any]:
    """The record of a report, with the units that were left whole, which only the dense file knows the width of."""
    report = json.loads(path.read_text(encoding="utf-8"))
    dense = inspect_model(Path(report["dense"]["path"]))
    tokens = max((merge["tokens_before"] for merge in report["merges"]), default=None)
    widths = {unit.key: unit.width for unit in dense.units}
    cut = {unit["key"]: unit["width_after"] for unit in report["units"]}
    units = [
        {
            "kind": unit.kind,
            "block": unit.block,
            "before": widths[unit.key],
            "after": cut.get(unit.key, widths[unit.key]),
        }
        for unit in dense.units
        if unit.kind in report["settings"]["method"]["units"]
    ]
    kept = {
        side: {
            "file": Path(report[side]["path"]).name,
            **{k: report[side][k] for k in ("sha256", "n_parameters", "macs")},
        }
        for side in ("dense", "pruned")
    }
    return {
        "schema": 1, **kept, "n_tokens": tokens, "units": units, "merges": report["merges"],
        "n_images": report["calibration"]["n_images"], "seed": report["settings"]["seed"],
        "environment": report["environment"],
    }  # fmt: skip


def draw(record: dict[str, Any]) -> str:
    """The picture, a bar a block and kind: pale before, solid after, the number after above it."""
    n_blocks = 1 + max(unit["block"] for unit in record["units"])
    width = LEFT + n_blocks * STEP + 24
    kinds = {unit["kind"] for unit in record["units"]} | ({"tokens"} if record["n_tokens"] else set())
    rows = [row for row in ROWS if row[0] in kinds]
    height = TOP + len(rows) * (HEIGHT + GAP) + 28
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", role="img")
    share = record["pruned"]["macs"] / record["dense"]["macs"]
    title = f"{record['dense']['file'].removesuffix('.onnx')} at {share:.0%} of its multiply-accumulates"
    ET.SubElement(svg, "title").text = title
    ET.SubElement(svg, "style").text = STYLE
    ET.SubElement(svg, "rect", {"class": "page", "width": str(width), "height": str(height), "rx": "8"})
    write(svg, 20, 30, title, "ink", size=16, weight="600")
    write(svg, 20, 50, "Width of every unit by block: pale before, solid after", "quiet")
    for i, (kind, name, unit) in enumerate(rows):
        bottom = TOP + i * (HEIGHT + GAP) + GAP - 6 + HEIGHT
        draw_row(svg, record, kind, bottom, n_blocks)
        write(svg, 20, bottom - 30, name, "ink")
        before = (
            record["n_tokens"] if kind == "tokens" else max(u["before"] for u in record["units"] if u["kind"] == kind)
        )
        write(svg, 20, bottom - 14, f"of {before} {unit}".strip(), "quiet")
    for block in range(n_blocks):
        write(svg, LEFT + block * STEP + BAR / 2, height - 14, str(block), "quiet", anchor="middle")
    write(svg, 20, height - 14, "block", "quiet")
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"


def draw_row(svg: ET.Element, record: dict[str, Any], kind: str, bottom: float, n_blocks: int) -> None:
    """The bars of one kind."""
    pairs = trace_tokens(record, n_blocks) if kind == "tokens" else {
        unit["block"]: (unit["before"], unit["after"]) for unit in record["units"] if unit["kind"] == kind
    }  # fmt: skip
    largest = max(before for before, _ in pairs.values())
    for block, (before, after) in pairs.items():
        x = LEFT + block * STEP
        for style, value in (("before", before), (f"after {kind}", after)):
            size = HEIGHT * value / largest
            ET.SubElement(svg, "rect", {"class": style, "x": f"{x}", "y": f"{bottom - size:.1f}", "width": f"{BAR}",
                                        "height": f"{size:.1f}", "rx": "2"})  # fmt: skip
        write(svg, x + BAR / 2, bottom - HEIGHT - 5, str(after), "ink" if after < before else "quiet", anchor="middle")


def trace_tokens(record: dict[str, Any], n_blocks: int) -> dict[int, tuple[int, int]]:
    """Tokens before and after, behind the attention of every block."""
    merged = {merge["block"]: merge["tokens_after"] for merge in record["merges"]}
    now, found = record["n_tokens"], {}
    for block in range(n_blocks):
        now = merged.get(block, now)
        found[block] = (record["n_tokens"], now)
    return found


def write(
    svg: ET.Element,
    x: float,
    y: float,
    text: str,
    style: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: str = "400",
) -> None:
    """One line of text."""
    attributes = {"class": style, "x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor}
    if size != 12:
        attributes |= {"font-size": f"{size}px", "font-weight": weight}
    ET.SubElement(svg, "text", attributes).text = text


def main() -> None:
    """Write the record where a report is given, and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path, metavar="REPORT.json")
    report = parser.parse_args().report
    if report is not None:
        RECORD.write_text(json.dumps(read_report(report), indent=1) + "\n", encoding="utf-8")
    PICTURE.write_text(draw(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
