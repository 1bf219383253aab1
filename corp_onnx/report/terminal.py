"""Results as tables on stdout. Enters a result; nothing leaves but what is printed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from corp_onnx.errors import clean_text
from corp_onnx.evaluate import Evaluation, Score
from corp_onnx.results import HeldOut, Inspection, ModelFacts, PruneResult, UnitFacts, UnitResult
from corp_onnx.units import KINDS

KIND_NAMES = {name: kind.title for name, kind in KINDS.items()}
PLAIN_WIDTH = 120
"""Columns where stdout is a file or a pipe."""

HEIGHT = 25
"""Lines; nothing that is printed depends on it."""

SPACING = 3
"""Between two columns of a table."""


class _CleanConsole(Console):
    """What it prints holds names of models, so it goes through `clean_text`; so do the cells of a `_CleanTable`."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(clean_text(o) if isinstance(o, str) else o for o in objects), **options)


class _CleanTable(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(clean_text(c) if isinstance(c, str) else c for c in cells), **options)


def open_console() -> Console:
    """On stdout, as wide as the terminal, or wide enough where there is none."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
    # no markup: a path may hold brackets; without a height rich takes every dumb terminal for 80 columns wide
    return _CleanConsole(file=sys.stdout, width=width, height=HEIGHT, highlight=False, markup=False, emoji=False)


def print_table(console: Console, table: Table) -> None:
    """A table, in a narrow terminal as wide as it needs to be: a number cut short is another number."""
    for column in table.columns:
        texts = [str(cell) for cell in (column.header, *column.cells)]
        words = texts if column.no_wrap else [word for text in texts for word in text.split(" ")]
        column.min_width = max(cell_len(word) for word in words)
    shown = console.width
    console.width = max(shown, sum((column.min_width or 0) + SPACING for column in table.columns))
    console.print(table, crop=False)  # rich may still share the columns out a little wider than it has said
    console.width = shown


def make_table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and the rest numbers."""
    table = _CleanTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for idx, column in enumerate(columns):
        table.add_column(clean_text(column), justify="left" if idx < left else "right", no_wrap=idx >= left)
    return table


def print_inspection(found: Inspection) -> None:
    """Model facts, one row a unit, and what was skipped."""
    console = open_console()
    model = found.model
    batch = "dynamic batch" if model.batch is None else f"batch {model.batch}"
    console.print(
        f"{model.path}: {model.macs / 1e9:.4f} GMACs, {model.n_parameters:,} parameters, {model.n_bytes / 1e6:.1f} MB, "
        f"{model.precision}, opset {model.opset}, {batch}, from {model.producer or 'an unnamed exporter'}",
        soft_wrap=True,
    )
    own = [unit for unit in found.units if not unit.shares_site]
    if own:
        table = make_table("unit", "spelling", "width", "tokens", "parameters", "MACs", "of MACs", left=2)
        for unit in own:
            table.add_row(
                unit.key, unit.spelling if unit.prunable else f"skipped: {unit.reason}", _width(unit),
                str(unit.n_tokens), f"{unit.n_parameters:,}", f"{unit.macs / 1e6:.1f} M", f"{unit.mac_share:.1%}",
            )  # fmt: skip
        print_table(console, table)
    for skip in found.skipped:
        console.print(f"skipped {KIND_NAMES[skip.kind]} at {skip.node}: {skip.reason}", soft_wrap=True)
    prunable = [u for u in own if u.prunable]
    listed = [kind for kind in KINDS.values() if not kind.shares_site]
    by_kind = [f"{sum(u.kind == kind.kind for u in prunable)} {kind.title}" for kind in listed]
    share = sum(u.mac_share for u in prunable)
    console.print(
        f"{found.n_blocks} blocks; can be pruned: {', '.join(by_kind)}, {share:.1%} of the MACs", soft_wrap=True
    )
    for line in _describe_shared([unit for unit in found.units if unit.shares_site]):
        console.print(line, soft_wrap=True)
    if dead := found.dead_tokens:
        console.print(
            f"the outputs read {dead.n_read} of the last block's {dead.n_tokens} tokens: prune leaves out what only "
            f"the others need there, {dead.mac_share:.1%} of the MACs",
            soft_wrap=True,
        )


def _describe_shared(units: Sequence[UnitFacts]) -> Iterator[str]:
    """One line a kind whose cost is that of other units: where it can go, and the first reason why not."""
    for kind in dict.fromkeys(unit.kind for unit in units):
        found = [unit for unit in units if unit.kind == kind]
        reasons = [unit.reason for unit in found if not unit.prunable]
        where = f"in {len(found) - len(reasons)} of {len(found)} attentions" + (f"; {reasons[0]}" if reasons else "")
        yield f"whole {KIND_NAMES[kind]} can go (--units ...,{kind}) {where}"


