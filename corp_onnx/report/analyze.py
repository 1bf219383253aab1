"""An analysis as tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from corp_onnx.analyze.values import Analysis, Study, UnitAnalysis
from corp_onnx.report.terminal import KIND_NAMES, make_table, open_console, print_table

WHOLE_LEGEND = (
    "effective rank: exp of the entropy of the shares of the energy by direction; k95: the fewest directions with 95% "
    "of it; sparsity: activations within 10% of their root mean square from zero"
)
HEADS_LEGEND = "of logits (QK) and of what is written into the stream (VO), means over the heads"
LOSS_LEGEND = "lost with this unit alone cut to the width beside it, before any refit"
DEPTH_LEGEND = (
    "error: of the unit's own output (only cut: without compensation); stream: of what the block hands on, with all "
    "units cut"
)


def print_analysis(result: Analysis, output: Path | None = None) -> None:
    """Redundancy of MLPs and of heads, what every unit costs the answers, and the studies."""
    console = open_console()
    whole = [unit for unit in result.units if unit.n_heads is None]
    heads = [unit for unit in result.units if unit.n_heads is not None]
    if whole:
        _print_whole(console, whole)
    if heads:
        _print_heads(console, heads)
    _print_losses(console, result)
    for study in result.studies:
        console.print("")
        _print_study(console, study, result)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    console.print(
        f"{result.n_images} calibration images, {result.n_probed} of them for the losses; {result.n_held_out} held "
        "back", soft_wrap=True,
    )  # fmt: skip
    if output is not None:
        console.print(f"all of it, spectra included: {output}", soft_wrap=True)


def _print_whole(console: Console, units: Sequence[UnitAnalysis]) -> None:
    table = make_table(
        "MLP", "dimension", "effective\nrank", "rank\nratio", "k95", "k95\nratio", "activation\nsparsity"
    )
    for u in units:
        sparsity = "-" if u.activation_sparsity is None else f"{u.activation_sparsity:.1%}"
        table.add_row(
            str(u.block), str(u.width), f"{u.effective_rank:.1f}", f"{u.rank_ratio:.3f}", f"{u.k95:.0f}",
            f"{u.k95_ratio:.3f}", sparsity,
        )  # fmt: skip
    print_table(console, table, WHOLE_LEGEND)


def _print_heads(console: Console, units: Sequence[UnitAnalysis]) -> None:
    kinds = list(dict.fromkeys(unit.kind for unit in units))
    columns = [f"{KIND_NAMES[kind]}\n{name}" for kind in kinds for name in ("dimension", "eff. rank", "k95")]
    table = make_table("block", *columns)
    for block in sorted({unit.block for unit in units}):
        own = {unit.kind: unit for unit in units if unit.block == block}
        cells = [
            cell for kind in kinds for cell in ((
                str(own[kind].width), f"{own[kind].effective_rank:.1f}", f"{own[kind].k95:.1f}",
            ) if kind in own else ("-",) * 3)
        ]  # fmt: skip
        table.add_row(str(block), *cells)
    print_table(console, table, HEADS_LEGEND)


def _print_losses(console: Console, result: Analysis) -> None:
    kinds = result.kinds
    table = make_table("block", *(f"loss\n{KIND_NAMES[kind]}" for kind in kinds))
    for block in sorted({unit.block for unit in result.units}):
        own = {unit.kind: unit for unit in result.units if unit.block == block}
        table.add_row(
            str(block), *(f"{own[k].probe_loss:.4f} ({own[k].probe_width})" if k in own else "-" for k in kinds)
        )
    print_table(console, table, LOSS_LEGEND)


def _print_study(console: Console, study: Study, result: Analysis) -> None:
    cut = f"{result.settings['preset']}, {result.settings['fraction']:.0%} of every MLP and query/key head removed"
    console.print(f"study of {study.name}: {cut}, no refit", soft_wrap=True)
    if study.name == "depth":
        _print_depth(console, study, result)
        return
    table = make_table("calibrated on", "judged on", "images", "loss", study.kept_name, left=2)
    for row in study.rows:
        table.add_row(row.fitted, row.judged, str(row.n_images), f"{row.loss:.4f}", f"{row.kept:.1%}")
    print_table(console, table)
    if study.name == "seeds":
        (loss, off), (kept, kept_off) = study.spread("loss"), study.spread("kept")
        console.print(
            f"loss {loss:.4f} ± {off:.4f}, {study.kept_name} {kept:.1%} ± {kept_off:.1%}: mean and standard deviation "
            f"over {len(study.rows)} draws", soft_wrap=True,
        )  # fmt: skip


def _print_depth(console: Console, study: Study, result: Analysis) -> None:
    kinds_of = {unit.key: unit.kind for unit in result.units}
    kinds = list(dict.fromkeys(kinds_of[key] for row in study.depth for key in row.keys))
    table = make_table("block", *(f"{KIND_NAMES[kind]} error\n(only cut)" for kind in kinds), "stream")
    for row in study.depth:
        found = zip(row.keys, row.errors, row.errors_without, strict=True)
        own = {kinds_of[key]: f"{error:.1%} ({without:.1%})" for key, error, without in found}
        stream = "-" if row.stream_error is None else f"{row.stream_error:.1%}"
        table.add_row(str(row.block), *(own.get(kind, "-") for kind in kinds), stream)
    print_table(console, table, DEPTH_LEGEND)
