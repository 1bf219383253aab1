"""An ONNX file -> a TensorRT engine, with a description beside it.

    read -> shapes and precision (blueprint.py) -> build (tensorrt.py, or trtexec.py) -> load once -> publish

An engine runs on the version of TensorRT and the kind of GPU that it was built with, and nothing in it says which: the
description, JSON at `<engine>.json`, does, and from which file it was built.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from corp_onnx.checks.preflight import protect_source
from corp_onnx.errors import OutputError
from corp_onnx.graph.model import require_file
from corp_onnx.results import Environment, describe_environment, to_json
from corp_onnx.staging import check_destination, staged_files, write_text
from corp_onnx.tensorrt.blueprint import EngineSettings, Shapes, Source, choose_flags, plan_shapes, read_source
from corp_onnx.tensorrt.cuda import device_name
from corp_onnx.tensorrt.library import Progress, build_plan, import_tensorrt, load_plan
from corp_onnx.tensorrt.trtexec import Summary, find_trtexec, list_arguments, probe_version, run_trtexec

SUFFIX = ".plan"


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output; an axis of unknown length is None. Only dynamic inputs have smallest, best, largest shape."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    minimum: tuple[int, ...] | None = None
    optimum: tuple[int, ...] | None = None
    maximum: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class EngineResult:
    """What `build_engine` returns and writes beside the engine.

    Attributes:
        path: the engine.
        sha256: of the engine.
        n_bytes: of the engine.
        description: this, as JSON.
        source: the ONNX file.
        source_sha256: of that file; weights beside it are not part of it.
        builder: `python` or `trtexec`.
        tensorrt: its version.
        gpu: name of the device.
        precision: of the file, and what flags allowed beside it.
        strongly_typed: whether every operator runs in the precision of the file.
        inputs: with the shapes that they are optimised for.
        outputs: as the file declares them.
        workspace: MiB, None was TensorRT's choice.
        timing_cache: file of measured kernels.
        measured: trtexec's own measurement, None without it; `corp-onnx bench` compares engines.
        warnings: what TensorRT warned of.
        seconds: of the build.
        environment: machine and versions.
    """

    path: str
    sha256: str
    n_bytes: int
    description: str
    source: str
    source_sha256: str
    builder: str
    tensorrt: str
    gpu: str
    precision: str
    strongly_typed: bool
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    workspace: int | None
    timing_cache: str | None
    measured: Summary | None
    warnings: tuple[str, ...]
    seconds: float
    environment: Environment


@dataclass(frozen=True, slots=True)
class _Work:
    """How a builder did; the engine itself lies on disk by then."""

    builder: str
    tensorrt: str
    gpu: str
    flags: tuple[str, ...]
    warnings: tuple[str, ...]
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
) -> EngineResult:
    """Build a TensorRT engine on this machine's GPU, and describe it beside.

    Args:
        model: an ONNX file; float, or quantised with QuantizeLinear.
        output: default `<model>.plan` beside the model.
        trtexec: build with the command-line tool: its path, or True to look for it. False uses the Python API.
        force: replace files that exist; the timing cache is always updated.
        progress: called with (phase of TensorRT, steps done, steps in all); trtexec reports none.

    Raises:
        MissingExtraError: TensorRT, trtexec or a GPU is not there.
        OptionError: an option is out of range or does not fit the model or TensorRT's version.
        ModelError: the file can not be read, or TensorRT's parser refuses it.
        OutputError: the destination can not be written.
        CheckFailedError: the engine could not be built; nothing was written.
    """
    settings = settings or EngineSettings()
    model = Path(model)
    require_file(model)
    output = default_output(model) if output is None else Path(output)
    check_destination(output, force=force)
    check_destination(description_path(output), force=force)
    _require_own_place(settings, output)
    tool = None if trtexec is False else find_trtexec(None if trtexec is True else trtexec)
    source = read_source(model)
    _protect_source(source, settings, output)
    if tool is None:
        import_tensorrt()  # before a model with dynamic axes is run
    shapes = plan_shapes(source, settings)
    start = time.perf_counter()
    with _staged_cache(settings) as cache, staged_files({"-o": output}, force=force) as (path,):
        if tool is None:
            work = _build_by_api(source, shapes, settings, path, cache, progress)
        else:
            work = _build_by_tool(tool, source, shapes, settings, path, cache)
        result = _describe(source, shapes, settings, path, output, work, time.perf_counter() - start)
        write_text(to_json(result), description_path(path), description_path(output))
    return result


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
    source: Source, shapes: Sequence[Shapes], settings: EngineSettings, path: Path, cache: Path | None,
    progress: Progress | None,
) -> _Work:  # fmt: skip
    gpu = device_name()
    built = build_plan(source, shapes, settings, progress)
    load_plan(built.plan, path)
    try:
        path.write_bytes(built.plan)
        if cache is not None:
            cache.write_bytes(built.timing_cache)
    except OSError as error:
        raise OutputError(f"{path.name}: could not be written ({error.strerror or error}).") from error
    return _Work("python", import_tensorrt().__version__, gpu, built.flags, built.warnings, None)


def _build_by_tool(
    tool: Path, source: Source, shapes: Sequence[Shapes], settings: EngineSettings, path: Path, cache: Path | None
) -> _Work:
    flags = choose_flags(source, settings, probe_version(tool))
    summary = run_trtexec(tool, list_arguments(source, shapes, settings, flags, path, cache), source, path)
    return _Work("trtexec", summary.version, summary.gpu, flags, (), summary)


def _describe(
    source: Source, shapes: Sequence[Shapes], settings: EngineSettings, path: Path, output: Path, work: _Work,
    seconds: float,
) -> EngineResult:  # fmt: skip
    plan = path.read_bytes()
    by_name = {one.name: one for one in shapes}
    graph = source.model.proto.graph
    allowed = f", {' and '.join(work.flags)} allowed" if work.flags else ""
    environment = describe_environment(work.gpu)
    return EngineResult(
        path=str(output),
        sha256=hashlib.sha256(plan).hexdigest(),
        n_bytes=len(plan),
        description=str(description_path(output)),
        source=str(source.path),
        source_sha256=source.sha256,
        builder=work.builder,
        tensorrt=work.tensorrt,
        gpu=work.gpu,
        precision=f"{source.precision}{allowed}",
        strongly_typed=not work.flags,
        inputs=tuple(_describe_tensor(v, by_name.get(v.name)) for v in graph.input if v.name in source.inputs),
        outputs=tuple(_describe_tensor(v, None) for v in graph.output),
        workspace=settings.workspace,
        timing_cache=None if settings.timing_cache is None else str(settings.timing_cache),
        measured=work.measured,
        warnings=work.warnings,
        seconds=seconds,
        environment=replace(environment, versions=environment.versions | {"tensorrt": work.tensorrt}),
    )


def _describe_tensor(value: onnx.ValueInfoProto, shapes: Shapes | None) -> EngineTensor:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    axes = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    if shapes is None:
        return EngineTensor(value.name, dtype, axes)
    return EngineTensor(value.name, dtype, axes, shapes.minimum, shapes.optimum, shapes.maximum)
