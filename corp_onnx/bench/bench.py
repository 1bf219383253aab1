"""How fast models are, measured in turns: paths of models -> latency, throughput, and the speed-up over the first one.

Enters paths of ONNX files and TensorRT engines; leaves a `BenchResult`. For every provider and batch size all models
run in turns (see latency/turns.py), so that speed-ups hold on a machine that others use too. Beside each measured
speed-up stands the ideal one, MACs of the first model over MACs of this one, and which part of it was achieved: the
rest went into what MACs do not count.

ONNX Runtime on the CPU and OpenVINO take turns together, so that a speed-up over the first model on the first of them,
`across`, is a ratio within rounds as well. A device with a memory of its own has rounds of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from corp_onnx.bench.candidates import ENGINE, BenchModel, Candidate, Opened, Subject
from corp_onnx.bench.subjects import read_subject
from corp_onnx.bench.values import Across, BenchResult, BenchRow, SessionFacts, Speed
from corp_onnx.errors import InputError, ModelError, OptionError
from corp_onnx.images.batch import check_batch_size
from corp_onnx.latency.turns import (
    SESSION_CONFIG,
    Schedule,
    choose_schedule,
    paired_ratio,
    summarise,
    time_turns,
)
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.results import Environment, describe_environment
from corp_onnx.run.openvino import find_version, is_installed, list_places, parse_place
from corp_onnx.run.runtime import OPENVINO, OPENVINO_PROVIDER, PROVIDERS, import_runtime, resolve_provider

DEFAULT_BATCHES = (1, 8)
DEFAULT_PROVIDERS = ("cpu", "cuda", "tensorrt", OPENVINO_PROVIDER)
"""ONNX Runtime's, measured where they are there and nobody says which; and OpenVINO where that is installed."""

TOGETHER = ("cpu", OPENVINO)
"""What takes turns together: runtimes that compute in the host's memory."""

MAX_THREADS = 1024
"""ONNX Runtime starts as many as it is told, and a slip of the finger takes the memory of the machine."""

