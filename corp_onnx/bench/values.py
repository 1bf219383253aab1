"""What a measurement in turns leaves, as values: a row a model, provider and batch size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from corp_onnx.bench.candidates import BenchModel
from corp_onnx.latency.turns import Latency, Ratio, Schedule
from corp_onnx.results import Environment, Result, Rows


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
class Across:
    """A speed-up over another runtime: over `model` on `provider`, round by round."""

    provider: str
    model: str
    speedup: Ratio


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One model on one provider at one batch size.

    Attributes:
        model: path of the file.
        provider: as a person types it; `engine` is TensorRT itself, `openvino:PRECISION` OpenVINO's own API.
        batch: images at a time.
        rounds: turns that each model had.
        speed: inputs and outputs in host memory.
        resident: inputs and outputs on the device; None where the device is the host.
        ideal: MACs of the first model over those of this one; None for the first, or where MACs or precision differ
            in kind.
        achieved: median speed-up over ideal; without transfers where that was measured.
        precision: what its products were computed in, read back from the runtime; None where it does not say.
        across: over the first model on the first provider of the same rounds; None for rows of that provider.
    """

    model: str
    provider: str
    batch: int
    rounds: int
    speed: Speed
    resident: Speed | None
    ideal: float | None
    achieved: float | None
    precision: str | None = None
    across: Across | None = None


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """How ONNX Runtime ran; `threads` None is every core, `config` its session configuration entries.

    `openvino` are OpenVINO's settings, read back, empty where it did not run.
    """

    optimisation: str
    execution: str
    threads: int | None
    config: dict[str, str]
    openvino: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class BenchResult(Result):
    """What `bench_models` returns."""

    verb: ClassVar[str] = "bench"
    models: tuple[BenchModel, ...]
    rows: tuple[BenchRow, ...]
    schedule: Schedule
    session: SessionFacts
    notes: tuple[str, ...]
    environment: Environment
    command: str = ""

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
