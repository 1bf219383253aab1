"""A sweep as a table on stdout, and its recommendation."""

from __future__ import annotations

from pathlib import Path

from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.report.terminal import make_table, open_console, print_table
from corp_onnx.results import Metric
from corp_onnx.sweep.values import Sweep, SweepPoint

LEGEND = (
    "MACs, params: kept; in brackets: intervals; *: no other point costs as little and keeps as much (held-back images)"
)

SHOWN = ("top1", "agreement", "cosine", "correlation", "r2")
"""Of images that were given, the first two that were measured."""


def print_sweep(result: Sweep, output: Path) -> None:
    """Every point with what it costs and keeps, those that no other beats marked, and which is recommended."""
    console = open_console()
    kept = next((name_metric(p.kept.name) for p in result.points if p.kept is not None), "kept")
    given = [name for name in SHOWN if any(_find(p, name) for p in result.points)][:2]
    is_timed = any(p.speedup for p in result.points)
    heads = [f"{name_metric(name)}\ngiven" for name in given]
    table = make_table(
        "point", "MACs", "params", f"{kept}\nheld back", *heads, *(["times\nas fast"] if is_timed else []), ""
    )
    for point in result.points:
        if point.problem:
            continue
        cells = [_write_metric(_find(point, name), brackets=False) for name in given]
        speed = [f"{point.speedup.value:.2f}" if point.speedup else "-"] if is_timed else []
        mark = "*" if point.name in result.pareto else ""
        table.add_row(
            point.name, _write_share(point.kept_macs), _write_share(point.kept_parameters), _write_metric(point.kept),
            *cells, *speed, mark,
        )  # fmt: skip
    print_table(console, table, LEGEND)
    for point in result.points:
        if point.problem:
            console.print(f"{point.name}: not made: {point.problem}", soft_wrap=True)
    console.print(result.advice, soft_wrap=True)
    if result.images:
        console.print(f"given: {result.images}; nothing was chosen by them", soft_wrap=True)
    console.print(f"{result.n_made} points in {result.seconds:.0f} s -> {output}", soft_wrap=True)


def _find(point: SweepPoint, name: str) -> Metric | None:
    return next((metric for metric in point.scores if metric.name == name), None)


def _write_share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _write_metric(metric: Metric | None, *, brackets: bool = True) -> str:
    if metric is None:
        return "-"
    value = write_value(metric.name, metric.value)
    if not brackets or metric.low is None or metric.high is None:
        return value
    low, high = (write_value(metric.name, end).removesuffix("%") for end in (metric.low, metric.high))
    return f"{value} [{low}, {high}]"
