"""Curves of a sweep as functions of values, and the SVG files of these and other figures.

Enters what `sweep` returns; leaves Altair charts by name. What a chart shows is its data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from corp_onnx.metrics.names import SHARES, name_metric
from corp_onnx.report.theme import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    WIDE,
    import_altair,
    require_report,
    write_spec,
)
from corp_onnx.results import Metric
from corp_onnx.staging import staged_files, write_text
from corp_onnx.sweep.values import Sweep, SweepPoint

Draw = Callable[[int], Any]
"""Pixels of a figure's width -> an Altair chart."""

HEIGHT = 230
DASHES = {"compensated": [1, 0], "plain": [4, 3]}
HELD_BACK = "held back"

STROKES = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolStrokeColor": INK, "symbolOpacity": 1}
"""Of a legend of lines that differ in their dashes."""


def list_sweep_figures(result: Sweep) -> dict[str, Draw]:
    """By the name of the file: what is kept over what it costs or what was removed, for each set of images."""
    metrics = [(name, given) for given in (False, True) for name in _names(result.points, given)]
    figures: dict[str, Draw] = {}
    for name, given in metrics:
        file = f"{'given' if given else 'held-back'}-{name}"
        if any(p.kind == "macs" for p in result.points):
            figures[f"curve-{file}"] = lambda width, name=name, given=given: draw_curve(result, name, given, width)
        if any(p.kind == "removed" for p in result.points):
            figures[f"fractions-{file}"] = lambda width, name=name, given=given: draw_fractions(
                result, name, given, width
            )
    return figures


def _names(points: Sequence[SweepPoint], given: bool) -> list[str]:
    """Metrics that are shown: those of the judged output, of images that were given or held back."""
    found = {metric.name for point in points for metric in (point.scores if given else point.held_out)}
    return [name for name in ("top1", "agreement", "kl", "cosine", "correlation", "r2") if name in found]


def _rows(points: Sequence[SweepPoint], name: str, given: bool) -> list[dict[str, Any]]:
    """A row a point that has the metric; shares in percent."""
    rows: list[dict[str, Any]] = []
    for point in points:
        found = _find(point, name, given)
        if found is None:
            continue
        scale = 100 if name in SHARES else 1
        low, high = (None if end is None else scale * end for end in (found.low, found.high))
        macs = None if point.kept_macs is None else 100 * point.kept_macs
        rows.append({"point": point.name, "series": point.series, "macs": macs, "removed": 100 * point.asked,
                     "value": scale * found.value, "low": low, "high": high})  # fmt: skip
    return rows


def _find(point: SweepPoint, name: str, given: bool) -> Metric | None:
    found = point.scores if given else point.held_out
    return next((metric for metric in found if metric.name == name), None)


def _title(name: str, given: bool) -> str:
    unit = {"kl": ", nats"}.get(name, ", %" if name in SHARES else "")
    return f"{name_metric(name)}{unit} ({'images given' if given else 'held-back images'})"


def draw_curve(result: Sweep, name: str, given: bool, width: int) -> Any:
    """A metric over the MACs kept, a line a series and precision; dashed is the dense model, filled no point beats."""
    alt = import_altair()
    points = [p for p in result.points if p.kind == "macs"]
    of = {p.name: p for p in points}
    rows = [{**row, "series": _series(of[row["point"]]), "pareto": row["point"] in result.pareto}
            for row in _rows(points, name, given)]  # fmt: skip
    names = list(dict.fromkeys(row["series"] for row in rows))
    hues = alt.Scale(domain=names, range=[SERIES[i % len(SERIES)] for i in range(len(names))])
    legend = alt.Legend(symbolOpacity=1, symbolStrokeWidth=3) if len(names) > 1 else None
    base = alt.Chart(alt.Data(values=rows), width=width - 70, height=HEIGHT).encode(
        x=alt.X("macs:Q", title="multiply-accumulates kept, %", scale=alt.Scale(zero=False, padding=12),
                axis=alt.Axis(grid=False)),
        color=alt.Color("series:N", title=None, scale=hues, legend=legend),
    )  # fmt: skip
    y = alt.Y("value:Q", title=_title(name, given), scale=alt.Scale(zero=False, padding=8))
    hollow = alt.condition("datum.pareto", "series:N", alt.value(PAPER), scale=hues, legend=None)
    layers = [base.mark_rule(strokeWidth=2, opacity=0.35).encode(y="low:Q", y2="high:Q")]
    layers += [base.mark_line(strokeWidth=2).encode(y=y)]
    layers += [base.mark_point(filled=True, size=55, opacity=1, strokeWidth=2).encode(
        y=y, stroke=alt.Stroke("series:N", scale=hues, legend=None), fill=hollow)]  # fmt: skip
    return alt.layer(*layers, *_dense_line(alt, result, name, given))


