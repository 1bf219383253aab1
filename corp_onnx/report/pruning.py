"""What `prune` did, as tables on stdout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.table import Table

from corp_onnx.memory import write_size
from corp_onnx.report.outputs import describe_outputs, describe_promise, list_legend
from corp_onnx.report.terminal import KIND_NAMES, make_table, open_console, print_table
from corp_onnx.results import HeldOut, MergeResult, ModelFacts, PruneResult, SpeedResult, UnitResult

MAX_KINDS = 3
"""Of units side by side in a table."""

N_NAMED = 3
"""Units that a line names."""

PRUNING_LEGEND = (
    "error: of the unit's own output on held-back images, before the refit; only cut: the same width without "
    "compensation"
)
WHOLE_LEGEND, TOKENS_LEGEND = "; -: left whole", "; tokens: left behind the block"


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
    whole = f" (left whole: {_list_whole(result)})" if result.left_whole else ""
    console.print(f"pruned {n_pruned} of {result.n_units_found} units{whole} -> {result.pruned.path}", soft_wrap=True)
    console.print(f"report: {result.report_path}", soft_wrap=True)


def _list_whole(result: PruneResult) -> str:
    """A few units by their names, of more how many of each kind: the report says which."""
    if len(result.left_whole) <= N_NAMED:
        return ", ".join(result.left_whole)
    found = Counter(unit.kind for unit in result.network if unit.key in result.left_whole)
    return ", ".join(f"{found[kind]} {name}" for kind, name in KIND_NAMES.items() if found[kind])


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
