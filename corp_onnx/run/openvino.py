"""OpenVINO's own API behind what a `Session` asks of ONNX Runtime: a file, a device and a precision -> answers.

Enters the path of an ONNX file and a `Place`; leaves a `Program`. OpenVINO compiles a model for the shapes that it will
meet: each shape of the inputs is compiled once, when it first comes, with the hint for latency.

Precision is a hint to OpenVINO, and without one a processor that computes in bfloat16 does so. What was really computed
is read back from the compiled model.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.run.runtime import OPENVINO, OPENVINO_PROVIDER, is_out_of_memory

PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What a person types, which is OpenVINO's hint, and how a device says that it can."""

ELEMENTS = {
    "f32": "tensor(float)",
    "f16": "tensor(float16)",
    "bf16": "tensor(bfloat16)",
    "f64": "tensor(double)",
    "i64": "tensor(int64)",
    "i32": "tensor(int32)",
    "u8": "tensor(uint8)",
    "i8": "tensor(int8)",
    "boolean": "tensor(bool)",
}
"""OpenVINO's name of an element type, and ONNX Runtime's."""

PRODUCTS = frozenset({"fullyconnected", "matmul", "gemm", "convolution"})
"""Layers of a compiled model that multiply, in lower case without underscores: devices spell them differently."""

TELEMETRY = "openvino_telemetry"
"""OpenVINO's Python package loads it, where it is installed, and it looks for a server and writes into the home
folder. OpenVINO does without it."""

MAX_SENTENCE = 300
"""Characters of OpenVINO's message that an error quotes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how OpenVINO computes; precision None is what the device takes by itself."""

    device: str = "CPU"
    precision: str | None = None

    @property
    def name(self) -> str:
        """As a person types it."""
        parts = [OPENVINO, *([] if self.device == "CPU" else [self.device.lower()]), self.precision or ""]
        return ":".join(part for part in parts if part)


def is_installed() -> bool:
    """Whether the package openvino is there; it is not loaded."""
    return find_spec(OPENVINO) is not None