_Made = TypeVar("_Made")


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
        providers: for the ONNX files: ONNX Runtime's, and `openvino` for OpenVINO's own API, with a device and a
            precision behind it (`openvino:bf16`), or for f32 and what the device computes in by itself. None: those of
            cpu, cuda, tensorrt and openvino that are there.
        threads: inside an operator, on the CPU; None lets the runtime take every core.
        schedule: rounds or seconds, for each provider and batch size, as one value, or
        options: its fields by name: `repeats`, `seconds`, `warmup`, `seed`.
        clock: monotonic seconds.
        progress: told how far the run is; a phase is a batch size on the providers that take turns together.

    Raises:
        OptionError: a batch size, provider or number out of range, or no model.
        ModelError: a file can not be read or run, or the models take different inputs.
        MissingExtraError: ONNX Runtime, OpenVINO or for engines TensorRT is not installed.
    """
    _check_numbers(len(models), batches, threads)
    schedule = choose_schedule(schedule, **options)
    subjects = [read_subject(Path(path)) for path in models]
    facts = [subject.facts for subject in subjects]
    only_engines = all(model.is_engine for model in facts)  # which need no ONNX Runtime
    failed: list[InputError] = []
    forgiven = failed if providers is None else None  # nobody asked for those, and the others can still be measured
    wanted = () if only_engines and providers is None else _choose_providers(providers, failed)
    _require_same_inputs(facts)
    chosen, notes = _choose_batches(facts, batches)
    notes += [f"{m.path} is bfloat16 and runs as its float32 twin." for m in facts if m.precision == "bfloat16"]
    run = follow(progress)
    groups = _group_providers(wanted, has_engines=any(model.is_engine for model in facts))
    run.plan(_plan_phases(groups, chosen, schedule))
    rows: list[BenchRow] = []
    settings: dict[str, str] = {}
    for group in groups:
        lanes = [lane for name in group for lane in _attempt(partial(_open, name, subjects, threads), forgiven)]
        for batch in chosen if lanes else ():
            with run.enter(_name_phase([lane.provider for lane in lanes], batch), things="rounds") as step:
                bound = [one for lane in lanes for one in _attempt(partial(lane.bind, batch), forgiven)]
                timing = replace(schedule, seconds=schedule.seconds * max(len(bound), 1))
                measure = partial(time_turns, schedule=timing, clock=clock, progress=step.at)
                rows += _compare(bound, batch, measure) if bound else []
                settings |= {k: v for one in bound for c in one.candidates for k, v in c.settings.items()}
    if failed and not rows:
        raise failed[0]
    notes += dict.fromkeys(f"not measured: {error}" for error in failed)
    session = SessionFacts("all", "sequential", threads, dict(SESSION_CONFIG), settings)
    return BenchResult(tuple(facts), tuple(rows), schedule, session, tuple(notes), _describe_machine(rows, threads))


@dataclass(frozen=True, slots=True, eq=False)
class _Bound:
    """Models on a provider with a batch."""

    provider: str
    facts: Sequence[BenchModel]
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    """Models opened on a provider."""

    provider: str
    facts: Sequence[BenchModel]
    opened: Sequence[Opened]

    def bind(self, n_images: int) -> _Bound:
        return _Bound(self.provider, self.facts, [one.bind(n_images) for one in self.opened])


def _open(provider: str, subjects: Sequence[Subject], threads: int | None) -> _Lane:
    own = [subject for subject in subjects if subject.facts.is_engine == (provider == ENGINE)]
    return _Lane(provider, [subject.facts for subject in own], [subject.open(provider, threads) for subject in own])


def _attempt(make: Callable[[], _Made], forgiven: list[InputError] | None) -> list[_Made]:
    """What `make` gives; nothing where it is refused and that is forgiven."""
    try:
        return [make()]
    except InputError as error:
        if forgiven is None:
            raise
        forgiven.append(error)
        return []


def _describe_machine(rows: Sequence[BenchRow], threads: int | None) -> Environment:
    found = describe_environment(", ".join(dict.fromkeys(row.provider for row in rows)), threads)
    if any(parse_place(row.provider) for row in rows):
        found.versions[OPENVINO] = find_version()
    return found


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


def _choose_providers(asked: Sequence[str] | None, failed: list[InputError]) -> tuple[str, ...]:
    """The providers to measure; asked for and missing is an error, missing by default is not."""
    if asked is None:
        known = import_runtime().get_available_providers()
        there = [name for name in DEFAULT_PROVIDERS if PROVIDERS.get(name, name) in known]
        own = _attempt(partial(list_places, OPENVINO), failed) if is_installed() else []
        return (*there, *(name for names in own for name in names))
    if not asked:
        raise OptionError(f"no provider: give one or more of {', '.join((*PROVIDERS, OPENVINO))}.")
    names = dict.fromkeys(name for word in asked for name in list_places(word))
    for name in names:
        if parse_place(name) is None:
            resolve_provider(name)
    return tuple(names)


def _group_providers(wanted: Sequence[str], *, has_engines: bool) -> list[tuple[str, ...]]:
    """The providers that take turns together, in the order of the first of each."""
    groups: dict[str, list[str]] = {}
    for name in wanted:
        runtime = name.lower().split(":")[0]
        groups.setdefault("together" if runtime in TOGETHER else name, []).append(name)
    return [tuple(group) for group in groups.values()] + ([(ENGINE,)] if has_engines else [])


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


def _name_phase(providers: Sequence[str], batch: int) -> str:
    return f"{' + '.join(providers)}, batch {batch}"


def _plan_phases(groups: Sequence[Sequence[str]], batches: Sequence[int], schedule: Schedule) -> list[Phase]:
    """Every group at every batch size: as long as the other, or as many images more as its batch is larger."""
    costs = {batch: schedule.repeats * batch if schedule.repeats else schedule.seconds for batch in batches}
    return [Phase(_name_phase(g, b), costs[b] * len(g), " + ".join(g)) for g, b in product(groups, batches)]


def _compare(
    bound: Sequence[_Bound], batch: int, measure: Callable[[Sequence[Callable[[], None]]], np.ndarray]
) -> list[BenchRow]:
    """Every candidate, in turns with the others, those of other providers too, in both ways of running."""
    everyone = [candidate for one in bound for candidate in one.candidates]
    resident = [c.resident for c in everyone if c.resident is not None]
    seconds = measure([c.run for c in everyone] + resident)
    rows: list[BenchRow] = []
    for one in bound:
        own = slice(len(rows), len(rows) + len(one.candidates))
        host = seconds[:, : len(everyone)][:, own]
        device = seconds[:, len(everyone) :][:, own] if resident else None
        first = None if one is bound[0] else (bound[0], seconds[:, 0])
        rows += _describe_rows(one, batch, host, device, first)
    return rows


def _describe_rows(
    one: _Bound,
    batch: int,
    host: Float[np.ndarray, "rounds models"],
    device: Float[np.ndarray, "rounds models"] | None,
    first: tuple[_Bound, Float[np.ndarray, " rounds"]] | None,
) -> list[BenchRow]:
    """The rows of a provider; `first` is the provider of the first model of the same rounds, and that model's time."""
    speeds = _measure_speeds(host, batch)
    on_device = _measure_speeds(device, batch) if device is not None else [None] * len(speeds)
    rows: list[BenchRow] = []
    columns = zip(one.facts, one.candidates, speeds, on_device, host.T, strict=True)
    for model, candidate, speed, device_speed, seconds in columns:
        ideal = _ideal_speedup(one.facts[0], model) if model is not one.facts[0] else None
        ratio = (device_speed or speed).speedup
        achieved = ratio.median / ideal if ratio is not None and ideal is not None else None
        across = None
        if first is not None:
            across = Across(first[0].provider, first[0].facts[0].path, paired_ratio(first[1], seconds))
        rows.append(
            BenchRow(
                model.path, one.provider, batch, len(host), speed, device_speed, ideal, achieved, candidate.precision,
                across,
            )
        )  # fmt: skip
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
