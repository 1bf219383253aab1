"""Weights outside of their ONNX file: every tensor that a message holds, the files that hold the bytes of some, these.

Enters a `ModelProto`; leaves tensors, names of files, bytes. onnx reads no file that has several names (hard links), so
files are read here, with bounds of our own. A name is compared in its normal form: `./weights` and
`weights` are one file (`..` stays: behind a link it leads elsewhere).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from corp_onnx.errors import ModelError

PACKED = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})
"""Element types of four bits, two to a byte."""


def iterate_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, sparse ones too, attributes of nodes, those of inner graphs and functions."""
    yield from _tensors_of(proto.graph)
    for function in proto.functions:
        yield from _tensors_in(function.node)


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_in(graph.node)


def _tensors_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors_of(inner)


def list_locations(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The files that hold weights, relative to the folder of the model, in their normal form and sorted."""
    stored = (t for t in iterate_tensors(proto) if external_data_helper.uses_external_data(t))
    return tuple(sorted({str(PurePosixPath(read_location(tensor))) for tensor in stored}))


def read_location(tensor: onnx.TensorProto) -> str:
    """The file that a tensor names, as it is spelled."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> np.ndarray:
    """The numbers of a tensor, wherever they lie.

    Args:
        folder: where names of external data start from.

    Raises:
        ModelError: see `read_bytes`; or there are not as many bytes as numbers, or of no type of numbers.
    """
    inside, where = tensor, folder
    if external_data_helper.uses_external_data(tensor):
        inside = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        inside.raw_data, where = read_bytes(tensor, folder), folder / read_location(tensor)
    try:
        return numpy_helper.to_array(inside)
    except (ValueError, TypeError, KeyError) as error:
        found = f"{len(inside.raw_data)} bytes for {list(tensor.dims)} numbers of type {tensor.data_type}"
        raise ModelError(f"{where}: weight '{tensor.name}' has {found}.") from error


def load_tensors(proto: onnx.ModelProto, folder: Path) -> None:
    """Bring every weight that lies outside into a message.

    Raises:
        ModelError: see `read_bytes`.
    """
    for tensor in iterate_tensors(proto):
        load_tensor(tensor, folder)


def load_tensor(tensor: onnx.TensorProto, folder: Path) -> None:
    """The same of one, wherever its numbers are.

    Raises:
        ModelError: see `read_bytes`.
    """
    if external_data_helper.uses_external_data(tensor):
        tensor.raw_data = read_bytes(tensor, folder)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def point_outside(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Let the numbers of a tensor be so many bytes of a file; those in the message are dropped."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def read_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The bytes of a tensor that lie outside.

    Raises:
        ModelError: see `locate_bytes`; or the file became shorter meanwhile.
    """
    file, offset, length = locate_bytes(tensor, folder)
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            found = stream.read(length)
    except OSError as error:
        raise _unreadable(file, tensor, error.strerror) from error
    if len(found) < length:
        raise _unreadable(file, tensor, "it became shorter meanwhile")
    return found


def locate_bytes(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """(file, first byte, number of bytes) of a tensor that lies outside; without a length, what its shape needs.

    Raises:
        ModelError: no such file, or it ends before them.
    """
    file = folder / read_location(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not is_file(file):  # a pipe would never end
        raise ModelError(f"{file}: no regular file is there, and weight '{tensor.name}' is stored in it.")
    try:
        size, offset = file.stat().st_size, int(entries.get("offset", 0))
        length = int(entries["length"]) if "length" in entries else _count_bytes(tensor)
    except OSError as error:
        raise _unreadable(file, tensor, error.strerror) from error
    except KeyError as error:
        raise _unreadable(file, tensor, f"its type {tensor.data_type} is not known") from error
    except ValueError as error:
        raise _unreadable(file, tensor, "its place is no number") from error
    if min(offset, length) < 0 or offset + length > size:
        raise ModelError(
            f"{file}: has {size} bytes, and weight '{tensor.name}' is said to be {length} from {offset} on; copy "
            "the file again."
        )
    return file, offset, length


def is_file(path: Path) -> bool:
    """Whether a regular file is there; not where no file can have that name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _count_bytes(tensor: onnx.TensorProto) -> int:
    bits = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    if tensor.data_type in PACKED:
        bits = 4
    return (math.prod(tensor.dims) * bits + 7) // 8


def _unreadable(file: Path, tensor: onnx.TensorProto, reason: str | None) -> ModelError:
    return ModelError(f"{file}: weight '{tensor.name}' can not be read ({reason}).")


def find_beside(path: Path, name: str) -> Path:
    """A file that a model names: beside the path, or beside what the path is a link to."""
    beside = path.parent / name
    return beside if beside.exists() else path.resolve().parent / name
