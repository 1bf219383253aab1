"""Results as tables on stdout. Enters a result; nothing leaves but what is printed."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from corp_onnx.errors import clean_text
from corp_onnx.evaluate import Evaluation, Score
from corp_onnx.memory import write_size
from corp_onnx.report.outputs import (
    describe_outputs,
    describe_promise,
    list_legend,
    name_metric,
    write_interval,
    write_value,
)
from corp_onnx.results import (
    HeldOut,
    Inspection,
    MergeResult,
    ModelFacts,
    PruneResult,
    SpeedResult,
    UnitFacts,
    UnitResult,
)
from corp_onnx.units import KINDS, OWN_KINDS

KIND_NAMES = {name: kind.title for name, kind in KINDS.items()}
PLAIN_WIDTH = 80
"""Columns where stdout is a file or a pipe, and that every table fits into."""

HEIGHT = 25
"""Lines; nothing that is printed depends on it."""

SPACING = 2
"""Between two columns of a table."""


MAX_KINDS = 3
"""Of units side by side in a table."""

INSPECTION_LEGEND = (
    "width: hidden channels of an MLP, heads x dimensions of queries and keys (qk) or values (vo); MACs: "
    "multiply-accumulates for one image"
)

PRUNING_LEGEND = (
    "error: of the unit's own output on held-back images, before the refit; only cut: the same width without "
    "compensation"
)
WHOLE_LEGEND, TOKENS_LEGEND = "; -: left whole", "; tokens: left behind the block"


class _CleanConsole(Console):
    """What it prints holds names of models, so it goes through `clean_text`; so do the cells of a `_CleanTable`."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(clean_text(o) if isinstance(o, str) else o for o in objects), **options)


class _CleanTable(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(clean_text(c) if isinstance(c, str) else c for c in cells), **options)


def open_console(plain_width: int = PLAIN_WIDTH) -> Console:
    """On stdout, as wide as the terminal, or so wide where there is none."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else plain_width
    # no markup: a path may hold brackets; without a height rich takes every dumb terminal for 80 columns wide
    return _CleanConsole(file=sys.stdout, width=width, height=HEIGHT, highlight=False, markup=False, emoji=False)


def print_table(console: Console, table: Table, legend: str = "") -> None:
    """A table, in a narrow terminal as wide as it needs to be: a number cut short is another number.

    Args:
        legend: what its columns mean, in a line below.
    """
    for column in table.columns:
        texts = [line for cell in (column.header, *column.cells) for line in str(cell).split("\n")]
        words = texts if column.no_wrap else [word for text in texts for word in text.split(" ")]
        column.min_width = max(cell_len(word) for word in words)
    shown = console.width
    console.width = max(shown, sum((column.min_width or 0) + SPACING for column in table.columns))
    console.print(table, crop=False)  # rich may still share the columns out a little wider than it has said
    console.width = shown
    if legend:
        console.print(legend, soft_wrap=True)


def make_table(*columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and the rest numbers; a head may have two lines."""
    table = _CleanTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for idx, column in enumerate(columns):
        head = "\n".join(map(clean_text, column.split("\n")))
        table.add_column(head, justify="left" if idx < left else "right", no_wrap=idx >= left)
    return table


def fit_names(paths: Sequence[str], room: int) -> tuple[dict[str, str], list[str]]:
    """(what stands for a path in a table, lines to print above it).

    As much of their ends as tells them apart where they do not all fit; numbers where that is too long as well.
    """
    distinct = list(dict.fromkeys(paths))
    parts = [path.replace("\\", "/").split("/") for path in distinct]
    for n_parts in (max(map(len, parts), default=1), 1, 2):
        shown = ["/".join(own[-n_parts:]) for own in parts] if n_parts < max(map(len, parts)) else distinct
        if max(map(cell_len, shown)) <= room and len(set(shown)) == len(distinct):
            return dict(zip(distinct, shown, strict=True)), []
    numbers = {path: str(i) for i, path in enumerate(distinct, start=1)}
    return numbers, [f"{number}: {path}" for path, number in numbers.items()]


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
        table = make_table("unit", "width", "tokens", "parameters", "MACs", "of MACs")
        for unit in own:
            table.add_row(
                unit.key, _width(unit), str(unit.n_tokens), f"{unit.n_parameters:,}", f"{unit.macs / 1e6:.1f} M",
                f"{unit.mac_share:.1%}",
            )  # fmt: skip
        print_table(console, table, INSPECTION_LEGEND)
    for line in _describe_spellings(own):
        console.print(line, soft_wrap=True)
    for skip in found.skipped:
        console.print(f"skipped {KIND_NAMES[skip.kind]} at {skip.node}: {skip.reason}", soft_wrap=True)
    prunable = [u for u in own if u.prunable]
    listed = [KINDS[name] for name in OWN_KINDS]
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


