"""A benchmark as tables on stdout: one for each provider and batch size. Enters a result; leaves what is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from corp_onnx.bench.values import BenchResult, BenchRow, Speed
from corp_onnx.latency.turns import Ratio
from corp_onnx.report.terminal import count_things, fit_names, make_table, open_console, print_table
from corp_onnx.run.runtime import OPENVINO

ACROSS = ("model", "runtime", "p50", "speed-up")

COLUMNS = ("model", "p50", "p99", "images/s", "speed-up", "of ideal")

NAME_ROOM = 21
"""Columns for the name of a model; the table is then 80 wide."""

LEGEND = (
    "p50, p99: ms for a batch, half and 99 of 100 are faster; speed-up over the first model, round by round, with its "
    "middle half; of ideal: which part that is of the speed-up that fewer multiply-accumulates promise"
)


def print_bench(result: BenchResult) -> None:
    """Latency in ms, images in a second, speed-up with its middle half, and what MACs promise."""
    console = open_console()
    names, lines = fit_names([row.model for row in result.rows], NAME_ROOM)
    for line in lines:
        console.print(line, soft_wrap=True)
    for provider, batch in dict.fromkeys((row.provider, row.batch) for row in result.rows):
        rows = [row for row in result.rows if (row.provider, row.batch) == (provider, batch)]
        console.print(f"{provider}, batch {batch}, {count_things(rows[0].rounds, 'round')}", soft_wrap=True)
        resident = [speed for row in rows if (speed := row.resident) is not None]
        ways = [("with transfers" if resident else "", [row.speed for row in rows])]
        ways += [("on the device", resident)] if resident else []
        for way, speeds in ways:
            if way:
                console.print(f"{way}:", soft_wrap=True)
            table = make_table(*COLUMNS)
            for row, speed in zip(rows, speeds, strict=True):
                table.add_row(names[row.model], *_cells(row, speed))
            print_table(console, table)
        if said := {names[row.model]: row.precision for row in rows if row.precision is not None}:
            alike = len(set(said.values())) == 1
            each = "; ".join(f"{name} {precision}" for name, precision in said.items())
            console.print(f"products computed in: {next(iter(said.values())) if alike else each}", soft_wrap=True)
    _print_across(console, result.rows, names)
    console.print(LEGEND, soft_wrap=True)
    precisions = {names[model.path]: model.precision for model in result.models if model.path in names}
    console.print(", ".join(f"{name} is {precision}" for name, precision in precisions.items()), soft_wrap=True)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    session, environment = result.session, result.environment
    threads = "every core" if session.threads is None else count_things(session.threads, "thread")
    runtime = ", ".join(f"{k} {v}" for k, v in environment.versions.items() if k.startswith("onnxruntime"))
    own = ", ".join(f"{name} {value}" for name, value in session.openvino.items())
    own = f"; {OPENVINO} {environment.versions[OPENVINO]}, compiled for the batch, {own}" if own else ""
    console.print(
        f"models in turns, {count_things(result.schedule.warmup, 'round')} of warm-up; {runtime}, "
        f"{threads}, graph optimisation {session.optimisation}, {session.execution}{own}; {environment.machine}",
        soft_wrap=True,
    )


def _print_across(console: Console, rows: Sequence[BenchRow], names: Mapping[str, str]) -> None:
    """Every runtime that took turns with another, over the first model on the first of them."""
    for provider, batch in dict.fromkeys((row.across.provider, row.batch) for row in rows if row.across is not None):
        own = [row for row in rows if row.batch == batch and row.across and row.across.provider == provider]
        over = next(f"{names[row.across.model]} on {provider}" for row in own if row.across)
        console.print(f"across runtimes, batch {batch}: over {over}, in the same rounds", soft_wrap=True)
        table = make_table(*ACROSS)
        for row in own:
            ratio = "-" if row.across is None else _ratio(row.across.speedup)
            table.add_row(names[row.model], row.provider, f"{1e3 * row.speed.latency.p50:.2f}", ratio)
        print_table(console, table)


def _cells(row: BenchRow, speed: Speed) -> list[str]:
    latency = speed.latency
    return [
        f"{1e3 * latency.p50:.2f}",
        f"{1e3 * latency.p99:.2f}",
        f"{speed.throughput:.1f}",
        "-" if speed.speedup is None else _ratio(speed.speedup),
        _promise(row, speed),
    ]


def _promise(row: BenchRow, speed: Speed) -> str:
    if row.ideal is None or speed.speedup is None:
        return "-"
    return f"{speed.speedup.median / row.ideal:.0%} of {row.ideal:.2f}"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.q1:.2f}-{ratio.q3:.2f})"
