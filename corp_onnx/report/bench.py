"""A benchmark as tables on stdout: one for each provider and batch size. Enters a result; leaves what is printed."""

from __future__ import annotations

from corp_onnx.bench.bench import BenchResult, BenchRow, Speed
from corp_onnx.bench.timing import Ratio
from corp_onnx.report.terminal import make_table, open_console, print_table

COLUMNS = (
    "model", "precision", "p50", "p90", "p99", "middle half", "images/s", "speed-up", "by MACs", "achieved",
)  # fmt: skip


def print_bench(result: BenchResult) -> None:
    """Latency in ms, images in a second, speed-up with its middle half, and what MACs promise."""
    console = open_console()
    for provider, batch in dict.fromkeys((row.provider, row.batch) for row in result.rows):
        rows = [row for row in result.rows if (row.provider, row.batch) == (provider, batch)]
        console.print(f"{provider}, batch {batch}, {_count(rows[0].rounds, 'round')}", soft_wrap=True)
        resident = [speed for row in rows if (speed := row.resident) is not None]
        ways = [("with transfers" if resident else "", [row.speed for row in rows])]
        ways += [("on the device", resident)] if resident else []
        for way, speeds in ways:
            if way:
                console.print(f"{way}:", soft_wrap=True)
            table = make_table(*COLUMNS, left=2)
            precisions = {model.path: model.precision for model in result.models}
            for row, speed in zip(rows, speeds, strict=True):
                table.add_row(row.model, precisions[row.model], *_cells(row, speed))
            print_table(console, table)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    session, environment = result.session, result.environment
    threads = "every core" if session.threads is None else _count(session.threads, "thread")
    runtime = ", ".join(f"{k} {v}" for k, v in environment.versions.items() if k.startswith("onnxruntime"))
    console.print(
        f"ms for a batch; models in turns, {_count(result.schedule.warmup, 'round')} of warm-up; {runtime}, "
        f"{threads}, graph optimisation {session.optimisation}, {session.execution}; {environment.machine}",
        soft_wrap=True,
    )


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n > 1)}"


def _cells(row: BenchRow, speed: Speed) -> list[str]:
    latency = speed.latency
    times = (latency.p50, latency.p90, latency.p99)
    return [
        *(f"{1e3 * seconds:.2f}" for seconds in times),
        f"{1e3 * latency.q1:.2f} - {1e3 * latency.q3:.2f}",
        f"{speed.throughput:.1f}",
        "-" if speed.speedup is None else _ratio(speed.speedup),
        "-" if row.ideal is None else f"{row.ideal:.2f}",
        "-" if row.ideal is None or speed.speedup is None else f"{speed.speedup.median / row.ideal:.0%}",
    ]


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.q1:.2f} - {ratio.q3:.2f})"