def _describe_spellings(units: Sequence[UnitFacts]) -> Iterator[str]:
    """How units are spelled, a line for each spelling; then those that stay, a line for each reason."""
    for spelling in dict.fromkeys(unit.spelling for unit in units if unit.prunable):
        kinds = Counter(KIND_NAMES[u.kind] for u in units if u.prunable and u.spelling == spelling)
        yield f"spelled {spelling}: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"
    for reason in dict.fromkeys(unit.reason for unit in units if not unit.prunable):
        keys = [unit.key for unit in units if not unit.prunable and unit.reason == reason]
        yield f"stays whole, {reason}: {', '.join(keys)}"


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
    kinds = _kinds(result.units)
    blocks = sorted({u.block for u in result.units} | {m.block for m in result.merges})
    for first in range(0, len(kinds), MAX_KINDS):
        own = kinds[first : first + MAX_KINDS]
        print_table(console, _widths(result, blocks, own, () if first else result.merges))
    if kinds:
        has_whole = len(result.units) < len(blocks) * len(kinds)
        legend = (PRUNING_LEGEND, WHOLE_LEGEND * has_whole, TOKENS_LEGEND * bool(result.merges))
        console.print("".join(legend), soft_wrap=True)
    print_table(console, _sizes(result.dense, result.pruned))
    if result.merges:
        console.print(_describe_merges(result.merges), soft_wrap=True)
    for skip in result.skipped:
        console.print(f"skipped {KIND_NAMES[skip.kind]} at {skip.node}: {skip.reason}", soft_wrap=True)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    for line in _describe_answers(result.held_out):
        console.print(line, soft_wrap=True)
    if result.speed is not None:
        console.print(describe_speed(result.speed), soft_wrap=True)
    origin = result.calibration.recipe_origin
    if origin is not None and not origin.startswith("guessed"):  # a guess is among the warnings
        console.print(f"preprocessing: {origin}", soft_wrap=True)
    n_pruned = len({u.key for u in result.units if u.width_after < u.width_before})
    checks = ", ".join(c.name for c in result.checks)
    seconds = sum(s.seconds for s in result.stages)
    took = "" if result.peak_memory_bytes is None else f", {write_size(result.peak_memory_bytes)} of memory"
    console.print(f"checks passed: {checks}; {seconds:.0f} s{took}", soft_wrap=True)
    whole = f" (left whole: {', '.join(result.left_whole)})" if result.left_whole else ""
    console.print(f"pruned {n_pruned} of {result.n_units_found} units{whole} -> {result.pruned.path}", soft_wrap=True)
    console.print(f"report: {result.report_path}", soft_wrap=True)


def describe_speed(speed: SpeedResult) -> str:
    """How fast the pruned model is, beside what was asked."""
    threads = "" if speed.threads is None else f", {speed.threads} thread{'s' if speed.threads > 1 else ''}"
    where = f"batch {speed.batch} on {speed.provider}{threads}"
    asked = f"{1e3 * speed.asked:.3g} ms" if speed.kind == "latency" else f"{speed.asked:.3g} times"
    if speed.measured is None or speed.seconds is None or speed.dense_seconds is None:
        return f"by the table {speed.expected:.2f} times as fast as the dense model (asked: {asked}), {where}"
    return (
        f"{speed.measured:.2f} times [{speed.q1:.2f}, {speed.q3:.2f}] as fast as the dense model (asked: {asked}), "
        f"{where}: {1e3 * speed.dense_seconds:.3g} -> {1e3 * speed.seconds:.3g} ms; in brackets the middle half of "
        f"{speed.rounds} rounds"
    )


def _describe_merges(merges: Sequence[MergeResult]) -> str:
    steps = ", ".join(f"{m.tokens_before} -> {m.tokens_after} in block {m.block}" for m in merges)
    return f"similar tokens merge behind the attention: {steps}."


def _describe_answers(held: HeldOut) -> Iterator[str]:
    where = f"on {held.n_images} held-back images: "
    lines = describe_outputs(held.outputs)
    yield from [where + lines[0]] if len(lines) == 1 else [where.strip(), *(f"  {line}" for line in lines)]
    if stream := held.stream_error:
        ends = f"{stream[0]:.1%} after the first block and {stream[-1]:.1%} after the last"
        yield f"residual stream off by {ends}"
    seen = [metric.name for output in held.outputs for metric in output.metrics]
    yield "; ".join([*list_legend(seen), *(["residual stream: what a block hands on to the next"] if stream else [])])
    yield describe_promise(held.promise)
    if held.promise.note:
        yield held.promise.note


