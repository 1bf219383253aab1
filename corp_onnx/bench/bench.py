"""How fast models are, measured in turns: paths of models -> latency, throughput, and the speed-up over the first one.

Enters paths of ONNX files and TensorRT engines; leaves a `BenchResult`. For every provider and batch size all models
run in turns (see timing.py), so that speed-ups hold on a machine that others use too. Beside each measured speed-up
stands the ideal one, MACs of the first model over MACs of this one, and which part of it was achieved: the rest went
into what MACs do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from corp_onnx.bench.candidates import ENGINE, BenchModel, Candidate
from corp_onnx.bench.subjects import read_subject
from corp_onnx.errors import InputError, ModelError, OptionError
from corp_onnx.images.batch import check_batch_size
from corp_onnx.latency.turns import (
    SESSION_CONFIG,
    Latency,
    Ratio,
    Schedule,
    choose_schedule,
    paired_ratio,
    summarise,
    time_turns,
)
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.results import Environment, Result, Rows, describe_environment
from corp_onnx.run.runtime import PROVIDERS, import_runtime, resolve_provider

DEFAULT_BATCHES = (1, 8)
DEFAULT_PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")
"""Measured where they are there and nobody says which."""

MAX_THREADS = 1024
"""ONNX Runtime starts as many as it is told, and a slip of the finger takes the memory of the machine."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One way of running one model; times in seconds, of a whole batch.

    Attributes:
        latency: of a batch.
        throughput: images in a second, at the median latency, one batch after another.
        speedup: over the first model run in the same way, round by round; None for the first model itself.
    """

    latency: Latency
    throughput: float
    speedup: Ratio | None


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One model on one provider at one batch size.

    Attributes:
        model: path of the file.
        provider: as a person types it; `engine` is TensorRT itself.
        batch: images at a time.
        rounds: turns that each model had.
        speed: inputs and outputs in host memory.
        resident: inputs and outputs on the device; None where the device is the host.
        ideal: MACs of the first model over those of this one; None for the first, or where MACs or precision differ
            in kind.
        achieved: median speed-up over ideal; without transfers where that was measured.
    """

    model: str
    provider: str
    batch: int
    rounds: int
    speed: Speed
    resident: Speed | None
    ideal: float | None
    achieved: float | None


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """How ONNX Runtime ran; `threads` None is every core, `config` its session configuration entries."""

    optimisation: str
    execution: str
    threads: int | None
    config: dict[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class BenchResult(Result):
    """What `bench_models` returns."""

    models: tuple[BenchModel, ...]
    rows: tuple[BenchRow, ...]
    schedule: Schedule
    session: SessionFacts
    notes: tuple[str, ...]
    environment: Environment

    @property
    def summary(self) -> str:
        """Every speed-up, or the latency of a model alone."""
        faster = [row for row in self.rows if row.speed.speedup is not None]
        return ", ".join(f"{row.model} {_describe_speed(row)} at {row.provider} batch {row.batch}"
                         for row in faster or self.rows)  # fmt: skip

    @property
    def table(self) -> Rows:
        """One row a model, provider and batch size."""
        rows = [
            (r.model, r.provider, str(r.batch), f"{1e3 * r.speed.latency.p50:.2f}", f"{r.speed.throughput:.1f}",
             "-" if r.speed.speedup is None else f"{r.speed.speedup.median:.2f}")
            for r in self.rows
        ]  # fmt: skip
        return [("model", "provider", "batch", "p50, ms", "images/s", "speed-up"), *rows]


def _describe_speed(row: BenchRow) -> str:
    if row.speed.speedup is None:
        return f"{1e3 * row.speed.latency.p50:.2f} ms"
    return f"{row.speed.speedup.median:.2f} times as fast"


def bench_models(
    models: Sequence[Path | str],
    *,
    batches: Sequence[int] = DEFAULT_BATCHES,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    schedule: Schedule | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
    **options: Any,
) -> BenchResult:
    """Latency, throughput and speed-up of every model, on every provider and batch size.

    Args:
        models: ONNX files, quantised or not, and TensorRT engines; the first is what the others are compared with.
        batches: images at a time. A model of fixed batch sets it for all, so that they can be compared.
        providers: for the ONNX files. None: those of cpu, cuda, tensorrt and openvino that are there.
        threads: inside an operator, on the CPU; None lets ONNX Runtime take every core.
        schedule: rounds or seconds, for each provider and batch size, as one value, or
        options: its fields by name: `repeats`, `seconds`, `warmup`, `seed`.
        clock: monotonic seconds.
        progress: told how far the run is; a phase is a provider and a batch size.

    Raises:
        OptionError: a batch size, provider or number out of range, or no model.
        ModelError: a file can not be read or run, or the models take different inputs.
        MissingExtraError: ONNX Runtime, or for engines TensorRT, is not installed.
    """
    _check_numbers(len(models), batches, threads)
    schedule = choose_schedule(schedule, **options)
    subjects = [read_subject(Path(path)) for path in models]
    facts = [subject.facts for subject in subjects]
    only_engines = all(model.is_engine for model in facts)  # which need no ONNX Runtime
    wanted = () if only_engines and providers is None else _choose_providers(providers)
    _require_same_inputs(facts)
    chosen, notes = _choose_batches(facts, batches)
    notes += [f"{m.path} is bfloat16 and runs as its float32 twin." for m in facts if m.precision == "bfloat16"]
    run = follow(progress)
    engines = (ENGINE,) if any(model.is_engine for model in facts) else ()
    run.plan(_plan_phases((*wanted, *engines), chosen, schedule))
    rows: list[BenchRow] = []
    failed: list[InputError] = []
    for provider in (*wanted, ENGINE):
        group = [subject for subject in subjects if subject.facts.is_engine == (provider == ENGINE)]
        try:
            opened = [subject.open(provider, threads) for subject in group]
            for batch in chosen if opened else ():
                with run.enter(_name_phase(provider, batch), things="rounds") as step:
                    measure = partial(time_turns, schedule=schedule, clock=clock, progress=step.at)
                    bound = [one.bind(batch) for one in opened]
                    rows += _compare([s.facts for s in group], bound, provider, batch, measure)
        except InputError as error:
            if providers is not None:
                raise
            failed.append(error)  # nobody asked for this one, and the others can still be measured
    if failed and not rows:
        raise failed[0]
    notes += [f"not measured: {error}" for error in failed]
    session = SessionFacts("all", "sequential", threads, dict(SESSION_CONFIG))
    environment = describe_environment(", ".join(dict.fromkeys(row.provider for row in rows)), threads)
    return BenchResult(tuple(facts), tuple(rows), schedule, session, tuple(notes), environment)


def _check_numbers(n_models: int, batches: Sequence[int], threads: int | None) -> None:
    if not n_models:
        raise OptionError("nothing to measure: give at least one model.")
    if not batches:
        raise OptionError("nothing to measure: give at least one batch size.")
    for batch in batches:
        check_batch_size(batch)
    if threads is not None and threads < 1:
        raise OptionError(f"--threads must be at least 1; found {threads}.")
    if threads is not None and threads > MAX_THREADS:
        raise OptionError(f"--threads must be at most {MAX_THREADS}; found {threads}.")


def _choose_providers(asked: Sequence[str] | None) -> tuple[str, ...]:
    """The providers to measure; asked for and missing is an error, missing by default is not."""
    if asked is None:
        known = import_runtime().get_available_providers()
        return tuple(name for name in DEFAULT_PROVIDERS if PROVIDERS[name] in known)
    if not asked:
        raise OptionError(f"no provider: give one or more of {', '.join(PROVIDERS)}.")
    for name in asked:
        resolve_provider(name)
    return tuple(dict.fromkeys(asked))


def _require_same_inputs(facts: Sequence[BenchModel]) -> None:
    """Names and precision may differ between exports; what a batch looks like may not."""
    first = facts[0]
    for other in facts[1:]:
        if other.inputs != first.inputs:
            raise ModelError(
                f"{first.path} takes {_describe_inputs(first)} and {other.path} takes {_describe_inputs(other)}; only "
                "models with the same inputs can be compared, measure the others apart."
            )


def _describe_inputs(facts: BenchModel) -> str:
    return " and ".join(f"[{', '.join(map(str, ('batch', *axes)))}]" for axes in facts.inputs)


def _choose_batches(facts: Sequence[BenchModel], asked: Sequence[int]) -> tuple[tuple[int, ...], list[str]]:
    """(batch sizes for every model, what to say about them)."""
    fixed = {model.batch: model for model in facts if model.batch is not None}
    if not fixed:
        return tuple(dict.fromkeys(asked)), []
    if len(fixed) > 1:
        each = " and ".join(f"{model.path} takes {size}" for size, model in fixed.items())
        raise ModelError(f"the models have different fixed batch sizes ({each} at a time) and can not be compared.")
    ((size, model),) = fixed.items()
    note = f"{model.path} has a fixed batch of {size}, so {'everything' if len(facts) > 1 else 'it'} is measured there."
    return (size,), [] if tuple(asked) == (size,) else [note]


def _name_phase(provider: str, batch: int) -> str:
    return f"{provider}, batch {batch}"


def _plan_phases(providers: Sequence[str], batches: Sequence[int], schedule: Schedule) -> list[Phase]:
    """Every provider at every batch size: as long as the other, or as many images more as its batch is larger."""
    costs = {batch: schedule.repeats * batch if schedule.repeats else schedule.seconds for batch in batches}
    return [Phase(_name_phase(p, b), costs[b], p) for p, b in product(providers, batches)]


def _compare(
    facts: Sequence[BenchModel],
    candidates: Sequence[Candidate],
    provider: str,
    batch: int,
    measure: Callable[[Sequence[Callable[[], None]]], np.ndarray],
) -> list[BenchRow]:
    """Every candidate, in turns with the others in both ways of running."""
    resident = [c.resident for c in candidates if c.resident is not None]
    seconds = measure([c.run for c in candidates] + resident)
    speeds = _measure_speeds(seconds[:, : len(candidates)], batch)
    on_device = _measure_speeds(seconds[:, len(candidates) :], batch) if resident else [None] * len(candidates)
    rows: list[BenchRow] = []
    for model, speed, device_speed in zip(facts, speeds, on_device, strict=True):
        ideal = _ideal_speedup(facts[0], model) if model is not facts[0] else None
        ratio = (device_speed or speed).speedup
        achieved = ratio.median / ideal if ratio is not None and ideal is not None else None
        rows.append(BenchRow(model.path, provider, batch, len(seconds), speed, device_speed, ideal, achieved))
    return rows


def _measure_speeds(seconds: Float[np.ndarray, "rounds models"], batch: int) -> list[Speed]:
    """One a column; the first column is the baseline of the others."""
    speeds: list[Speed] = []
    for i in range(seconds.shape[1]):
        latency = summarise(seconds[:, i])
        speedup = paired_ratio(seconds[:, 0], seconds[:, i]) if i else None
        speeds.append(Speed(latency, batch / latency.p50, speedup))
    return speeds


def _ideal_speedup(first: BenchModel, other: BenchModel) -> float | None:
    """What fewer MACs promise; nothing where the MACs are of another precision."""
    if first.macs is None or other.macs is None or first.precision != other.precision:
        return None
    return first.macs / other.macs