def _width(unit: UnitFacts) -> str:
    return str(unit.width) if unit.n_heads is None else f"{unit.n_heads} x {unit.width}"


def print_pruning(result: PruneResult) -> None:
    """What went and how far the answers moved."""
    console = open_console()
    columns = [column for k in _kinds(result.units) for column in (KIND_NAMES[k], "error", "only cut")]
    table = make_table("block", *columns)
    for block in sorted({u.block for u in result.units}):
        cells: list[str] = []
        for kind in _kinds(result.units):
            unit = next((u for u in result.units if u.block == block and u.kind == kind), None)
            cells += ["-", "-", "-"] if unit is None else _unit_cells(unit)
        table.add_row(str(block), *cells)
    if result.units:
        print_table(console, table)
    print_table(console, _sizes(result.dense, result.pruned))
    for skip in result.skipped:
        console.print(f"skipped {KIND_NAMES[skip.kind]} at {skip.node}: {skip.reason}", soft_wrap=True)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    console.print(_describe_answers(result.held_out), soft_wrap=True)
    n_pruned = len({u.key for u in result.units if u.width_after < u.width_before})
    checks = ", ".join(c.name for c in result.checks)
    seconds = sum(s.seconds for s in result.stages)
    console.print(f"checks passed: {checks}; {seconds:.0f} s", soft_wrap=True)
    whole = f" (left whole: {', '.join(result.left_whole)})" if result.left_whole else ""
    console.print(f"pruned {n_pruned} of {result.n_units_found} units{whole} -> {result.pruned.path}", soft_wrap=True)
    console.print(f"report: {result.report_path}", soft_wrap=True)


def _describe_answers(held: HeldOut) -> str:
    where = f"on {held.n_images} held-back images: "
    if held.agreement is None or held.kl is None:
        return f"{where}output off by {held.logit_error or 0:.1%}"
    text = f"{where}agreement {held.agreement:.1%} ± {held.agreement_error or 0:.1%}, KL {held.kl:.3f}"
    if not (stream := held.stream_error):
        return text
    return f"{text}, residual stream off by {stream[0]:.1%} after the first block and {stream[-1]:.1%} after the last"


def _kinds(units: Sequence[UnitResult]) -> list[str]:
    return [k for k in KIND_NAMES if any(u.kind == k for u in units)]


def _unit_cells(unit: UnitResult) -> list[str]:
    return [f"{unit.width_before} -> {unit.width_after}", f"{unit.error:.1%}", f"{unit.error_without:.1%}"]


def _sizes(dense: ModelFacts, pruned: ModelFacts) -> Table:
    table = make_table("", "dense", "pruned", "kept")
    rows = (
        ("parameters", f"{dense.n_parameters:,}", f"{pruned.n_parameters:,}", pruned.n_parameters / dense.n_parameters),
        ("MACs", f"{dense.macs / 1e9:.4f} G", f"{pruned.macs / 1e9:.4f} G", pruned.macs / dense.macs),
        ("file", f"{dense.n_bytes / 1e6:.1f} MB", f"{pruned.n_bytes / 1e6:.1f} MB", pruned.n_bytes / dense.n_bytes),
    )
    for name, before, after, kept in rows:
        table.add_row(name, before, after, f"{kept:.1%}")
    return table


def print_evaluation(result: Evaluation) -> None:
    """One row a model."""
    console = open_console()
    baseline = (
        [result.baseline] if result.baseline and result.baseline.model not in {s.model for s in result.scores} else []
    )
    table = make_table("model", "top-1", "top-5", "agreement", "KL", "logit error")
    for score in [*baseline, *result.scores]:
        table.add_row(score.model, *_score_cells(score))
    print_table(console, table)
    console.print(f"{result.n_images} images, {result.provider}", soft_wrap=True)


def _score_cells(score: Score) -> list[str]:
    def share(value: float | None, error: float | None) -> str:
        return "-" if value is None else f"{value:.2%}" + (f" ± {error:.1%}" if error is not None else "")

    return [
        share(score.top1, score.top1_error),
        share(score.top5, None),
        share(score.agreement, score.agreement_error),
        "-" if score.kl is None else f"{score.kl:.4f}",
        "-" if score.logit_error is None else f"{score.logit_error:.1%}",
    ]
