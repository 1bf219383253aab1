"""A stand-in for TensorRT's Python API and for CUDA's, as far as their documentation says how they behave.

`tensorrt(version)` and `cuda(log)` are modules to put into sys.modules. They keep the rules that a caller can break:
strong typing and precision flags exclude each other, dynamic inputs need a profile, a profile must fit the network,
flags that version 11 removed are not there, failures are told to the logger and come back as None, False or -1. An
engine is JSON, so that what was built can be read; it runs on memory of this process and its output is the sum of its
inputs. The names of classes, methods and members were compared with the bindings of 10.16 and 11.4
(`test_the_stand_in_has_no_member_that_the_library_lacks`).
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity


class IProgressMonitor:
    pass


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content or b"timings")


class ITensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]


class ParserError:
    def __init__(self, desc: str, node: str, operator: str) -> None:
        self._desc, self._node, self._operator = desc, node, operator

    def desc(self) -> str:
        return self._desc

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    def get_shape(self, input: str) -> list[tuple[int, ...]]:  # noqa: A002
        return self._shapes[input]


class IBuilderConfig:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._flags: set[Any] = set()
        self._pools: dict[Any, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools[pool]

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if any(not all(0 <= a <= b <= c for a, b, c in zip(*s, strict=True)) for s in profile._shapes.values()):
            self._logger.log(Severity.ERROR, "IBuilderConfig::addOptimizationProfile: Error Code 3: invalid profile.")
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if serialized_timing_cache == b"damaged" else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content.startswith(b"other GPU") and not ignore_mismatch:
            self._logger.log(Severity.ERROR, "Timing cache header does not match the device.")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class ICudaEngine:
    def __init__(self, plan: dict[str, Any], library: ModuleType) -> None:
        self._plan, self._library = plan, library
        self._tensors = {t["name"]: t for t in plan["inputs"] + plan["outputs"]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        is_input = any(t["name"] == name for t in self._plan["inputs"])
        return self._library.TensorIOMode.INPUT if is_input else self._library.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def get_tensor_dtype(self, name: str) -> Any:
        return self._library.DataType[self._tensors[name]["dtype"]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(s) for s in self._plan["profiles"][profile_index][name]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self._batch = 0
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, 0) if self.engine._plan["profiles"] else [shape] * 3
        if not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return False
        self._batch = shape[0]
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        inner = self.engine._plan["profiles"][0].get(name) if self.engine._plan["profiles"] else None
        shape = inner[1] if inner else self.engine.get_tensor_shape(name)
        return (self._batch, *tuple(shape)[1:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert isinstance(stream_handle, int)
        self.engine._library.ran.append(self._batch)
        arrays = {name: self._view(name) for name in self._addresses}
        modes = {name: self.engine.get_tensor_mode(name) for name in arrays}
        total = sum(float(a.sum()) for n, a in arrays.items() if modes[n] == self.engine._library.TensorIOMode.INPUT)
        for name, array in arrays.items():
            if modes[name] == self.engine._library.TensorIOMode.OUTPUT:
                array[...] = total
        return self.engine._library.runs_work

    def _view(self, name: str) -> np.ndarray:
        dtype = np.dtype(self.engine._library.nptype(self.engine.get_tensor_dtype(name)))
        shape = self.get_tensor_shape(name)
        raw = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


DATA_TYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64}
OF_ONNX = {1: "FLOAT", 10: "HALF", 3: "INT8", 6: "INT32", 7: "INT64"}


def tensorrt(version: str, *, has_gpu: bool = True) -> Any:
    """The module; its `built` lists (flags of the network, config, phases) of every build."""
    library: Any = ModuleType("tensorrt")
    typed_only = int(version.split(".")[0]) >= 11
    library.__version__ = version
    library.built, library.ran, library.runs_work = [], [], True
    flags = ["STRONGLY_TYPED"] if typed_only else ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    library.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags, start=0)
    precisions = [] if typed_only else ["FP16", "BF16", "INT8"]
    library.BuilderFlag = enum.Enum("BuilderFlag", [*precisions, "TF32"])
    library.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    library.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    library.DataType = enum.Enum("DataType", list(DATA_TYPES))
    library.nptype = lambda data_type: DATA_TYPES[data_type.name]
    for kind in (ILogger, IProgressMonitor, IHostMemory, ITimingCache, INetworkDefinition, ITensor, ParserError,
                 IOptimizationProfile, IBuilderConfig, ICudaEngine, IExecutionContext):  # fmt: skip
        setattr(library, kind.__name__, kind)

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not has_gpu:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig(self._logger)

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            library.built.append((network, config))
            self._logger.log(Severity.WARNING, "Using the default optimisation level.")
            if reason := _refuse(library, network, config):
                self._logger.log(Severity.ERROR, reason)
                self._logger.log(Severity.ERROR, "Engine build failed.")
                return None
            if config.progress_monitor is not None and not _report(config.progress_monitor):
                return None
            plan = {
                "inputs": [_describe(t) for t in network._inputs],
                "outputs": [_describe(t) for t in network._outputs],
                "profiles": [p._shapes for p in config._profiles],
            }
            return IHostMemory(json.dumps(plan).encode())

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._logger = network, logger
            self._errors: list[ParserError] = []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

        def parse_from_file(self, model: str) -> bool:
            graph = onnx.load(Path(model)).graph
            for node in graph.node:
                if node.domain not in ("", "ai.onnx"):
                    self._errors.append(ParserError("Plugin not found, are the plugin name, version, and namespace "
                                                    "correct?", node.name, node.op_type))  # fmt: skip
            self._network._inputs = [_tensor(library, v) for v in graph.input]
            self._network._outputs = [_tensor(library, v) for v in graph.output]
            return not self._errors

    class Runtime:
        def __init__(self, logger: Any) -> None:
            if not has_gpu:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            try:
                return ICudaEngine(json.loads(serialized_engine), library)
            except ValueError:
                self._logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization "
                                                 "(magicTag failed.)")  # fmt: skip
                return None

    library.Builder, library.OnnxParser, library.Runtime = Builder, OnnxParser, Runtime
    return library


def _tensor(library: Any, value: onnx.ValueInfoProto) -> ITensor:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return ITensor(value.name, shape, library.DataType[OF_ONNX[tensor.elem_type]])


def _describe(tensor: ITensor) -> dict[str, Any]:
    return {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype.name}


def _refuse(library: Any, network: INetworkDefinition, config: IBuilderConfig) -> str:
    """What the documentation says that a build fails for."""
    typed = bool(network.flags & 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    precisions = {f.name for f in config._flags} & {"FP16", "BF16", "INT8"}
    if typed and precisions:
        return f"Strongly typed networks do not take {', '.join(sorted(precisions))}."
    for tensor in network._inputs:
        shapes = [p._shapes[tensor.name] for p in config._profiles if tensor.name in p._shapes]
        if -1 in tensor.shape and not shapes:
            return (
                f"Network has dynamic or shape inputs, but no optimization profile has been defined for {tensor.name}."
            )
        for shape in (s for three in shapes for s in three):
            if len(shape) != len(tensor.shape) or any(
                a not in (-1, b) for a, b in zip(tensor.shape, shape, strict=True)
            ):
                return f"{tensor.name}: the profile has {shape} and the network {tensor.shape}."
    return ""


def _report(monitor: Any) -> bool:
    """Two outer phases, and an inner one that nobody should count; False as soon as the caller wants to stop."""
    for phase, steps in (("Building Engine", 2), ("Tactic Selection", 3)):
        monitor.phase_start(phase, None, steps)
        monitor.phase_start(f"{phase}: inner", phase, 1)
        for step in range(steps):
            if not (monitor.step_complete(f"{phase}: inner", 0) and monitor.step_complete(phase, step)):
                monitor.phase_finish(phase)
                return False
        monitor.phase_finish(phase)
    return True


def cuda(log: list[str], *, has_gpu: bool = True) -> Any:
    """The module `cuda.bindings.runtime` on memory of this process; `log` gets every copy and wait."""
    library: Any = ModuleType("cuda.bindings.runtime")
    library.cudaError_t = enum.IntEnum("cudaError_t", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2,
                                                       "cudaErrorInsufficientDriver": 35})  # fmt: skip
    library.cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    library.memory = {}
    library.free_bytes = 1 << 30
    ok = library.cudaError_t.cudaSuccess

    def malloc(size: int) -> tuple[Any, int | None]:
        if size > library.free_bytes:
            return library.cudaError_t.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(size)
        library.memory[ctypes.addressof(block)] = block
        return ok, ctypes.addressof(block)

    def free(address: int) -> tuple[Any]:
        del library.memory[address]
        return (ok,)

    def copy(target: int, source: int, size: int, kind: Any, _stream: Any) -> tuple[Any]:
        ctypes.memmove(target, source, size)
        log.append("up" if kind == library.cudaMemcpyKind.cudaMemcpyHostToDevice else "down")
        return (ok,)

    def wait(_stream: Any) -> tuple[Any]:
        log.append("wait")
        return (ok,)

    def properties(_device: int) -> tuple[Any, Any]:
        if not has_gpu:
            return library.cudaError_t.cudaErrorInsufficientDriver, None
        return ok, SimpleNamespace(name=b"NVIDIA Fake 1000\0\0")

    library.cudaMalloc, library.cudaFree, library.cudaMemcpyAsync = malloc, free, copy
    library.cudaStreamSynchronize, library.cudaGetDeviceProperties = wait, properties
    library.cudaStreamCreate = lambda: (ok, 7)
    return library
