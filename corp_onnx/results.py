"""What leaves the process: frozen values that `inspect` and `prune` return, and their one way into JSON.

Numbers only, no arrays and no graphs; every value carries the baseline beside the figure.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx._version import __version__

SCHEMA = 1


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


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` returns; `dead_tokens` is None where every token is read."""

    model: ModelFacts
    n_blocks: int
    units: tuple[UnitFacts, ...]
    skipped: tuple[SkipFacts, ...]
    dead_tokens: DeadTokens | None = None


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
class CheckResult:
    """One check: what was compared, the largest relative difference found, and the tolerance."""

    name: str
    passed: bool
    difference: float | None
    tolerance: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pruned against dense on the held-back calibration images; no labels.

    `stream_error` is |h' - h| / |h| of the residual stream after each block, over all tokens that are still computed.
    """

    n_images: int
    agreement: float | None
    agreement_error: float | None
    kl: float | None
    logit_error: float | None
    stream_error: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """Wall time of one stage in seconds."""

    stage: str
    seconds: float


class StageClock:
    """Wall time by stage, in order: what becomes the `stages` of a result."""

    def __init__(self) -> None:
        self.stages: list[StageTime] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block to a stage; one that fails is not counted."""
        start = time.perf_counter()
        yield
        self.stages.append(StageTime(name, time.perf_counter() - start))


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """What the moments were made from."""

    path: str
    data_hash: str
    n_images: int
    n_held_out: int
    n_tokens: int
    seed: int
    recipe: dict[str, Any] | None
    skipped: tuple[tuple[str, str], ...]


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
class PruneResult:
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
    held_out: HeldOut
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageTime, ...]
    peak_memory_bytes: int | None
    environment: Environment
    report_path: str


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
