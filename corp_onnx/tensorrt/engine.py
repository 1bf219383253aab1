"""An ONNX file -> a TensorRT engine, with a description beside it.

    read -> shapes and precision (blueprint.py) -> build (builder.py, or trtexec.py) -> load once -> publish

An engine runs on the library, the version and the kind of GPU that it was built for, and nothing in it says which: the
description, JSON at `<engine>.json`, does, and from which file it was built. One that is built ahead of time, for GPUs
that are elsewhere, is not loaded: it names compute capabilities in place of a device.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnx

from corp_onnx.checks.preflight import protect_source
from corp_onnx.errors import OptionError, OutputError
from corp_onnx.graph.model import require_file
from corp_onnx.options import fill_settings
from corp_onnx.progress import Progress, Run, follow
from corp_onnx.results import Environment, Result, Rows, describe_environment, to_json
from corp_onnx.staging import check_destination, staged_files, write_text
from corp_onnx.tensorrt.blueprint import (
    EngineSettings,
    Shapes,
    Source,
    choose_flags,
    plan_shapes,
    read_source,
    require_offered,
)
from corp_onnx.tensorrt.builder import build_plan, list_layers, load_plan
from corp_onnx.tensorrt.cuda import device_name
from corp_onnx.tensorrt.explain import Explanation, explain_layers
from corp_onnx.tensorrt.layers import parse_layers
from corp_onnx.tensorrt.library import TITLES, Library, LibraryName, find_library
from corp_onnx.tensorrt.trtexec import Summary, find_trtexec, list_arguments, probe_precisions, run_trtexec

SUFFIX = ".plan"

DEFAULT_GPUS = "GPUs from Ampere on"
"""What TensorRT for RTX builds for where nobody says."""


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output; an axis of unknown length is None. Only dynamic inputs have smallest, best, largest shape."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    minimum: tuple[int, ...] | None = None
    optimum: tuple[int, ...] | None = None
    maximum: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, repr=False)
class EngineResult(Result):
    """What `build_engine` returns and writes beside the engine.

    Attributes:
        path: the engine.
        sha256: of the engine.
        n_bytes: of the engine.
        description: this, as JSON.
        source: the ONNX file.
        source_sha256: of that file; weights beside it are not part of it.
        builder: `python` or `trtexec`.
        library: `tensorrt` or `tensorrt-rtx`.
        tensorrt: its version.
        gpu: name of the device; None where the engine was built ahead of time.
        capabilities: that it was built for ahead of time, as SM86; () where it was built for the device, or for what
            the library takes by default.
        precision: of the file, and what flags allowed beside it.
        strongly_typed: whether every operator runs in the precision of the file.
        inputs: with the shapes that they are optimised for.
        outputs: as the file declares them.
        workspace: MiB, None was TensorRT's choice.
        timing_cache: file of measured kernels.
        layers: of the finished engine by block; None where nobody asked.
        measured: trtexec's own measurement, None without it; `corp-onnx bench` compares engines.
        warnings: what TensorRT warned of.
        seconds: of the build.
        environment: machine and versions.
    """

    verb: ClassVar[str] = "engine"
    path: str
    sha256: str
    n_bytes: int
    description: str
    source: str
    source_sha256: str
    builder: str
    library: LibraryName
    tensorrt: str
    gpu: str | None
    capabilities: tuple[str, ...]
    precision: str
    strongly_typed: bool
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    workspace: int | None
    timing_cache: str | None
    layers: Explanation | None
    measured: Summary | None
    warnings: tuple[str, ...]
    seconds: float
    environment: Environment

    @property
    def summary(self) -> str:
        """The engine, and what it runs on."""
        built = f"{TITLES[self.library]} {self.tensorrt} for {self.runs_on}"
        return f"{self.path}: {self.n_bytes / 1e6:.1f} MB, {self.precision}, {built}"

    @property
    def runs_on(self) -> str:
        """The GPUs that it was built for, in words."""
        return self.gpu or ", ".join(self.capabilities) or DEFAULT_GPUS

    @property
    def table(self) -> Rows:
        """The engine and its inputs."""
        shapes = [(f"input {t.name}", f"{t.dtype} {list(t.optimum or t.shape)}") for t in self.inputs]
        facts = (("engine", self.path), ("from", self.source), ("precision", self.precision), ("GPU", self.runs_on))
        return [("", ""), *facts, (TITLES[self.library], self.tensorrt), *shapes]


@dataclass(frozen=True, slots=True)
class _Work:
    """How a builder did; the engine itself lies on disk by then."""

    builder: str
    library: LibraryName
    tensorrt: str
    gpu: str | None
    flags: tuple[str, ...]
    warnings: tuple[str, ...]
    layers: Explanation | None
    measured: Summary | None


def default_output(model: Path) -> Path:
    """`<model>.plan` beside the model."""
    return model.with_suffix(SUFFIX)


def description_path(engine: Path) -> Path:
    """`<engine>.json` beside the engine."""
    return engine.with_name(f"{engine.name}.json")


def build_engine(
    model: Path | str,
    output: Path | str | None = None,
    *,
    settings: EngineSettings | None = None,
    trtexec: Path | bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> EngineResult:
    """Build a TensorRT engine for this machine's GPU, or ahead of time for others, and describe it beside.

    Args:
        model: an ONNX file; float, or quantised with QuantizeLinear.
        output: default `<model>.plan` beside the model.
        trtexec: build with the command-line tool: its path, or True to look for it. False uses the Python API.
        force: replace files that exist; the timing cache is always updated.
        settings: as one value, or
        options: its fields by name.
        progress: told how far the run is: phases are those of TensorRT, which count steps; trtexec reports none.

    Raises:
        MissingExtraError: TensorRT, trtexec or a GPU is not there.
        OptionError: an option is out of range or does not fit the model or the library.
        ModelError: the file can not be read, or TensorRT's parser refuses it.
        OutputError: the destination can not be written.
        CheckFailedError: the engine could not be built; nothing was written.
    """
    settings = fill_settings(EngineSettings, settings, options)
    model = Path(model)
    require_file(model)
    output = default_output(model) if output is None else Path(output)
    check_destination(output, force=force)
    check_destination(description_path(output), force=force)
    _require_own_place(settings, output)
    _require_no_library(settings, trtexec)
    tool = None if trtexec is False else find_trtexec(None if trtexec is True else trtexec)
    source = read_source(model)
    _protect_source(source, settings, output)
    library = _find_library(settings) if tool is None else None  # before a model with dynamic axes is run
    shapes = plan_shapes(source, settings)
    start, run = time.perf_counter(), follow(progress)
    with _staged_cache(settings) as cache, staged_files({"-o": output}, force=force) as (path,):
        if library is not None:
            work = _build_by_api(library, source, shapes, settings, path, cache, run)
        else:
            assert tool is not None
            run.report("trtexec builds and measures", 0, 0, "steps")
            work = _build_by_tool(tool, source, shapes, settings, path, cache)
        result = _describe(source, shapes, settings, path, output, work, time.perf_counter() - start)
        write_text(to_json(result), description_path(path), description_path(output))
    return result


def _require_no_library(settings: EngineSettings, trtexec: Path | bool) -> None:
    given = [("--library", settings.library), ("--gpu", settings.gpus), ("--explain", settings.explain)]
    if trtexec is not False and (names := [name for name, value in given if value]):
        raise OptionError(
            f"{' and '.join(names)} and --trtexec: the tool builds for the GPU that it runs on, with its own TensorRT, "
            f"and lists no layers; leave one of them out."
        )


def _find_library(settings: EngineSettings) -> Library:
    library = find_library(settings.library, ahead=bool(settings.gpus))
    require_offered(settings, library)
    return library


def _require_own_place(settings: EngineSettings, output: Path) -> None:
    if settings.timing_cache is not None:
        taken = {os.path.realpath(path) for path in (output, description_path(output))}
        if os.path.realpath(settings.timing_cache) in taken:
            raise OutputError(f"{settings.timing_cache}: --timing-cache and -o name the same file; give each its own.")


def _protect_source(source: Source, settings: EngineSettings, output: Path) -> None:
    protect_source(source.model, {"-o": output})
    protect_source(source.model, {"-o": description_path(output)})
    if settings.timing_cache is not None:
        protect_source(source.model, {"--timing-cache": settings.timing_cache})


@contextmanager
def _staged_cache(settings: EngineSettings) -> Iterator[Path | None]:
    """Where the timing cache is written, holding what was measured before; None without one."""
    if settings.timing_cache is None:
        yield None
        return
    with staged_files({"--timing-cache": settings.timing_cache}, force=True) as (path,):
        if settings.timing_cache.is_file():
            path.write_bytes(settings.timing_cache.read_bytes())
        yield path


def _build_by_api(
    library: Library, source: Source, shapes: Sequence[Shapes], settings: EngineSettings, path: Path,
    cache: Path | None, run: Run,
) -> _Work:  # fmt: skip
    gpu = None if library.capabilities else device_name()
    built = build_plan(library, source, shapes, settings, partial(run.report, things="steps"))
    text = built.layers
    if gpu is not None:
        engine = load_plan(library, built.plan, path)
        text = list_layers(library, engine) if settings.explain else ""
    try:
        path.write_bytes(built.plan)
        if cache is not None:
            cache.write_bytes(built.timing_cache)
    except OSError as error:
        raise OutputError(f"{path.name}: could not be written ({error.strerror or error}).") from error
    layers = None
    if settings.explain:
        with run.enter("explain"):
            layers = explain_layers(source, parse_layers(text))
    return _Work("python", library.name, library.version, gpu, built.flags, built.warnings, layers, None)


def _build_by_tool(
    tool: Path, source: Source, shapes: Sequence[Shapes], settings: EngineSettings, path: Path, cache: Path | None
) -> _Work:
    flags = choose_flags(source, settings, *probe_precisions(tool))
    summary = run_trtexec(tool, list_arguments(source, shapes, settings, flags, path, cache), source, path)
    return _Work("trtexec", "tensorrt", summary.version, summary.gpu, flags, (), None, summary)


def _describe(
    source: Source, shapes: Sequence[Shapes], settings: EngineSettings, path: Path, output: Path, work: _Work,
    seconds: float,
) -> EngineResult:  # fmt: skip
    plan = path.read_bytes()
    by_name = {one.name: one for one in shapes}
    graph = source.model.proto.graph
    allowed = f", {' and '.join(work.flags)} allowed" if work.flags else ""
    environment = describe_environment(work.gpu or "none")
    return EngineResult(
        path=str(output),
        sha256=hashlib.sha256(plan).hexdigest(),
        n_bytes=len(plan),
        description=str(description_path(output)),
        source=str(source.path),
        source_sha256=source.sha256,
        builder=work.builder,
        library=work.library,
        tensorrt=work.tensorrt,
        gpu=work.gpu,
        capabilities=settings.gpus,
        precision=f"{source.precision}{allowed}",
        strongly_typed=not work.flags,
        inputs=tuple(_describe_tensor(v, by_name.get(v.name)) for v in graph.input if v.name in source.inputs),
        outputs=tuple(_describe_tensor(v, None) for v in graph.output),
        workspace=settings.workspace,
        timing_cache=None if settings.timing_cache is None else str(settings.timing_cache),
        layers=work.layers,
        measured=work.measured,
        warnings=work.warnings,
        seconds=seconds,
        environment=replace(environment, versions=environment.versions | {work.library: work.tensorrt}),
    )


def _describe_tensor(value: onnx.ValueInfoProto, shapes: Shapes | None) -> EngineTensor:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    axes = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    if shapes is None:
        return EngineTensor(value.name, dtype, axes)
    return EngineTensor(value.name, dtype, axes, shapes.minimum, shapes.optimum, shapes.maximum)
