"""A TensorRT engine as something that `bench` times.

Enters the path of an engine; leaves a subject of candidates.py. Its own tensors say what it takes; its precision and
the library that it is for stand in the description beside it, where `corp-onnx engine` wrote one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx.bench.candidates import BenchModel, Candidate
from corp_onnx.errors import CheckFailedError, ModelError, OptionError
from corp_onnx.graph.model import hash_file
from corp_onnx.tensorrt.builder import load_plan
from corp_onnx.tensorrt.cuda import Buffer, allocate, import_cuda, succeed
from corp_onnx.tensorrt.engine import description_path
from corp_onnx.tensorrt.library import LIBRARIES, Library, find_library


def read_engine(path: Path) -> EngineSubject:
    """An engine file, loaded on the GPU.

    Raises:
        MissingExtraError: TensorRT, CUDA's bindings or a GPU is not there.
        ModelError: there is no such file, or it is no engine of this TensorRT and GPU.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give the path of an engine, as `corp-onnx engine` writes it.")
    digest = hash_file(path)
    said = _read_description(path, digest)
    library = find_library(next((name for name in LIBRARIES if name == said.get("library")), None))
    import_cuda()
    trt, engine = library.trt, load_plan(library, path.read_bytes(), path)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    best = {n: _best_shape(engine, n) for n in inputs}
    dynamic = any(tuple(engine.get_tensor_shape(n))[:1] == (-1,) for n in inputs)
    facts = BenchModel(
        path=str(path),
        sha256=digest,
        n_bytes=path.stat().st_size,
        precision=str(said.get("precision", "not described")),
        macs=None,
        batch=None if dynamic else best[inputs[0]][0],
        inputs=tuple(best[n][1:] for n in inputs),
        is_engine=True,
    )
    return EngineSubject(facts, library, engine, tuple(inputs), tuple(n for n in names if n not in inputs))


def _best_shape(engine: Any, name: str) -> tuple[int, ...]:
    """The shape that an input is optimised for, or its only one."""
    shape = tuple(engine.get_tensor_shape(name))
    return shape if -1 not in shape else tuple(engine.get_tensor_profile_shape(name, 0)[1])


def _read_description(path: Path, digest: str) -> dict[str, Any]:
    """What stands beside an engine, if it is of this engine; else nothing."""
    try:
        said = json.loads(description_path(path).read_text(encoding="utf-8"))
        return said if said["sha256"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class EngineSubject:
    """An engine on the GPU: already open, whatever the provider."""

    facts: BenchModel
    library: Library
    engine: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def open(self, provider: str, threads: int | None) -> EngineSubject:  # noqa: ARG002 - for ONNX Runtime
        """Itself."""
        return self

    def bind(self, n_images: int) -> Candidate:
        """It with a batch of noise, in a context and a stream of its own.

        Raises:
            OptionError: the batch lies outside of what the engine was built for.
            CheckFailedError: the GPU has no memory left.
        """
        context = self.engine.create_execution_context()
        if context is None:
            raise CheckFailedError(f"{self.facts.path}: TensorRT gives no execution context; is the GPU's memory full?")
        for name in self.inputs:
            shape = (n_images, *_best_shape(self.engine, name)[1:])
            if not context.set_input_shape(name, shape):
                low, _, high = (tuple(s) for s in self.engine.get_tensor_profile_shape(name, 0))
                raise OptionError(
                    f"{self.facts.path} takes batches of {low[0]} to {high[0]}; found --batch {n_images}."
                )
        buffers = {name: self._allocate(context, name) for name in (*self.inputs, *self.outputs)}
        stream = succeed(import_cuda().cudaStreamCreate())
        for name, buffer in buffers.items():
            context.set_tensor_address(name, buffer.address)
            if name in self.inputs:
                buffer.upload(stream)
        return self._candidate(context, buffers, stream)

    def _allocate(self, context: Any, name: str) -> Buffer:
        stored = self.engine.get_tensor_dtype(name)
        try:
            dtype = self.library.trt.nptype(stored)
        except TypeError as error:
            raise ModelError(
                f"{self.facts.path}: '{name}' is {stored}, which NumPy does not know; build the engine from a file "
                "whose inputs and outputs are float32 or float16."
            ) from error
        shape = tuple(context.get_tensor_shape(name))
        if np.issubdtype(dtype, np.floating) and name in self.inputs:
            return allocate(np.random.default_rng(0).standard_normal(shape).astype(dtype))
        return allocate(np.ones(shape, dtype))

    def _candidate(self, context: Any, buffers: dict[str, Buffer], stream: Any) -> Candidate:
        wait = import_cuda().cudaStreamSynchronize

        def compute() -> None:
            if not context.execute_async_v3(int(stream)):
                raise CheckFailedError(f"{self.facts.path}: TensorRT failed while running it.")

        def resident() -> None:
            compute()
            succeed(wait(stream))

        def run() -> None:
            for name in self.inputs:
                buffers[name].upload(stream)
            compute()
            for name in self.outputs:
                buffers[name].download(stream)
            succeed(wait(stream))

        return Candidate(run, resident)
