"""What leaves the process: frozen values that `inspect` and `prune` return, and their one way into JSON.

Numbers only, no arrays and no graphs; every value carries the baseline beside the figure.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from corp_onnx._version import __version__
from corp_onnx.errors import clean_text
from corp_onnx.memory import release_memory

SCHEMA = 1

Rows: TypeAlias = Sequence[Sequence[str]]
"""Of a small table; the first are its heads."""


class Result:
    """What a verb returns: one line for a Python session, a small table for a notebook, JSON for everything else."""

    __slots__ = ()

    @property
    def summary(self) -> str:
        """The essentials in less than a line."""
        raise NotImplementedError

    @property
    def table(self) -> Rows:
        """The essentials in a few rows."""
        raise NotImplementedError

    def to_json(self) -> str:
        """All of it as JSON, schema 1; keys are the attributes."""
        return to_json(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({clean_text(self.summary)})"

    def _repr_html_(self) -> str:
        """As Jupyter shows it: text only, escaped."""
        heads, *rows = [[html.escape(clean_text(cell)) for cell in row] for row in self.table]
        head = "".join(f"<th>{cell}</th>" for cell in heads)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A model as it lies on disk: `n_bytes` with external weights, `precision` of most weights (int8 if quantised)."""

    path: str
    sha256: str
    n_bytes: int
    precision: str


@dataclass(frozen=True, slots=True)
class ModelFacts(FileFacts):
    """What is in it. `batch` None is dynamic; `macs` are multiply-accumulates of one image."""

    n_parameters: int
    macs: int
    opset: int
    batch: int | None
    producer: str


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """One unit as `inspect` shows it. Width is d_hidden, or d_head per head; shares are of the whole model."""

    key: str
    kind: str
    block: int
    width: int
    n_heads: int | None
    n_tokens: int
    spelling: str
    n_parameters: int
    macs: int
    parameter_share: float
    mac_share: float
    prunable: bool
    reason: str = ""
    shares_site: bool = False
    """Whether its cost is that of other units, as that of whole heads is."""


@dataclass(frozen=True, slots=True)
class SkipFacts:
    """Something that looked like a unit and is left alone."""

    kind: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadTokens:
    """Tokens of the last block that no output reads: all but `n_read` of `n_tokens`; `macs` is what they cost."""

    n_tokens: int
    n_read: int
    macs: int
    mac_share: float


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Result):
    """What `inspect` returns; `dead_tokens` is None where every token is read."""

    model: ModelFacts
    n_blocks: int
    units: tuple[UnitFacts, ...]
    skipped: tuple[SkipFacts, ...]
    dead_tokens: DeadTokens | None = None

    @property
    def prunable(self) -> dict[str, tuple[int, float]]:
        """(units that can be pruned, their share of the MACs) by kind; those that share another's cost are left out."""
        own = [unit for unit in self.units if unit.prunable and not unit.shares_site]
        return {
            kind: (sum(u.kind == kind for u in own), sum(u.mac_share for u in own if u.kind == kind))
            for kind in dict.fromkeys(unit.kind for unit in own)
        }

    @property
    def summary(self) -> str:
        """Its size, and what can be pruned."""
        n_units = sum(n for n, _ in self.prunable.values())
        share = sum(share for _, share in self.prunable.values())
        return (
            f"{self.model.path}: {self.n_blocks} blocks, {self.model.macs / 1e9:.4g} GMACs, "
            f"{self.model.n_parameters:,} parameters; {n_units} units with {share:.1%} of the MACs can be pruned"
        )

    @property
    def table(self) -> Rows:
        """One row a kind of unit."""
        rows = [(kind, str(n), f"{share:.1%}") for kind, (n, share) in self.prunable.items()]
        return [("units", "can be pruned", "of the MACs"), *rows]


