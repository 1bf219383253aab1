"""Where a budget of time is measured, and the table that it is searched by: from a file, or measured here and now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from corp_onnx.blocks import Blocks
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph, Model
from corp_onnx.graph.model import batch_kind
from corp_onnx.latency.measure import measure_times
from corp_onnx.latency.stopwatch import Stopwatch
from corp_onnx.latency.table import Place, Times, read_times
from corp_onnx.progress import Run
from corp_onnx.results import SpeedResult, describe_environment
from corp_onnx.run.runtime import import_runtime, resolve_provider
from corp_onnx.settings import Budget, PruneSettings, WidthRule
from corp_onnx.tokens.sites import MergeSites
from corp_onnx.tokens.trim import TrimPlan
from corp_onnx.units import Unit

DEFAULT_BATCH = 1

MISSED = 1.05
"""Times as long as was asked for: slower than that is said."""


@dataclass(frozen=True, slots=True, eq=False)
class Clock:
    """A table of times and, where it is of this machine, what measures a model beside the dense one."""

    times: Times
    watch: Stopwatch | None

    def judge(self, budget: WidthRule, expected: float | None, pruned: Model) -> SpeedResult:
        """What was asked, what the search foresaw, and the written file beside the dense one.

        Args:
            expected: times as fast.
        """
        assert isinstance(budget, Budget)
        assert expected is not None
        place = self.times.place
        foreseen = SpeedResult(
            asked=budget.value, kind=budget.kind, expected=expected, provider=place.provider, batch=place.batch,
            threads=place.threads, place=str(place),
        )  # fmt: skip
        if self.watch is None:
            return foreseen
        found = self.watch.compare(self.watch.open(pruned))
        ratio = found.speedup
        return replace(
            foreseen, measured=ratio.median, q1=ratio.q1, q3=ratio.q3, dense_seconds=found.dense, seconds=found.other,
            rounds=found.rounds,
        )  # fmt: skip


def new_table(settings: PruneSettings) -> Path | None:
    """The file that a table will be written to; None where there is none, or it is there already."""
    path = None if settings.times is None else Path(settings.times)
    return None if path is None or path.exists() else path


def open_clock(
    graph: Graph, blocks: Blocks, units: tuple[Unit, ...], trim: TrimPlan | None, sites: MergeSites,
    settings: PruneSettings, run: Run,
) -> Clock:  # fmt: skip
    """The clock of a budget of time.

    Raises:
        OptionError: the table, the batch and the threads do not go together, or the dense model is within the budget.
    """
    budget = settings.method.widths
    assert isinstance(budget, Budget)
    here = _describe_place(graph, settings)
    if settings.times is None or new_table(settings) is not None:
        watch = Stopwatch(graph, settings.provider, here)
        clock = Clock(measure_times(watch, blocks, units, settings.method, trim, sites, run), watch)
    else:
        path = Path(settings.times)
        times = read_times(path, {str(unit.key): unit.width for unit in units})
        _require_same(path, times.place, settings)
        known = times.place.provider in import_runtime().get_available_providers()
        is_here = (times.place.machine, times.place.runtime) == (here.machine, here.runtime) and known
        clock = Clock(times, Stopwatch(graph, times.place.provider, times.place) if is_here else None)
    dense = clock.times.dense
    if budget.kept_share(dense) >= 1:
        raise OptionError(
            f"--latency {1e3 * budget.value:.3g} ms: the model takes {1e3 * dense:.3g} ms as it is "
            f"({clock.times.place}), so nothing has to go; ask for less."
        )
    return clock


def warn_of_speed(speed: SpeedResult | None) -> list[str]:
    """That the written file is slower than what was asked for, or that nobody measured it."""
    if speed is None:
        return []
    if speed.measured is None or speed.seconds is None:
        return [
            f"how fast the pruned model is was not measured: the times are of another machine ({speed.place}). "
            "Run corp-onnx bench there."
        ]
    met = speed.seconds <= speed.asked * MISSED if speed.kind == "latency" else speed.measured * MISSED >= speed.asked
    if met:
        return []
    return ["the pruned model is slower than what was asked for, on this machine and at this moment; ask for more."]


def _describe_place(graph: Graph, settings: PruneSettings) -> Place:
    fixed = batch_kind(graph.model)
    if fixed is not None and settings.at_batch not in (None, fixed):
        raise OptionError(f"--at-batch {settings.at_batch}: {graph.model.path} takes {fixed} at a time; leave it out.")
    batch = fixed or settings.at_batch or DEFAULT_BATCH
    environment = describe_environment(resolve_provider(settings.provider), settings.at_threads)
    runtime = f"onnxruntime {import_runtime().__version__}"
    return Place(environment.machine, environment.provider, runtime, batch, environment.threads)


def _require_same(path: Path, place: Place, settings: PruneSettings) -> None:
    asked = {"--at-batch": (settings.at_batch, place.batch), "--at-threads": (settings.at_threads, place.threads)}
    for flag, (value, known) in asked.items():
        if value not in (None, known):
            raise OptionError(
                f"{flag} {value}: --times {path} was measured with {'every core' if known is None else known}; leave "
                "it out, or give a file that does not exist."
            )
