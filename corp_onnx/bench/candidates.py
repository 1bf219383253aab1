"""What `bench` compares: a file's facts, and the file opened on a provider, ready to run on a batch of noise.

An ONNX file (session.py) runs on any provider of ONNX Runtime and in OpenVINO; a TensorRT engine (engine.py) is its own
provider, `engine`. Where a provider has a memory of its own, a candidate runs in two ways: with its inputs and outputs
in host memory, as a server meets them, and with both on the device already, which leaves out the transfers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from corp_onnx.results import FileFacts

ENGINE_SUFFIXES = (".plan", ".engine", ".trt")
ENGINE = "engine"
"""The provider of a TensorRT engine: itself."""


@dataclass(frozen=True, slots=True)
class BenchModel(FileFacts):
    """A model file that is timed; the precision of an engine is what its description says.

    Attributes:
        macs: multiply-accumulates of one image; None where it is not known (engines).
        batch: the fixed number of images at a time, or None.
        inputs: of every input, its axes behind the batch.
        is_engine: whether it is a TensorRT engine, and not an ONNX file.
    """

    macs: int | None
    batch: int | None
    inputs: tuple[tuple[int, ...], ...]
    is_engine: bool


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model on a provider with a batch: `run` from host memory to host memory, `resident` on the device only.

    `precision` is what its products are computed in and `settings` how, where the runtime says so (OpenVINO).
    """

    run: Callable[[], None]
    resident: Callable[[], None] | None = None
    precision: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


class Opened(Protocol):
    """A model loaded on a provider."""

    def bind(self, n_images: int) -> Candidate:
        """It with a batch of noise."""
        ...


class Subject(Protocol):
    """A model file that can be opened."""

    @property
    def facts(self) -> BenchModel:
        """What it is."""
        ...

    def open(self, provider: str, threads: int | None) -> Opened:
        """Load it."""
        ...
