"""The record of `sweep` as a page. Enters its JSON; leaves a `Page`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from corp_onnx.errors import clean_text
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.curves import TITLES, list_sweep_figures
from corp_onnx.report.pages.common import bullets, show_warnings
from corp_onnx.report.parts import Code, Facts, Figure, Inline, Page, Section, Table, Text, count, percent, times
from corp_onnx.sweep.values import Sweep, read_sweep

CAPTIONS = {
    "curve": "A line a method; filled: no other point costs as little and keeps as much on held-back images; upright: "
    "intervals.",
    "fractions": "Dashed: without compensation; grey: the dense model.",
}


def make_page(facts: Facts) -> Page:
    """All of one record."""
    result = read_sweep(facts.report)
    return Page("Sizes of a model", clean_text(result.advice), (), tuple(_list_sections(facts, result)))


def _list_sections(facts: Facts, result: Sweep) -> Iterator[Section]:
    yield from show_warnings(facts)
    figures = tuple(
        Figure(_title(name), draw, CAPTIONS[name.split("-")[0]]) for name, draw in list_sweep_figures(result).items()
    )
    yield Section("What every size keeps", figures)
    yield Section("Every point", (show_points(facts, result),))
    yield from bullets("Not made", [f"{p.name}: {p.problem}" for p in result.points if p.problem])
    how: Inline = ("Calibrated on ", facts.datum("n_images", count), " images, of which ",
                   facts.datum("n_held_out", count), " were held back: no weight was fitted to them, and the recommendation is read off them.")  # fmt: skip
    again = f"corp-onnx prune {clean_text(result.model)} --from DIR --macs F"
    yield Section("What it was measured on", (Text((how,)), Code(again)))


def _title(file: str) -> str:
    kind, *words = file.split("-")
    name, of = words[-1], "images given" if words[0] == "given" else "held-back images"
    over = (
        "over the multiply-accumulates kept" if kind == "curve" else f"over what was removed from {', '.join(TITLES)}"
    )
    return f"{name_metric(name)} on {of}, {over}"


def show_points(facts: Facts, result: Sweep) -> Table:
    """Every point with what it costs and keeps; a star where no other beats it."""
    given = next((m.name for p in result.points for m in p.scores), None)
    is_timed = any(point.speedup for point in result.points)
    rows: list[tuple[Inline, ...]] = []
    for i, point in enumerate(result.points):
        if point.problem:
            continue
        at = f"points.{i}"
        cells: list[Inline] = [clean_text(point.name) + (" *" if point.name in result.pareto else "")]
        cells += [facts.datum(f"{at}.kept_macs", percent), facts.datum(f"{at}.kept_parameters", percent)]
        cells.append(facts.datum(f"{at}.kept.value", partial(write_value, point.kept.name)) if point.kept else "-")
        if given is not None:
            place = next((j for j, m in enumerate(point.scores) if m.name == given), None)
            form = partial(write_value, given)
            cells.append("-" if place is None else facts.datum(f"{at}.scores.{place}.value", form))
        if is_timed:
            cells.append(facts.datum(f"{at}.speedup.value", times) if point.speedup else "-")
        rows.append(tuple(cells))
    heads = ["point", "MACs", "parameters", "kept, held back"]
    heads += [f"{name_metric(given)}, given"] if given is not None else []
    heads += ["times as fast"] if is_timed else []
    return Table(tuple(heads), tuple(rows), caption="* no other point costs as little and keeps as much.")
