"""The path of a model file -> what `bench` opens, by the kind of file that it is."""

from __future__ import annotations

from pathlib import Path

from corp_onnx.bench.candidates import ENGINE_SUFFIXES, Subject
from corp_onnx.bench.engine import read_engine
from corp_onnx.bench.session import read_onnx


def read_subject(path: Path) -> Subject:
    """A model file, read but not opened on any provider yet.

    Raises:
        ModelError: it is no ONNX file or engine that can be read, or ONNX Runtime can not run it.
        MissingExtraError: what it needs is not installed.
    """
    return read_engine(path) if path.suffix.lower() in ENGINE_SUFFIXES else read_onnx(path)