@dataclass(frozen=True, slots=True)
class UnitResult:
    """One pruned unit.

    Errors are relative, sqrt(E|y' - y|^2 / E|y - E y|^2), of the unit's own output on held-back images with the dense
    model's activations as its input: an MLP's output, a query/key pair's logits (each row centred: softmax does not
    see its mean), a value/output pair's projection. They are those before the refit, which trades
    some of them for errors that came in from before. `error_without` is that of the same width without compensation.
    """

    key: str
    kind: str
    block: int
    width_before: int
    width_after: int
    error: float
    error_without: float
    condition_number: float


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Tokens that merge behind the attention of one block: how many there are of an image before and behind it."""

    block: int
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: what was compared, the largest relative difference found, and the tolerance."""

    name: str
    passed: bool
    difference: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure over n images, and the ends of its interval (metrics/intervals.py); None where it has none."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class OutputScore:
    """One output of a model, alone or against a reference.

    Attributes:
        output: its name.
        task: what it is taken for (metrics/task.py), and why.
        shape: of one image's part.
        is_judged: whether the search minimised its loss, and the promise is about it.
        metrics: what was measured; their names are those of docs/metrics.md.
    """

    output: str
    task: str
    why: str
    shape: tuple[int, ...]
    is_judged: bool
    metrics: tuple[Metric, ...]

    def find(self, name: str) -> Metric | None:
        """The metric of a name, where it was measured."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True, slots=True)
class Promise:
    """What may be said of images that nobody has seen, from images that chose nothing.

    Attributes:
        metric: what is kept: agreement, or a similarity (cosine, correlation, r2).
        value: its mean over the images.
        low: what it is at least, by the lower end of the interval: the promise. None of fewer than two images.
        high: the upper end.
        confidence: of the interval; the lower end alone holds at (1 + confidence) / 2.
        n_images: how many there were.
        wanted: what was asked for; None where a cost was.
        note: what is missing for it, in a sentence; empty where nothing is.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    confidence: float
    n_images: int
    wanted: float | None = None
    note: str = ""


class Judged:
    """What has `outputs` with figures: those of the first output that is judged, each None where it is not defined."""

    __slots__ = ()
    outputs: tuple[OutputScore, ...]

    def find(self, name: str) -> Metric | None:
        """A metric, with its interval."""
        return next((output.find(name) for output in self.outputs if output.is_judged), None)

    def value(self, name: str) -> float | None:
        """The same without it."""
        found = self.find(name)
        return None if found is None else found.value

    @property
    def top1(self) -> float | None:
        """Share of images whose label is the first answer."""
        return self.value("top1")

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the first five."""
        return self.value("top5")

    @property
    def agreement(self) -> float | None:
        """Share of images on which the first answer is the reference's; None where answers are no classes."""
        return self.value("agreement")

    @property
    def kl(self) -> float | None:
        """Mean KL(softmax of the reference || softmax of the model), nats; None as for agreement."""
        return self.value("kl")

    @property
    def relative_error(self) -> float | None:
        """|z - z_ref| / |z_ref| over all images, whatever z is."""
        return self.value("relative_error")


