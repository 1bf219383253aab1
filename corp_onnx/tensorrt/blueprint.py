"""What an engine is to be built from and for: an ONNX file and options -> shapes and precision, before TensorRT.

Enters the path of an ONNX file and `EngineSettings`; leaves a `Source` and the shapes that every dynamic input is
optimised for. Nothing here needs TensorRT or a GPU: what can be refused is refused before either is touched.

Libraries differ in who decides the precision. TensorRT 10 lets flags allow FP16 or INT8 kernels where they are faster
(`--fp16`, `--int8`); without a flag, and always in TensorRT 11 and TensorRT for RTX, the network is strongly typed:
every operator runs in the precision that the ONNX file says. There `--fp16` is refused with the command that writes
such a file, rather than converted on the way: what `corp-onnx evaluate` has measured is then what the engine holds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from corp_onnx.errors import ModelError, OptionError
from corp_onnx.graph.model import Model, hash_file, input_dims, parse_file
from corp_onnx.graph.operators import MEASURED
from corp_onnx.run.probe import probe_graph
from corp_onnx.tensorrt.library import INSTALLS, Library, LibraryName

DEFAULT_BATCHES = (1, 8, 32)
"""Smallest, most usual and largest batch where nobody says."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is built.

    Args:
        minimum: smallest batch; None is 1, or `optimum` where that is smaller.
        optimum: batch that kernels are tuned for; None is 8, moved into the range.
        maximum: largest batch; None is 32, or what is above it.
        fp16: allow half precision (TensorRT 10).
        int8: allow INT8 where the file holds QuantizeLinear (TensorRT 10; elsewhere it needs no asking).
        workspace: MiB that kernels may take for themselves; None leaves it to TensorRT: all of the GPU.
        timing_cache: file of measured kernels, read where it exists and written back.
        library: `tensorrt` or `tensorrt-rtx`; None takes the one that is installed.
        gpus: compute capabilities to build for ahead of time, as SM86; () builds for the GPU of this machine, or where
            the library builds ahead of time for what it takes by default.
        explain: list the layers of the finished engine.
    """

    minimum: int | None = None
    optimum: int | None = None
    maximum: int | None = None
    fp16: bool = False
    int8: bool = False
    workspace: int | None = None
    timing_cache: Path | None = None
    library: LibraryName | None = None
    gpus: tuple[str, ...] = ()
    explain: bool = False

    def __post_init__(self) -> None:
        given = {"--min": self.minimum, "--opt": self.optimum, "--max": self.maximum}
        for option, value in (given | {"--workspace": self.workspace}).items():
            if value is not None and value < 1:
                raise OptionError(f"{option} must be at least 1; found {value}.")
        low, best, high = self.batches
        if not low <= best <= high:
            raise OptionError(f"batches must not decrease from --min over --opt to --max; found {low}, {best}, {high}.")
        if len(set(self.gpus)) < len(self.gpus) or not all(self.gpus):
            raise OptionError(f"--gpu names each GPU once, as SM86,SM120; found {','.join(self.gpus)}.")

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, best and largest batch; what was not given gives way to what was."""
        low, best, high = DEFAULT_BATCHES
        given = [b for b in (self.minimum, self.optimum, self.maximum) if b is not None]
        low = self.minimum or min([low, *given])
        high = self.maximum or max([high, *given])
        return low, self.optimum or min(max(best, low), high), high

    @property
    def names_batches(self) -> bool:
        """Whether any batch was given."""
        return any(b is not None for b in (self.minimum, self.optimum, self.maximum))

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the precisions to allow, as TensorRT 10 names its flags."""
        return tuple(name for name, wanted in (("FP16", self.fp16), ("INT8", self.int8)) if wanted)


@dataclass(frozen=True, slots=True)
class Shapes:
    """The optimisation profile of one dynamic input."""

    name: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The ONNX file of an engine; a dynamic axis of an input is None."""

    path: Path
    sha256: str
    inputs: dict[str, tuple[int | None, ...]]
    operators: frozenset[str]
    precision: str
    model: Model


