"""Figures of an analysis as functions of values: redundancy by depth, spectra, what every unit costs, studies.

Enters what `analyze` returns; leaves Altair charts by name. What a chart shows is its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from corp_onnx.analyze.values import Analysis, Study
from corp_onnx.report.curves import HEIGHT, Draw
from corp_onnx.report.terminal import KIND_NAMES
from corp_onnx.report.theme import BLUE, DEPTHS, INK, ORANGE, SERIES, WIDE, import_altair


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
    return _by_block(result, rows, "ratio", "share of the dimension, %", width, hue="what")


def draw_unit_losses(result: Analysis, width: int) -> Any:
    """What the answers lose with one unit alone cut, by block: a column a kind, its width named above."""
    rows = {kind: [{"block": u.block, "loss": u.probe_loss} for u in result.of_kind(kind)] for kind in result.kinds}
    return _by_block(result, rows, "loss", "loss with this unit alone cut", width)


def _by_block(
    result: Analysis, rows: Mapping[str, Sequence[dict[str, Any]]], field: str, title: str, width: int, hue: str = ""
) -> Any:
    """A column a kind on one scale, a line a `hue`; without one, the widths that units were cut to are named above."""
    alt = import_altair()
    room = (width - 70 - 18 * (len(rows) - 1)) // max(len(rows), 1)
    top = max((row[field] for own in rows.values() for row in own), default=1.0)
    names = list(dict.fromkeys(row[hue] for own in rows.values() for row in own)) if hue else []
    colour = alt.value(BLUE)
    if hue:
        colour = alt.Color(f"{hue}:N", title=None, scale=alt.Scale(domain=names, range=list(SERIES[: len(names)])))
    columns: list[Any] = []
    for i, (kind, own) in enumerate(rows.items()):
        widths = sorted({u.probe_width for u in result.of_kind(kind)})
        said = "" if hue else f"cut to {widths[0]}" + (f" to {widths[-1]}" if len(widths) > 1 else "")
        head = alt.Title(KIND_NAMES[kind], frame="group", **({"subtitle": said} if said else {}))
        base = alt.Chart(alt.Data(values=list(own)), width=room, height=HEIGHT, title=head).encode(
            x=alt.X("block:Q", title="block", axis=alt.Axis(format="d", tickMinStep=1, grid=False,
                                                            tickCount=max(3, room // 30))),
            y=alt.Y(f"{field}:Q", title=title if i == 0 else None, axis=alt.Axis(format=".3~g", tickCount=5),
                    scale=alt.Scale(domain=[0, top or 1.0], nice=True)),
            color=colour,
        )  # fmt: skip
        columns.append(base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=35, opacity=1))
    return alt.hconcat(*columns)


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
        head = alt.Title(KIND_NAMES[kind], frame="group")
        rows = [
            {"line": f"{u.block}.{h}", "blocks": depths[u.block], "directions": 100 * (j + 1) / u.width,
             "held": 100 * min(held, 1.0)}
            for u in result.of_kind(kind) for h, row in enumerate(u.spectrum) for j, held in enumerate(accumulate(row))
            if j % max(1, u.width // 64) == 0
        ]  # fmt: skip
        columns.append(
            alt.Chart(alt.Data(values=rows), width=room, height=HEIGHT, title=head)
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
        kinds = [(row, row["what"].rsplit(".", 1)[-1]) for row in rows]
        rows = [{**row, "what": KIND_NAMES.get(kind, kind)} for row, kind in kinds]
        return _by_block_alone(alt, rows, width)
    rows = [{"fitted": r.fitted, "judged": r.judged, "loss": r.loss, "kept": 100 * r.kept} for r in study.rows]
    names = list(dict.fromkeys(row["judged"] for row in rows))
    hues = alt.Scale(domain=names, range=[SERIES[i % len(SERIES)] for i in range(len(names))])
    base = alt.Chart(alt.Data(values=rows), width=width - 140, height={"step": 22}).encode(
        y=alt.Y("fitted:N", title=None if width < WIDE else "calibrated on", sort=None, axis=alt.Axis(grid=False)),
        x=alt.X(
            "loss:Q",
            title=f"loss on {study.n_judged} images that judge",
            scale=alt.Scale(zero=True, nice=True),
            axis=alt.Axis(tickCount=5),
        ),
    )
    legend = alt.Legend() if len(names) > 1 else None
    return base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("judged:N", title="judged on", scale=hues, legend=legend),
        shape=alt.Shape("judged:N", title="judged on", scale=alt.Scale(domain=names), legend=legend),
    )


def _by_block_alone(alt: Any, rows: Sequence[dict[str, Any]], width: int) -> Any:
    names = list(dict.fromkeys(row["what"] for row in rows))
    colours = {"stream, accumulated": INK, KIND_NAMES["mlp"]: BLUE, KIND_NAMES["qk"]: ORANGE}
    hues = alt.Scale(domain=names, range=[colours.get(name, SERIES[2]) for name in names])
    base = alt.Chart(alt.Data(values=list(rows)), width=width - 70, height=HEIGHT).encode(
        x=alt.X("block:Q", title="block", axis=alt.Axis(format="d", tickMinStep=1, grid=False)),
        y=alt.Y("error:Q", title="relative error, %", scale=alt.Scale(zero=True)),
        color=alt.Color("what:N", title=None, scale=hues),
    )
    return base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=35, opacity=1)