def _kinds(units: Sequence[UnitResult]) -> list[str]:
    return [k for k in KIND_NAMES if any(u.kind == k for u in units)]


def _widths(result: PruneResult, blocks: Sequence[int], kinds: Sequence[str], merges: Sequence[MergeResult]) -> Table:
    """One row a block: what is left of every kind, its error, and the tokens that are left behind its attention."""
    units = {(u.block, u.kind): u for u in result.units}
    wholes = {k: {u.width_before for u in result.units if u.kind == k} for k in kinds}
    heads = [f"{KIND_NAMES[k]}\nof {min(wholes[k])}" if len(wholes[k]) == 1 else f"\n{KIND_NAMES[k]}" for k in kinds]
    columns = [column for head in heads for column in (head, "error\n(only cut)")]
    table = make_table("\nblock", *columns, *([f"tokens\nof {merges[0].tokens_before}"] if merges else []))
    n_tokens = merges[0].tokens_before if merges else 0
    for block in blocks:
        cells = [c for k in kinds for c in _unit_cells(units.get((block, k)), is_alone=len(wholes[k]) > 1)]
        n_tokens = next((m.tokens_after for m in merges if m.block == block), n_tokens)
        table.add_row(str(block), *cells, *([str(n_tokens)] if merges else []))
    return table


def _unit_cells(unit: UnitResult | None, *, is_alone: bool) -> list[str]:
    """Its width, with that before where the head does not say it, and its errors."""
    if unit is None:
        return ["-", ""]
    width = f"{unit.width_before} -> {unit.width_after}" if is_alone else str(unit.width_after)
    return [width, f"{_percent(unit.error)} ({_percent(unit.error_without)})"]


def _percent(share: float) -> str:
    """Two digits: more than an error measured on a few images holds."""
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"


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
    """A table for every output: one row a model; then what the columns mean, and how top-1 differs."""
    console = open_console()
    named = {score.model for score in result.scores}
    scores = [result.baseline] if result.baseline and result.baseline.model not in named else []
    scores += result.scores
    outputs = {output.output: output.task for score in scores for output in score.outputs}
    tables = {name: _list_scores(scores, name) for name in outputs}
    room = PLAIN_WIDTH - max((sum(_width_of(rows)[1:]) for _, rows in tables.values()), default=0)
    names, lines = fit_names([score.model for score in scores], room)
    for line in lines:
        console.print(line, soft_wrap=True)
    shown: list[str] = []
    for name, (columns, rows) in tables.items():
        if len(outputs) > 1:
            console.print(f"output '{name}' ({outputs[name]})", soft_wrap=True)
        table = make_table(*rows[0])
        for model, *cells in rows[1:]:
            table.add_row(names.get(model, ""), *cells)
        print_table(console, table)
        shown += columns
    for score in result.scores:
        if (moved := score.difference) is not None and moved.low is not None and moved.high is not None:
            console.print(
                f"{score.model}: top-1 {moved.value:+.2%} against the reference, {moved.low:+.2%} to {moved.high:+.2%}",
                soft_wrap=True,
            )
    for line in list_legend(shown):
        console.print(line, soft_wrap=True)
    console.print(
        f"{result.n_images} images, {result.provider}; in brackets: {result.confidence:.0%} intervals", soft_wrap=True
    )
    for note in result.notes:
        console.print(note, soft_wrap=True)
    if result.labels:
        console.print(f"labels: {result.labels}", soft_wrap=True)
    origins = [origin for origin in dict.fromkeys(result.preprocessing) if not origin.startswith("guessed")]
    if origins:
        console.print(f"preprocessing: {'; '.join(origins)}", soft_wrap=True)


def _list_scores(scores: Sequence[Score], name: str) -> tuple[list[str], list[list[str]]]:
    """(metrics of an output, its table: a head, and of every model a row and one with intervals)."""
    found = [(score.model, output) for score in scores for output in score.outputs if output.output == name]
    columns = list(dict.fromkeys(metric.name for _, output in found for metric in output.metrics))
    rows = [["model", *map(name_metric, columns)]]
    for model, output in found:
        metrics = [output.find(column) for column in columns]
        rows.append([model, *("-" if m is None else write_value(m.name, m.value) for m in metrics)])
        if any(metric is not None and metric.low is not None for metric in metrics):
            rows.append(["", *("" if metric is None else write_interval(metric) for metric in metrics)])
    return columns, rows


def _width_of(rows: Sequence[Sequence[str]]) -> list[int]:
    """Of every column, with the space before it."""
    return [max(map(cell_len, column)) + SPACING for column in zip(*rows, strict=True)]