@dataclass(frozen=True, slots=True)
class HeldOut(Judged):
    """Pruned against dense on held-back calibration images, which nothing was fitted to or chosen by; no labels.

    `outputs` are all outputs that have a row an image; `loss` is what the search minimised, of those that are judged.
    `stream_error` is |h' - h| / |h| of the residual stream after
    each block, over all tokens that are still computed; where tokens have merged, over those that never do (class
    tokens), or of the mean of all.
    """

    n_images: int
    outputs: tuple[OutputScore, ...]
    promise: Promise
    loss: float
    stream_error: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall time of one stage in seconds."""

    stage: str
    seconds: float


class StageClock:
    """Wall time by stage, in order: what becomes the `stages` of a result. What a stage freed is free behind it."""

    def __init__(self) -> None:
        self.stages: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block to a stage; one that fails is not counted."""
        start = time.perf_counter()
        yield
        release_memory()
        self.stages.append(StageTime(name, time.perf_counter() - start))


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """What the moments were made from: `n_images` of it; others chose the size, and others again were held back.

    `recipe_origin` says who gave the recipe, as in `from the model's metadata`.
    """

    path: str
    data_hash: str
    n_images: int
    n_choosing: int
    n_held_out: int
    n_tokens: int
    seed: int
    recipe: dict[str, Any] | None
    skipped: tuple[tuple[str, str], ...]
    recipe_origin: str | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and the versions that a figure belongs to."""

    corp_onnx: str
    python: str
    machine: str
    provider: str
    threads: int | None
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """What a budget of time came to; ratios are how many times as fast as the dense model, taken round by round.

    Attributes:
        asked: times as fast, or seconds of a batch, by `kind`: speedup or latency.
        expected: by the table of times.
        measured: the median of the written file beside the dense one; None where the table is of another machine.
        q1, q3: between which the middle half of the rounds lies.
        dense_seconds, seconds: medians of a batch.
        threads: None is every core.
        place: where the table is from.
    """

    asked: float
    kind: str
    expected: float
    provider: str
    batch: int
    threads: int | None
    place: str
    measured: float | None = None
    q1: float | None = None
    q3: float | None = None
    dense_seconds: float | None = None
    seconds: float | None = None
    rounds: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class PruneResult(Result):
    """What `prune` returns and writes as its report.

    `n_units_found` counts the recognised units of the kinds that were to be pruned, whether they can be or not;
    `left_whole` are those that the search gave their full width.
    """

    dense: ModelFacts
    pruned: ModelFacts
    settings: dict[str, Any]
    calibration: CalibrationData
    units: tuple[UnitResult, ...]
    n_units_found: int
    left_whole: tuple[str, ...]
    skipped: tuple[SkipFacts, ...]
    merges: tuple[MergeResult, ...]
    held_out: HeldOut
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageTime, ...]
    peak_memory_bytes: int | None
    expected_memory_bytes: int
    environment: Environment
    report_path: str
    speed: SpeedResult | None = None

    @property
    def kept_macs(self) -> float:
        """Share of the dense model's."""
        return self.pruned.macs / self.dense.macs

    @property
    def kept_parameters(self) -> float:
        """Share of the dense model's."""
        return self.pruned.n_parameters / self.dense.n_parameters

    @property
    def summary(self) -> str:
        """The new file, its size, and what it is worth."""
        return (
            f"{self.pruned.path}: {self.kept_macs:.1%} of the MACs, {self.kept_parameters:.1%} of the parameters; "
            f"{_describe_held(self.held_out)}"
        )

    @property
    def table(self) -> Rows:
        """Dense beside pruned."""
        before, after = self.dense, self.pruned
        return [
            ("", "dense", "pruned", "kept"),
            ("file", before.path, after.path, f"{after.n_bytes / before.n_bytes:.1%}"),
            ("MACs", f"{before.macs / 1e9:.4f} G", f"{after.macs / 1e9:.4f} G", f"{self.kept_macs:.1%}"),
            ("parameters", f"{before.n_parameters:,}", f"{after.n_parameters:,}", f"{self.kept_parameters:.1%}"),
            ("answers", "", _describe_held(self.held_out), ""),
        ]


def _describe_held(held: HeldOut) -> str:
    kept = held.promise
    value = f"{kept.value:.1%}" if kept.metric == "agreement" else f"{kept.value:.3f}"
    return f"{kept.metric} {value} on {held.n_images} images"


PACKAGES = ("numpy", "scipy", "onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "pillow")


def describe_environment(provider: str, threads: int | None = None) -> Environment:
    """Versions and machine of this process."""
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    machine = f"{platform.system()} {platform.machine()} {_processor()}".strip()
    return Environment(__version__, platform.python_version(), machine, provider, threads, versions)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = [line for line in text.splitlines() if line.startswith("model name")]
    return f"{lines[0].split(':', 1)[1].strip()} x{len(lines)}" if lines else platform.processor()


def to_json(value: Any) -> str:
    """A result as JSON with `schema: 1`; NaN and infinities, which JSON does not know, become null."""
    return json.dumps({"schema": SCHEMA, **_plain(dataclasses.asdict(value))}, indent=2, allow_nan=False)


def read_json(text: str) -> Any:
    """What JSON of somebody else's says, as that in a model's metadata.

    Raises:
        ValueError: it is not JSON, has more brackets in brackets than can be read, or half a character (a lone
            surrogate, which no file can be written with).
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("too many brackets in brackets") from error
    except UnicodeEncodeError as error:
        raise ValueError("half a character, a lone surrogate") from error
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