def find_version() -> str:
    """The version of the package openvino.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return metadata.version(OPENVINO)


def import_openvino() -> Any:
    """The openvino module, without its telemetry: nothing here uses the network.

    Raises:
        MissingExtraError: it is not installed, or can not be loaded.
    """
    loaded = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # pyright: ignore[reportArgumentType] - Python then takes it for not installed
    try:
        import openvino
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == OPENVINO:
            raise MissingExtraError(
                "OpenVINO is not installed: pip install 'corp-onnx[openvino]'; ONNX Runtime's own provider of it, "
                f"where it has one, is called {OPENVINO_PROVIDER}."
            ) from error
        raise MissingExtraError(f"OpenVINO is installed and can not be loaded ({error}): install it again.") from error
    finally:
        del sys.modules[TELEMETRY]
        if loaded is not None:
            sys.modules[TELEMETRY] = loaded
    return openvino


def parse_place(provider: str) -> Place | None:
    """What `openvino`, `openvino:bf16`, `openvino:gpu` or `openvino:gpu:f16` says; None for any other name."""
    first, *rest = provider.lower().split(":")
    if first != OPENVINO:
        return None
    precision = rest.pop() if rest and rest[-1] in PRECISIONS else None
    return Place(":".join(rest).upper() or "CPU", precision)


def list_places(provider: str) -> tuple[str, ...]:
    """The names of all that `openvino` stands for: f32, and what the device computes in by itself; else the name.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        OptionError: the device is not there, or can not compute so.
    """
    place = parse_place(provider)
    if place is None:
        return (provider,)
    core = import_openvino().Core()
    _require_place(core, place)
    if place.precision is not None:
        return (place.name,)
    own = core.get_property(place.device, "INFERENCE_PRECISION_HINT").to_string()
    return tuple(Place(place.device, hint).name for hint in dict.fromkeys(("f32", own)) if hint in PRECISIONS)


def open_program(path: Path, place: Place, threads: int | None) -> Program:
    """An ONNX file, read by OpenVINO.

    Args:
        threads: on a CPU; None takes every core.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        OptionError: the device is not there, or can not compute in that precision.
        ModelError: OpenVINO can not load the file.
    """
    core = import_openvino().Core()
    _require_place(core, place)
    try:
        model = core.read_model(str(path))
    except Exception as error:  # OpenVINO raises RuntimeError for everything
        raise _explain(path, "can not load it", error) from error
    stored = onnx.load(str(path), format="protobuf", load_external_data=False).metadata_props
    return Program(path, core, model, place, threads, {prop.key: prop.value for prop in stored})


def _require_place(core: Any, place: Place) -> None:
    """Raise OptionError where the device is not there or can not compute so."""
    known = list(core.available_devices)
    if place.device.split(".")[0] not in {device.split(".")[0] for device in known}:
        raise OptionError(
            f"OpenVINO has no device {place.device} here, only {', '.join(known)}; its precisions are "
            f"{', '.join(PRECISIONS)}."
        )
    can = core.get_property(place.device, "OPTIMIZATION_CAPABILITIES")
    if place.precision is not None and PRECISIONS[place.precision] not in can:
        others = [name for name, said in PRECISIONS.items() if said in can]
        raise OptionError(
            f"OpenVINO does not compute in {place.precision} on this {place.device}, which takes {', '.join(others)}."
        )


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output, as ONNX Runtime describes one."""

    name: str
    type: str
    shape: list[int | None]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The metadata of a file, as ONNX Runtime gives it."""

    custom_metadata_map: dict[str, str]


@dataclass(slots=True, eq=False)
class Program:
    """A file on a device: it has the methods of an `onnxruntime.InferenceSession` that a `Session` uses.

    Attributes:
        precision: what the products of the model that ran last are computed in, read back from it, as in
            `i8 50, bf16 13`; empty before the first run.
        settings: what OpenVINO then said of threads and streams.
    """

    path: Path
    core: Any
    model: Any
    place: Place
    threads: int | None
    metadata: dict[str, str]
    precision: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    requests: dict[tuple[tuple[int, ...], ...], Any] = field(default_factory=dict)

    def get_inputs(self) -> list[Port]:
        """What it takes."""
        return [_describe(port) for port in self.model.inputs]

    def get_outputs(self) -> list[Port]:
        """What it gives."""
        return [_describe(port) for port in self.model.outputs]

    def get_providers(self) -> list[str]:
        """Where it runs."""
        return [f"OpenVINO {self.place.device}{f' in {self.precision}' if self.precision else ''}"]

    def get_modelmeta(self) -> Metadata:
        """The metadata of the file."""
        return Metadata(self.metadata)

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names; None gives all.

        Raises:
            ModelError: OpenVINO can not compile the model for these shapes, or fails on it.
        """
        key = tuple(array.shape for array in feeds.values())
        request = self.requests.get(key)
        try:
            if request is None:
                request = self.requests[key] = self._compile(feeds)
            found = request.infer(dict(feeds), share_inputs=True)
            return [found[name] for name in names or [port.get_any_name() for port in self.model.outputs]]
        except Exception as error:  # as in `open_program`
            raise _explain(self.path, "failed on it", error) from error

    def _compile(self, feeds: Mapping[str, np.ndarray]) -> Any:
        """A request of the model compiled for the shapes of these inputs."""
        self.model.reshape({name: list(array.shape) for name, array in feeds.items()})
        hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.place.precision is not None:
            hints["INFERENCE_PRECISION_HINT"] = self.place.precision
        if self.threads is not None and self.place.device == "CPU":
            hints["INFERENCE_NUM_THREADS"] = self.threads
        compiled = self.core.compile_model(self.model, self.place.device, hints)
        self.precision = _read_precision(compiled)
        read = ("PERFORMANCE_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")
        offered = compiled.get_property("SUPPORTED_PROPERTIES")
        self.settings = {name: str(compiled.get_property(name)) for name in read if name in offered}
        return compiled.create_infer_request()


def _describe(port: Any) -> Port:
    kind = str(port.get_element_type().to_string())
    shape = [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]
    return Port(port.get_any_name(), ELEMENTS.get(kind, kind), shape)


def _read_precision(compiled: Any) -> str:
    """What the products of a compiled model run in, and how many where it is not one for all."""
    found: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        said = layer.get_rt_info()
        kind, runs_in = (str(said[key].astype(str)) for key in ("layerType", "runtimePrecision"))
        if kind.lower().replace("_", "") in PRODUCTS:
            found[runs_in.lower()] += 1
    if len(found) > 1:
        return ", ".join(f"{name} {count}" for name, count in found.most_common())
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return next(iter(found), hint)


def _explain(path: Path, what: str, error: Exception) -> ModelError:
    """The error for what OpenVINO broke off.

    Raises:
        MemoryError: it was broken off because the host has no memory left.
    """
    if is_out_of_memory(error):
        raise MemoryError from error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[-1] if lines else type(error).__name__).removeprefix("-- ")[:MAX_SENTENCE].rstrip(". ")
    return ModelError(f"{path}: OpenVINO {what} ({text}).")
