"""What a figure belongs to: the machine and its versions, and the wall time of every stage."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata

from corp_onnx._version import __version__
from corp_onnx.cpuinfo import list_cores
from corp_onnx.gpuinfo import name_gpu
from corp_onnx.memory import release_memory


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
class Environment:
    """The machine and the versions that a figure belongs to; its GPU is named where a provider is one of CUDA's."""

    corp_onnx: str
    python: str
    machine: str
    provider: str
    threads: int | None
    versions: dict[str, str]


ON_GPU = ("cuda", "tensorrt", "engine")
"""What names of providers hold that run on a GPU of CUDA's; an engine is TensorRT's."""

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
    if any(name in provider.lower() for name in ON_GPU) and (gpu := name_gpu()):
        machine += f", {gpu}"
    return Environment(__version__, platform.python_version(), machine, provider, threads, versions)


def _processor() -> str:
    names = [core["model name"] for core in list_cores() if "model name" in core]
    return f"{names[0]} x{len(names)}" if names else platform.processor()
