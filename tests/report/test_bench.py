"""The tables of bench from results made up by hand; what is measured is tested in tests/bench."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corp_onnx.bench.candidates import BenchModel
from corp_onnx.bench.values import BenchResult, BenchRow, SessionFacts, Speed
from corp_onnx.latency.turns import Latency, Ratio, Schedule
from corp_onnx.report.bench import LEGEND, print_bench
from corp_onnx.results import Environment

HEAD = "model p50 p99 images/s speed-up of ideal"
LATENCY = Latency(p50=0.010, p90=0.0123, p99=0.2, q1=0.009, q3=0.011)
DENSE = Speed(LATENCY, 800.0, None)
SMALL = Speed(replace(LATENCY, p50=0.006), 1333.333, Ratio(1.6, 1.5, 1.75))
MODELS = tuple(
    BenchModel(path, "0" * 64, 1000, precision, macs, None, ((3, 8, 8),), False)
    for path, precision, macs in (("dense.onnx", "float32", 100), ("small.onnx", "int8", 50))
)


def rows(provider: str = "cpu", batch: int = 8, rounds: int = 20, resident: bool = False) -> tuple[BenchRow, BenchRow]:
    faster = Ratio(1.9, 1.8, 2.0)
    return (
        BenchRow("dense.onnx", provider, batch, rounds, DENSE, DENSE if resident else None, None, None),
        BenchRow(
            "small.onnx", provider, batch, rounds, SMALL, replace(SMALL, speedup=faster) if resident else None, 2.0, 0.8
        ),
    )


def result(*found: BenchRow, threads: int | None = 2, notes: tuple[str, ...] = ()) -> BenchResult:
    versions = {"numpy": "2.1", "onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.0"}
    return BenchResult(
        MODELS, found or rows(), Schedule(warmup=3), SessionFacts("all", "sequential", threads, {}), notes,
        Environment("0.1", "3.12", "Linux x86_64 EPYC x2", "cpu", threads, versions),
    )  # fmt: skip


def test_times_speed_and_what_macs_promise(printed) -> None:
    print_bench(result())
    assert printed() == [
        "cpu, batch 8, 20 rounds",
        HEAD,
        "dense.onnx 10.00 200.00 800.0 - -",
        "small.onnx 6.00 200.00 1333.3 1.60 (1.50-1.75) 80% of 2.00",
        LEGEND,
        "dense.onnx is float32, small.onnx is int8",
        "models in turns, 3 rounds of warm-up; onnxruntime 1.32.0, onnxruntime-gpu 1.31.0, 2 threads, "
        "graph optimisation all, sequential; Linux x86_64 EPYC x2",
    ]


def test_a_table_for_each_provider_and_batch(printed) -> None:
    print_bench(result(*rows("cuda", 1), *rows("cuda", 8), *rows("cpu", 1)))
    titles = [line for line in printed() if ", batch " in line]
    assert titles == ["cuda, batch 1, 20 rounds", "cuda, batch 8, 20 rounds", "cpu, batch 1, 20 rounds"]


def test_with_and_without_transfers(printed) -> None:
    print_bench(result(*rows("cuda", resident=True)))
    lines = printed()
    assert [lines[i] for i in (1, 5)] == ["with transfers:", "on the device:"]
    assert lines[4].endswith(" 1.60 (1.50-1.75) 80% of 2.00")
    assert lines[8].endswith(" 1.90 (1.80-2.00) 95% of 2.00")


def test_where_macs_promise_nothing_there_is_a_speed_up_alone(printed) -> None:
    """Another kind of precision, or an engine."""
    dense, small = rows()
    print_bench(result(dense, replace(small, ideal=None, achieved=None)))
    assert printed()[3].endswith(" 1333.3 1.60 (1.50-1.75) -")


def test_a_promise_without_a_speed_up_is_not_achieved(printed) -> None:
    dense, _ = rows()
    print_bench(result(replace(dense, ideal=1.0)))
    assert printed()[2].endswith(" 800.0 - -")


@pytest.mark.parametrize(
    ("threads", "said"), [(None, ", every core, "), (1, ", 1 thread, "), (16, ", 16 threads, ")]
)  # fmt: skip
def test_threads(printed, threads, said) -> None:
    print_bench(result(threads=threads))
    assert said in printed()[-1]


def test_one_round_and_notes(printed) -> None:
    print_bench(result(*rows(rounds=1), notes=("cuda left out: no device.", "two.")))
    lines = printed()
    assert lines[0] == "cpu, batch 8, 1 round"
    assert lines[-3:-1] == ["cuda left out: no device.", "two."]


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_cuts_no_number(printed, narrow, kind) -> None:
    narrow(kind)
    print_bench(result())
    text = "\n".join(printed())
    for number in ("200.00", "1333.3", "1.60 (1.50-1.75)", "80% of 2.00"):
        assert number in text


@pytest.mark.parametrize(
    ("dense", "small", "shown"),
    [
        ("dense.onnx", "small.onnx", ("dense.onnx", "small.onnx")),
        ("a/long/way/to/the/models/dense.onnx", "another/long/way/small.onnx", ("dense.onnx", "small.onnx")),
        ("a/long/way/to/the/models/a/m.onnx", "a/long/way/to/the/models/b/m.onnx", ("a/m.onnx", "b/m.onnx")),
        ("a" * 40 + ".onnx", "b.onnx", ("1", "2")),
    ],
)
def test_long_paths_leave_the_table_80_columns_wide(capsys, dense: str, small: str, shown: tuple[str, str]) -> None:
    """Their ends where these tell them apart, else numbers, which lines above explain."""
    slow = Speed(Latency(12.34567, 12.34567, 12.34567, 1.0, 2.0), 12345.6, Ratio(10.25, 10.15, 10.35))
    found = [replace(row, model=path, speed=slow, ideal=10.5) for row, path in zip(rows(), (dense, small), strict=True)]
    models = tuple(replace(model, path=path) for model, path in zip(MODELS, (dense, small), strict=True))
    print_bench(replace(result(*found), models=models))
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("model"))
    assert tuple(line.split()[0] for line in lines[start + 2 : start + 4]) == shown
    assert all(len(line) <= 80 for line in lines[start : start + 4])
    if shown == ("1", "2"):
        assert lines[:2] == [f"1: {dense}", f"2: {small}"]
