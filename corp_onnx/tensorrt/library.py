"""TensorRT's Python API, as far as building an engine and loading it goes: versions 10 and 11, imported in functions.

Enters a `Source` with its shapes and settings; leaves the bytes of a serialised engine. TensorRT reports through a
logger and through None where another library would raise; here both become one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corp_onnx.errors import CheckFailedError, MissingExtraError, ModelError
from corp_onnx.tensorrt.blueprint import EngineSettings, Shapes, Source, choose_flags

INSTALL = "pip install 'corp-onnx[tensorrt]' --extra-index-url https://pypi.nvidia.com"
MAX_SENTENCE = 300
"""Characters of a message of TensorRT that an error quotes."""

PhaseReport = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A serialised engine, the timing cache after building it, and what TensorRT warned of."""

    plan: bytes
    timing_cache: bytes
    flags: tuple[str, ...]
    warnings: tuple[str, ...]


def import_tensorrt() -> Any:
    """The tensorrt module.

    Raises:
        MissingExtraError: it is not installed, or its bindings are and its libraries are not.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"TensorRT's Python API is not installed ({error}): {INSTALL}, on a machine with an NVIDIA GPU; where only "
            "its command-line tool is there, --trtexec drives that."
        ) from error
    except (ImportError, OSError) as error:  # the bindings are there; a library that they load is not
        raise MissingExtraError(
            f"TensorRT's Python bindings are installed and its libraries are not found ({error}): {INSTALL}, or put "
            "the folder of your own TensorRT on LD_LIBRARY_PATH."
        ) from error
    return tensorrt


def major_version(trt: Any) -> int:
    """10 of 10.16.1.11."""
    return int(trt.__version__.split(".")[0])


@dataclass(slots=True)
class Messages:
    """What TensorRT said while it worked."""

    errors: list[str]
    warnings: list[str]

    def describe(self) -> str:
        """The first error, which the others follow from, as a part of a sentence."""
        lines = (self.errors[0] if self.errors else "it gives no reason").strip().splitlines()
        return lines[0][:MAX_SENTENCE].rstrip(". ")


def open_logger(trt: Any) -> tuple[Any, Messages]:
    """(a logger for TensorRT, where its errors and warnings go); the rest of what it says is dropped."""
    messages = Messages([], [])

    class _Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                messages.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                messages.warnings.append(text)

    return _Logger(), messages


def build_plan(
    source: Source, shapes: Sequence[Shapes], settings: EngineSettings, progress: PhaseReport | None
) -> Built:
    """Parse the ONNX file and build an engine of it.

    Raises:
        MissingExtraError: no TensorRT, or no GPU.
        OptionError: see `choose_flags`.
        ModelError: TensorRT's parser refuses the file.
        CheckFailedError: TensorRT can not build it.
    """
    trt = import_tensorrt()
    flags = choose_flags(source, settings, major_version(trt))
    logger, messages = open_logger(trt)
    builder = _start(trt, lambda: trt.Builder(logger))
    network = builder.create_network(0 if flags else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, source, messages)
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace << 20)
    if shapes:
        _add_profile(builder, config, shapes, messages)
    _load_timing_cache(config, settings.timing_cache, messages)
    stopped = _watch(trt, config, progress)
    plan = builder.build_serialized_network(network, config)
    if stopped:
        raise stopped[0]
    if plan is None:
        raise CheckFailedError(f"{source.path}: TensorRT could not build an engine ({messages.describe()}).")
    cache = config.get_timing_cache()
    return Built(bytes(plan), b"" if cache is None else bytes(cache.serialize()), flags, tuple(messages.warnings))


def load_plan(plan: bytes, path: Path) -> Any:
    """A serialised engine, loaded on the GPU.

    Raises:
        MissingExtraError: no TensorRT, or no GPU.
        ModelError: it is no engine, or one of another version or GPU.
    """
    trt = import_tensorrt()
    logger, messages = open_logger(trt)
    engine = _start(trt, lambda: trt.Runtime(logger)).deserialize_cuda_engine(plan)
    if engine is None:
        raise ModelError(
            f"{path}: TensorRT {trt.__version__} can not load it ({messages.describe()}); an engine runs on the "
            "version and the kind of GPU that it was built with, build it anew here."
        )
    return engine


def _start(trt: Any, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (TypeError, RuntimeError) as error:  # its bindings say nothing but that a pointer is null
        raise MissingExtraError(
            f"TensorRT {trt.__version__} can not start: it needs an NVIDIA GPU with a driver that is new enough "
            "(`nvidia-smi` shows both)."
        ) from error


def _parse(trt: Any, network: Any, logger: Any, source: Source, messages: Messages) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(source.path)):
        return
    reasons = [
        f"{e.node_operator()} '{e.node_name()}': {e.desc()}" for e in map(parser.get_error, range(parser.num_errors))
    ]
    reason = reasons[0][:MAX_SENTENCE].rstrip(". ") if reasons else messages.describe()
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    raise ModelError(f"{source.path}: TensorRT's parser refuses it ({reason}{more}).")


def _add_profile(builder: Any, config: Any, shapes: Sequence[Shapes], messages: Messages) -> None:
    profile = builder.create_optimization_profile()
    for one in shapes:
        profile.set_shape(one.name, one.minimum, one.optimum, one.maximum)
    if config.add_optimization_profile(profile) < 0:
        raise CheckFailedError(f"TensorRT refuses the shapes of the inputs ({messages.describe()}).")


def _load_timing_cache(config: Any, path: Path | None, messages: Messages) -> None:
    """What was measured before; a cache of another GPU or version is started anew, and that is said."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    if not stored:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        messages.errors.clear()
        messages.warnings.append(f"{path} belongs to another TensorRT or GPU; it is started anew.")


def _watch(trt: Any, config: Any, progress: PhaseReport | None) -> list[BaseException]:
    """Report the outermost phases; gives a list that holds what interrupted the build, if anything did."""
    stopped: list[BaseException] = []
    steps: dict[str, int] = {}

    class _Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            # a signal arrives in whatever Python runs, and that is this: it must not unwind through C++
            try:
                if progress is not None and phase_name in steps:
                    progress(phase_name, step + 1, steps[phase_name])
            except BaseException as error:
                stopped.append(error)
            return not stopped

        def phase_finish(self, phase_name: str) -> None:
            steps.pop(phase_name, None)

    config.progress_monitor = _Monitor()
    return stopped
