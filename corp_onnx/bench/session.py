"""An ONNX file as something that `bench` times: on any provider of ONNX Runtime, or in OpenVINO.

Enters the path of a file, quantised or not; leaves a subject of candidates.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from corp_onnx.bench.candidates import BenchModel, Candidate
from corp_onnx.graph.links import load_model
from corp_onnx.graph.model import Model, batch_kind, describe_file, hash_file
from corp_onnx.graph.operators import INT4, QUANTISED
from corp_onnx.latency.turns import SESSION_CONFIG
from corp_onnx.run.device import DEVICES, bind_device
from corp_onnx.run.noise import fitting_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import Session, open_session


def read_onnx(path: Path) -> OnnxSubject:
    """An ONNX file, read but not opened on any provider yet.

    Raises:
        ModelError: it is no ONNX file that can be read, or ONNX Runtime can not run it.
        MissingExtraError: ONNX Runtime is not installed.
    """
    open_session(path)  # says what is wrong with a file better than a parser
    model = _parse(path)
    graph = probe_graph(model)
    ops = {node.op for node in graph.nodes} & QUANTISED
    shapes = tuple(graph.shapes[value.name] for value in model.proto.graph.input)
    precision = graph.float_type
    if ops:
        precision = "int4" if ops & INT4 else "int8"
    facts = BenchModel(
        **asdict(describe_file(model, precision)),
        macs=graph.cost.total or None,
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
            OptionError: the provider is not there, or could not be started.
            ModelError: the runtime can not load the model there.
            MissingExtraError: OpenVINO is asked for and not installed.
        """
        session = open_session(self.model.path, provider=provider, threads=threads, config=SESSION_CONFIG, exact=False)
        if session.program is not None:
            return OnnxOpened(self, session, None)
        return OnnxOpened(self, session, DEVICES.get(session.provider))


@dataclass(frozen=True, slots=True, eq=False)
class OnnxOpened:
    """A session; `device` is the memory it computes in, None is the host's."""

    subject: OnnxSubject
    session: Session
    device: str | None

    def bind(self, n_images: int) -> Candidate:
        """It with a batch of noise."""
        feeds = fitting_feeds(self.subject.model, n_images, self.subject.facts.inputs)
        if self.device is None:
            self._run(feeds)  # OpenVINO compiles now, and says what it made of the model
            program = self.session.program
            said = {} if program is None else {"precision": program.precision, "settings": program.settings}
            return Candidate(lambda: self._run(feeds), **said)
        bound = bind_device(self.session, feeds, self.device)
        return Candidate(bound.run, bound.resident)

    def _run(self, feeds: dict[str, np.ndarray]) -> None:
        self.session.run(None, feeds)
