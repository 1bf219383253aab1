"""A `Source` with its shapes and settings -> the bytes of a serialised engine, by a library's Python API; and loading.

TensorRT reports through a logger and through None where another library would raise; here both become one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corp_onnx.errors import CheckFailedError, ModelError
from corp_onnx.graph.model import MAX_PROTO_BYTES, parse_file
from corp_onnx.tensorrt.blueprint import EngineSettings, Shapes, Source, choose_flags
from corp_onnx.tensorrt.layers import is_layer_list
from corp_onnx.tensorrt.library import MAX_SENTENCE, Library, Messages, open_logger, start

PhaseReport = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A serialised engine and what came with it.

    Attributes:
        plan: the engine.
        timing_cache: after building it; empty where none is kept.
        flags: precisions that were allowed beside those of the file.
        warnings: what TensorRT warned of.
        layers: its own list of the finished engine's layers; empty where none was asked for, or none was written.
    """

    plan: bytes
    timing_cache: bytes
    flags: tuple[str, ...]
    warnings: tuple[str, ...]
    layers: str


def build_plan(
    library: Library, source: Source, shapes: Sequence[Shapes], settings: EngineSettings, progress: PhaseReport | None,
) -> Built:  # fmt: skip
    """Parse the ONNX file and build an engine of it.

    Raises:
        MissingExtraError: no GPU where the library needs one.
        OptionError: see `choose_flags`.
        ModelError: TensorRT's parser refuses the file.
        CheckFailedError: TensorRT can not build it.
    """
    trt = library.trt
    flags = choose_flags(source, settings, library.precisions, library.title)
    logger, messages = open_logger(library, is_layer_list)
    builder = start(library, lambda: trt.Builder(logger))
    network = builder.create_network(0 if flags else 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(library, network, logger, source.path, messages)
    _allow_parts(trt, network)
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace << 20)
    if settings.explain:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.gpus:
        _set_capabilities(trt, config, settings.gpus)
    if shapes:
        _add_profile(builder, config, shapes, messages)
    if library.keeps_timings:
        _load_timing_cache(config, settings.timing_cache, messages)
    stopped = _watch(trt, config, progress)
    plan = builder.build_serialized_network(network, config)
    if stopped:
        raise stopped[0]
    if plan is None:
        raise CheckFailedError(f"{source.path}: {library.title} could not build an engine ({messages.describe()}).")
    cache = config.get_timing_cache() if library.keeps_timings else None
    timings = b"" if cache is None else bytes(cache.serialize())
    return Built(bytes(plan), timings, flags, tuple(messages.warnings), messages.layers)


def load_plan(library: Library, plan: bytes, path: Path) -> Any:
    """A serialised engine, loaded on the GPU.

    Raises:
        MissingExtraError: no GPU.
        ModelError: it is no engine, or one of another library, version or GPU.
    """
    logger, messages = open_logger(library)
    engine = start(library, lambda: library.trt.Runtime(logger)).deserialize_cuda_engine(plan)
    if engine is None:
        raise ModelError(
            f"{path}: {library.title} can not load it ({messages.describe()}); an engine runs on the library, the "
            "version and the kind of GPU that it was built for, build it anew here."
        )
    return engine


def list_layers(library: Library, engine: Any) -> str:
    """The layers of a loaded engine, as its inspector writes them, a line each."""
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(library.trt.LayerInformationFormat.ONELINE)


def parse(library: Library, network: Any, logger: Any, path: Path, messages: Messages) -> None:
    """Read an ONNX file into a network.

    Raises:
        ModelError: the parser refuses it: the first reason, and how many more there are.
    """
    parser = library.trt.OnnxParser(network, logger)
    text = _drop_softmax_precision(path, messages)
    if parser.parse_from_file(str(path)) if text is None else parser.parse(text, str(path)):
        return
    reasons = [
        f"{e.node_operator()} '{e.node_name()}': {e.desc()}" for e in map(parser.get_error, range(parser.num_errors))
    ]
    reason = reasons[0][:MAX_SENTENCE].rstrip(". ") if reasons else messages.describe()
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    raise ModelError(f"{path}: {library.title}'s parser refuses it ({reason}{more}).")


def _drop_softmax_precision(path: Path, messages: Messages) -> bytes | None:
    """A file whose Attention operators say the precision of their softmax, without that; None of any other file.

    `convert --fp16` says float32, without which ONNX Runtime takes float16. TensorRT refuses to be told, and its fused
    kernels compute it in float32 by themselves.
    """
    proto = parse_file(path)
    told = [n for n in proto.graph.node if any(a.name == "softmax_precision" for a in n.attribute)]
    if not told or proto.ByteSize() >= MAX_PROTO_BYTES:
        return None
    for node in told:
        others = [a for a in node.attribute if a.name != "softmax_precision"]
        del node.attribute[:]
        node.attribute.extend(others)
    operators = f"{len(told)} Attention operator{'s' * (len(told) > 1)}"
    messages.warnings.append(f"softmax_precision of {operators} is left to TensorRT, which does not take it.")
    return proto.SerializeToString()


def _allow_parts(trt: Any, network: Any) -> None:
    """Let the operator Attention run in several kernels where no fused one fits; else such a network is not built."""
    kind = getattr(trt, "IAttentionInputLayer", None)
    if kind is None or not hasattr(trt.IAttention, "decomposable"):
        return
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = kind  # as its documentation has it: a layer comes as the base class
            layer.attention.decomposable = True


def _set_capabilities(trt: Any, config: Any, gpus: Sequence[str]) -> None:
    config.num_compute_capabilities = len(gpus)
    for idx, name in enumerate(gpus):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), idx)


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
