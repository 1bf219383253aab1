"""A model -> an ONNX file; weights that outgrow protobuf, or lived outside, go into one file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
from onnx import external_data_helper

from corp_onnx.errors import ModelError, OutputError
from corp_onnx.graph.external import (
    iterate_tensors,
    list_locations,
    load_tensor,
    locate_bytes,
    point_outside,
    read_bytes,
)
from corp_onnx.graph.model import outgrows_protobuf, parse_file
from corp_onnx.graph.proto import serialize
from corp_onnx.staging import visible_folder

SMALLEST_BYTES = 991
"""Weights from this size on go beside, as onnx has it: 1024 less the 33 of a Python object, which it counts as well."""


def data_path(path: Path) -> Path:
    """The file beside a model that holds its weights, where there is one."""
    return path.with_name(f"{path.name}.data")


def outdated_data(path: Path) -> tuple[Path, ...]:
    """The file of weights that goes when the model at a path is replaced: called as ours are, and named by it."""
    data = data_path(path)
    if not data.is_file():
        return ()
    with suppress(ModelError):  # what is there is no model, so the file is somebody else's
        return (data,) if data.name in list_locations(parse_file(path)) else ()
    return ()


def needs_data_file(proto: onnx.ModelProto) -> bool:
    """Whether weights lie outside of a message already, or are too many for it."""
    return any(map(external_data_helper.uses_external_data, iterate_tensors(proto))) or outgrows_protobuf(proto)


def write_model(proto: onnx.ModelProto, path: Path, source_folder: Path) -> None:
    """Write a model; one whose weights lived in external files, or that outgrows protobuf, gets one file of them.

    Args:
        source_folder: where external weights that are still references are read from.

    Raises:
        ModelError: those can not be read.
        OutputError: the disk is full or the folder not writable.
    """
    with writing(path):
        if needs_data_file(proto):
            _move_beside(proto, data_path(path), source_folder)
        path.write_bytes(serialize(proto))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where a staged file can not be written, a sentence says so."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path.name}: could not be written to {visible_folder(path)} ({reason}).") from error


def _move_beside(proto: onnx.ModelProto, data: Path, source_folder: Path) -> None:
    """Write the large weights one behind the other; onnx itself would look for the file in the working directory.

    What lies outside goes from file to file, since a message keeps the room of all that it ever held.
    """
    n_initializers = len(proto.graph.initializer)
    large: list[onnx.TensorProto] = []
    for i, tensor in enumerate(iterate_tensors(proto)):  # initializers come first
        if i < n_initializers and _count_bytes(tensor, source_folder) >= SMALLEST_BYTES:
            large.append(tensor)
        else:
            load_tensor(tensor, source_folder)
    if not large:
        data.unlink(missing_ok=True)
        return
    with data.open("wb") as stream:
        for tensor in large:
            outside = external_data_helper.uses_external_data(tensor)
            offset, found = stream.tell(), read_bytes(tensor, source_folder) if outside else tensor.raw_data
            point_outside(tensor, data.name, offset, stream.write(found))


def _count_bytes(tensor: onnx.TensorProto, folder: Path) -> int:
    """Of a stored tensor, inside or outside."""
    if external_data_helper.uses_external_data(tensor):
        return locate_bytes(tensor, folder)[2]
    return len(tensor.raw_data)
