"""Model files -> what `bench` times: a file's facts, and it opened on a provider, ready to run on a batch of noise.

An ONNX file runs on any provider of ONNX Runtime; a TensorRT engine (`corp-onnx engine`) is its own provider,
`engine`. Where a provider has a memory of its own, a contestant runs in two ways: with its inputs and outputs in host
memory, as a server meets them, and with both on the device already, which leaves out the transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx.inliner

from corp_onnx.errors import ModelError, OptionError
from corp_onnx.graph.cost import count_macs
from corp_onnx.graph.model import Model, batch_kind, file_size, hash_file, load_model
from corp_onnx.graph.operators import INT4, QUANTISED
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import first_sentence, import_runtime, open_session, resolve_provider

ENGINE_SUFFIXES = (".plan", ".engine", ".trt")
ENGINE = "engine"
"""The provider of a TensorRT engine: itself."""

DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Providers with a memory of their own, and ONNX Runtime's name of it."""

SESSION_CONFIG = {"session.force_spinning_stop": "1"}
"""ONNX Runtime's threads go on spinning for a while after a run; those of one model would slow the next one's turn."""


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model file that is timed.

    Attributes:
        path: the file.
        sha256: of the file alone.
        n_bytes: on disk, with external weights.
        precision: float32, float16, ..., int8 (quantised), or what an engine's description says.
        macs: multiply-accumulates of one image; None where it is not known (engines).
        batch: the fixed number of images at a time, or None.
        inputs: of every input, its axes behind the batch.
        is_engine: whether it is a TensorRT engine, and not an ONNX file.
    """

    path: str
    sha256: str
    n_bytes: int
    precision: str
    macs: int | None
    batch: int | None
    inputs: tuple[tuple[int, ...], ...]
    is_engine: bool


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """A model on a provider with a batch: `run` from host memory to host memory, `resident` on the device only."""

    run: Callable[[], None]
    resident: Callable[[], None] | None = None


class Opened(Protocol):
    """A model loaded on a provider."""

    def bind(self, n_images: int) -> Contestant:
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


def read_subject(path: Path) -> Subject:
    """A model file, read but not opened on any provider yet.

    Raises:
        ModelError: it is no ONNX file or engine that can be read, or ONNX Runtime can not run it.
        MissingExtraError: what it needs is not installed.
    """
    if path.suffix.lower() in ENGINE_SUFFIXES:
        from corp_onnx.bench.engine import read_engine  # which imports this module

        return read_engine(path)
    return _read_onnx(path)


def _read_onnx(path: Path) -> OnnxSubject:
    open_session(path)  # says what is wrong with a file better than a parser
    model = _parse(path)
    graph = probe_graph(model)
    ops = {node.op for node in graph.nodes} & QUANTISED
    shapes = tuple(graph.shapes[value.name] for value in model.proto.graph.input)
    precision = graph.float_type
    if ops:
        precision = "int4" if ops & INT4 else "int8"
    facts = BenchModel(
        path=str(path),
        sha256=model.sha256,
        n_bytes=file_size(model),
        precision=precision,
        macs=count_macs(graph).total or None,
        batch=batch_kind(model),
        inputs=tuple(tuple(shape[1:]) for shape in shapes),
        is_engine=False,
    )
    return OnnxSubject(facts, model)


def _parse(path: Path) -> Model:
    """The model; unlike `load_model`, quantised ones too."""
    proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    if not any(node.op_type in QUANTISED for node in proto.graph.node):
        return load_model(path)
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    return Model(proto, path, hash_file(path))


@dataclass(frozen=True, slots=True, eq=False)
class OnnxSubject:
    """An ONNX file."""

    facts: BenchModel
    model: Model

    def open(self, provider: str, threads: int | None) -> OnnxOpened:
        """It as a session.

        Raises:
            OptionError: the provider is not there, or ONNX Runtime could not start it and took another.
            ModelError: ONNX Runtime can not load the model there.
        """
        session = open_session(self.model.path, provider=provider, threads=threads, config=SESSION_CONFIG)
        wanted = resolve_provider(provider)
        if session.get_providers()[0] != wanted:
            raise OptionError(
                f"provider '{provider}' could not be started, and ONNX Runtime took {session.get_providers()[0]} "
                f"instead; are the libraries that {wanted} needs installed?"
            )
        return OnnxOpened(self, session, DEVICES.get(wanted))


@dataclass(frozen=True, slots=True, eq=False)
class OnnxOpened:
    """A session; `device` is the memory it computes in, None is the host's."""

    subject: OnnxSubject
    session: Any
    device: str | None

    def bind(self, n_images: int) -> Contestant:
        """It with a batch of noise."""
        facts = self.subject.facts
        images = [axes for axes in facts.inputs if len(axes) == 3]
        tokens = [axes for axes in facts.inputs if len(axes) != 3 and axes]
        feeds = random_feeds(
            self.subject.model, n_images,
            image_size=images[0][1] if images else 1, n_tokens=tokens[0][0] if tokens else 1,
        )  # fmt: skip
        path = facts.path
        if self.device is None:
            return Contestant(_guarded(lambda: self.session.run(None, feeds), path))
        run, resident = _bind_device(self.session, feeds, self.device)
        return Contestant(_guarded(run, path), _guarded(resident, path))


def _bind_device(
    session: Any, feeds: Mapping[str, np.ndarray], device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Runs with and without transfers, both through an IO binding, so that nothing else differs."""
    on_device = {name: import_runtime().OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in feeds.items()}
    to_host, stays = session.io_binding(), session.io_binding()
    for binding, where in ((to_host, "cpu"), (stays, device)):
        for name, value in on_device.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, where)

    def resident() -> None:
        session.run_with_iobinding(stays)
        stays.synchronize_outputs()

    def run() -> None:
        for name, value in on_device.items():
            value.update_inplace(feeds[name])
        session.run_with_iobinding(to_host)
        to_host.synchronize_outputs()

    return run, resident


def _guarded(run: Callable[[], Any], path: str) -> Callable[[], None]:
    def call() -> None:
        try:
            run()
        except Exception as error:  # onnxruntime raises a class of its own for every status code
            raise ModelError(f"{path}: ONNX Runtime failed while running it ({first_sentence(error)}).") from error

    return call
