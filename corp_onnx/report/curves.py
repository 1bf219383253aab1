"""Curves of a sweep and of an analysis as functions of values, and the SVG files of all of them.

Enters what the two verbs return; leaves Altair charts by name. What a chart shows is its data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from corp_onnx.analyze.values import Analysis, Study
from corp_onnx.metrics.names import SHARES, name_metric
from corp_onnx.report.terminal import KIND_NAMES
from corp_onnx.report.theme import (
    BLUE,
    DEPTHS,
    INK,
    MUTED,
    ORANGE,
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


def list_analysis_figures(result: Analysis) -> dict[str, Draw]:
    """By the name of the file: redundancy by depth, spectra by kind, what every unit costs, and a figure a study."""
    figures: dict[str, Draw] = {
        "redundancy": lambda width: draw_redundancy(result, width),
        "spectra": lambda width: draw_spectra(result, width),
        "losses": lambda width: draw_unit_losses(result, width),
    }
    studies = {f"study-{s.name}": (lambda width, s=s: draw_study(s, width)) for s in result.studies}
    return figures | studies


def draw_redundancy(result: Analysis, width: int) -> Any:
    """Effective rank and k95 over the dimension, by block: a column a kind."""
    rows = {
        kind: [{"block": u.block, "what": what, "ratio": 100 * ratio} for u in result.of_kind(kind)
               for what, ratio in (("effective rank", u.rank_ratio), ("k95", u.k95_ratio))]
        for kind in result.kinds
    }  # fmt: skip
    return _by_block(rows, "what", "ratio", "share of the dimension, %", width)


def draw_unit_losses(result: Analysis, width: int) -> Any:
    """What the answers lose with one unit alone cut, by block: a column a kind."""
    rows = {kind: [{"block": u.block, "what": f"cut to {u.probe_width}", "loss": u.probe_loss}
                   for u in result.of_kind(kind)] for kind in result.kinds}  # fmt: skip
    return _by_block(rows, "what", "loss", "loss, this unit alone cut", width)


def _by_block(rows: Mapping[str, Sequence[dict[str, Any]]], hue: str, field: str, title: str, width: int) -> Any:
    alt = import_altair()
    room = (width - 70 - 18 * (len(rows) - 1)) // max(len(rows), 1)
    top = max((row[field] for own in rows.values() for row in own), default=1.0)
    columns: list[Any] = []
    for i, (kind, own) in enumerate(rows.items()):
        names = list(dict.fromkeys(row[hue] for row in own))
        hues = alt.Scale(domain=names, range=[SERIES[j % len(SERIES)] for j in range(len(names))])
        base = alt.Chart(alt.Data(values=list(own)), width=room, height=HEIGHT, title=KIND_NAMES[kind]).encode(
            x=alt.X("block:Q", title="block", axis=alt.Axis(format="d", tickMinStep=1, grid=False)),
            y=alt.Y(f"{field}:Q", title=title if i == 0 else None, scale=alt.Scale(domain=[0, top or 1.0])),
            color=alt.Color(f"{hue}:N", title=None, scale=hues),
        )
        columns.append(base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=35, opacity=1))
    return alt.hconcat(*columns).resolve_scale(color="independent")


def draw_spectra(result: Analysis, width: int) -> Any:
    """Energy held by the first directions: a column a kind, a line a head (of MLPs a block), a colour by depth."""
    alt = import_altair()
    kinds = result.kinds
    room = (width - 70 - 18 * (len(kinds) - 1)) // len(kinds)
    depths = _name_depths(max(u.block for u in result.units) + 1)
    names = list(dict.fromkeys(depths))
    hues = alt.Scale(domain=names, range=[DEPTHS[-1 - i] for i in reversed(range(len(names)))])
    columns: list[Any] = []
    for i, kind in enumerate(kinds):
        rows = [
            {"line": f"{u.block}.{h}", "blocks": depths[u.block], "directions": 100 * (j + 1) / u.width,
             "held": 100 * min(held, 1.0)}
            for u in result.of_kind(kind) for h, row in enumerate(u.spectrum) for j, held in enumerate(accumulate(row))
            if j % max(1, u.width // 64) == 0
        ]  # fmt: skip
        columns.append(
            alt.Chart(alt.Data(values=rows), width=room, height=HEIGHT, title=KIND_NAMES[kind])
            .mark_line(strokeWidth=1, opacity=0.8)
            .encode(
                x=alt.X("directions:Q", title="of the directions, %", axis=alt.Axis(grid=False)),
                y=alt.Y("held:Q", title="energy held, %" if i == 0 else None, scale=alt.Scale(domain=[0, 100])),
                color=alt.Color("blocks:N", title=None, scale=hues, sort=None,
                                legend=alt.Legend(symbolOpacity=1, symbolStrokeWidth=3)),
                detail="line:N",
            )
        )  # fmt: skip
    return alt.hconcat(*columns)


def _name_depths(n_blocks: int) -> list[str]:
    """Of every block, the part of the network that it lies in: as many parts as there are colours, or blocks."""
    parts = [block * min(len(DEPTHS), n_blocks) // n_blocks for block in range(n_blocks)]
    ends = {part: (parts.index(part), n_blocks - 1 - parts[::-1].index(part)) for part in parts}
    return [f"block {low}" if low == high else f"blocks {low} to {high}" for low, high in map(ends.__getitem__, parts)]


def draw_study(study: Study, width: int) -> Any:
    """The errors of a study of depth; of others the loss of every row."""
    alt = import_altair()
    if study.name == "depth":
        rows = [{"block": d.block, "error": 100 * value, "what": what} for d in study.depth
                for what, value in [*zip(d.keys, d.errors, strict=True), ("stream, accumulated", d.stream_error)]
                if value is not None]  # fmt: skip
        rows = [{**row, "what": row["what"].rsplit(".", 1)[-1]} for row in rows]
        return _by_block_alone(alt, rows, width)
    rows = [{"fitted": r.fitted, "judged": r.judged, "loss": r.loss, "kept": 100 * r.kept} for r in study.rows]
    names = list(dict.fromkeys(row["judged"] for row in rows))
    hues = alt.Scale(domain=names, range=[SERIES[i % len(SERIES)] for i in range(len(names))])
    base = alt.Chart(alt.Data(values=rows), width=width - 140, height={"step": 22}).encode(
        y=alt.Y("fitted:N", title="calibrated on", sort=None, axis=alt.Axis(grid=False)),
        x=alt.X("loss:Q", title=f"loss on {study.n_judged} images that judge", scale=alt.Scale(zero=True)),
    )
    legend = alt.Legend() if len(names) > 1 else None
    return base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("judged:N", title="judged on", scale=hues, legend=legend),
        shape=alt.Shape("judged:N", title="judged on", scale=alt.Scale(domain=names), legend=legend),
    )


def _by_block_alone(alt: Any, rows: Sequence[dict[str, Any]], width: int) -> Any:
    names = list(dict.fromkeys(row["what"] for row in rows))
    colours = {"stream, accumulated": INK, "mlp": BLUE, "qk": ORANGE}
    hues = alt.Scale(domain=names, range=[colours.get(name, SERIES[2]) for name in names])
    base = alt.Chart(alt.Data(values=list(rows)), width=width - 70, height=HEIGHT).encode(
        x=alt.X("block:Q", title="block", axis=alt.Axis(format="d", tickMinStep=1, grid=False)),
        y=alt.Y("error:Q", title="relative error, %", scale=alt.Scale(zero=True)),
        color=alt.Color("what:N", title=None, scale=hues),
    )
    return base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=35, opacity=1)


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