def read_source(path: Path) -> Source:
    """An ONNX file, as far as TensorRT's options depend on it; quantised ones are welcome.

    Raises:
        ModelError: it is missing or no ONNX file, or holds what TensorRT does not take.
    """
    proto = parse_file(path)
    operators = frozenset(node.op_type for node in proto.graph.node)
    if found := sorted(operators & MEASURED):  # TensorRT knows no ranges but stored ones
        raise ModelError(
            f"{path}: is quantised for CPUs (it has {', '.join(found)}), which TensorRT does not take; give it the "
            "float model, or one from `corp-onnx convert --int8 static`."
        )
    stored = {tensor.name for tensor in proto.graph.initializer}
    model = Model(proto, path, hash_file(path))
    inputs = {name: dims for name, dims in input_dims(model).items() if name not in stored}
    return Source(path, model.sha256, inputs, operators, _weight_type(proto), model)


def _weight_type(proto: onnx.ModelProto) -> str:
    """float16 where most stored numbers are; a file that quantises is int8 as well."""
    names: dict[int, str] = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
    }
    counts: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type in names:
            name = names[tensor.data_type]
            counts[name] = counts.get(name, 0) + math.prod(tensor.dims)
    floats = max(counts, key=lambda k: counts[k], default="float32")
    return f"int8 and {floats}" if any(n.op_type == "QuantizeLinear" for n in proto.graph.node) else floats


def choose_flags(source: Source, settings: EngineSettings, offered: Collection[str], title: str) -> tuple[str, ...]:
    """The builder flags to set: none where the network is to be strongly typed.

    Args:
        source: the file.
        settings: what is asked.
        offered: precisions that the builder has a flag for.
        title: what it is called.

    Raises:
        OptionError: FP16 is asked of a builder that takes the precision from the file, and the file is float32.
        ModelError: INT8 is asked and the file does not quantise.
    """
    if settings.int8 and "QuantizeLinear" not in source.operators:
        raise ModelError(
            f"{source.path}: --int8 needs a file that says where (it has no QuantizeLinear): "
            f"`corp-onnx convert {source.path} --int8 static` writes one."
        )
    if offered:
        return settings.flags
    if settings.fp16 and "float16" not in source.precision:
        raise OptionError(
            f"{title} takes the precision from the ONNX file, and {source.path} is {source.precision}; run "
            f"`corp-onnx convert {source.path} --fp16` first, and build an engine from what it writes."
        )
    return ()


def require_offered(settings: EngineSettings, library: Library) -> None:
    """Whether a library builds for the GPUs that are asked for, and keeps what it is to keep.

    Raises:
        OptionError: it does not; says what it offers.
    """
    if settings.timing_cache is not None and not library.keeps_timings:
        raise OptionError(
            f"{library.title} keeps no timing cache: it compiles for a GPU where the engine runs. Leave --timing-cache "
            "out."
        )
    if settings.gpus and not library.capabilities:
        raise OptionError(
            f"{library.title} builds for the GPU of this machine and no other; leave --gpu out, or build with TensorRT "
            f"for RTX, --library tensorrt-rtx ({INSTALLS['tensorrt-rtx']})."
        )
    if unknown := [gpu for gpu in settings.gpus if gpu not in library.capabilities]:
        raise OptionError(
            f"--gpu: {library.title} does not build for {', '.join(unknown)}; it builds for "
            f"{', '.join(library.capabilities)}."
        )


def plan_shapes(source: Source, settings: EngineSettings) -> tuple[Shapes, ...]:
    """Shapes for every input with a dynamic axis: batches as the settings say, other axes as the model runs.

    Raises:
        OptionError: batches are given for a model whose batch is fixed.
        ModelError: an axis behind the batch is dynamic, and no usual size of it runs.
    """
    dynamic = {name: dims for name, dims in source.inputs.items() if None in dims}
    if settings.names_batches and not any(dims[0] is None for dims in dynamic.values()):
        fixed = next((dims[0] for dims in source.inputs.values() if dims), None)
        raise OptionError(f"{source.path} has a fixed batch of {fixed}; leave --min, --opt and --max out.")
    open_axes = any(None in dims[1:] for dims in dynamic.values())
    sizes = probe_graph(source.model).shapes if open_axes else {}
    shapes: list[Shapes] = []
    for name, dims in dynamic.items():
        known = tuple(sizes[name][i] if d is None else d for i, d in enumerate(dims) if i)
        low, best, high = settings.batches if dims[0] is None else (dims[0],) * 3
        shapes.append(Shapes(name, (low, *known), (best, *known), (high, *known)))
    return tuple(shapes)