def _series(point: SweepPoint) -> str:
    return point.series if point.precision == "fp32" else f"{point.series}, {point.precision}"


def _dense_line(alt: Any, result: Sweep, name: str, given: bool) -> list[Any]:
    dense = [row for p in result.points if p.kind == "dense" for row in _rows([p], name, given)]
    if not dense:
        return []
    return [alt.Chart(alt.Data(values=dense)).mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y="value:Q")]


def draw_fractions(result: Sweep, name: str, given: bool, width: int) -> Any:
    """A metric over the fraction removed: a column a target, a colour a rank, dashed without compensation."""
    alt = import_altair()
    points = [p for p in result.points if p.kind == "removed" and p.precision == "fp32"]
    rows = [{**row, **dict(zip(("target", "variant", "rank"), row["series"].split("-"), strict=True))}
            for row in _rows(points, name, given)]  # fmt: skip
    targets, ranks, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("target", "rank", "variant"))
    room = (width - 70 - 18 * (len(targets) - 1)) // max(len(targets), 1)
    hues = alt.Scale(domain=ranks, range=[SERIES[i % len(SERIES)] for i in range(len(ranks))])
    dashes = alt.Scale(domain=variants, range=[DASHES[variant] for variant in variants])
    values = [row["value"] for row in rows]
    scale = alt.Scale(domain=[0, 100] if name in SHARES else [0, max(values)])
    columns: list[Any] = []
    for i, target in enumerate(targets):
        own = [row for row in rows if row["target"] == target]
        base = alt.Chart(alt.Data(values=own), width=room, height=HEIGHT, title=TITLES[target]).encode(
            x=alt.X("removed:Q", title="removed, %", axis=alt.Axis(grid=False)),
            y=alt.Y("value:Q", title=_title(name, given) if i == 0 else None, scale=scale),
            color=alt.Color("rank:N", title=None, scale=hues),
        )
        dashed = alt.StrokeDash("variant:N", title=None, scale=dashes, legend=alt.Legend(**STROKES))
        lines = base.mark_line(strokeWidth=2).encode(strokeDash=dashed)
        lines += base.mark_point(filled=True, size=35, opacity=1).encode(detail="variant:N")
        columns.append(alt.layer(lines, *_dense_line(alt, result, name, given)))
    return alt.hconcat(*columns)


TITLES = {"mlp": "MLP channels", "attn": "queries and keys", "both": "both"}


def write_svg(chart: Any) -> str:
    """A chart as an SVG file of its own: on white, in plain colours that every viewer knows."""
    spec = write_spec(chart)
    spec["config"]["background"] = PAPER
    return require_report("vl_convert").vegalite_to_svg(spec)


def write_figures(figures: Mapping[str, Draw], folder: Path, *, force: bool = True) -> tuple[Path, ...]:
    """An SVG a figure in a folder, all of them or none.

    Raises:
        MissingExtraError: the extra `report` is not installed.
        OutputError: the folder can not be written.
    """
    drawn = {folder / f"{name}.svg": write_svg(draw(WIDE)) for name, draw in figures.items()}
    if not drawn:
        return ()
    with staged_files({str(path): path for path in drawn}, force=force) as staged:
        for path, (destination, svg) in zip(staged, drawn.items(), strict=True):
            write_text(svg + "\n", path, destination)
    return tuple(drawn)
