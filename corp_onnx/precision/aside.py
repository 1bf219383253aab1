"""Weights that lie outside of a model, kept away from ONNX Runtime's float16 converter: it sees them empty.

The converter looks at a weight's type and at who reads it, and where it has no numbers changes the type alone. So the
numbers go from file to file, one weight at a time, in place of through a message that keeps the room of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, external_data_helper

from corp_onnx.graph.external import load_tensor, load_tensors, point_outside, read_tensor
from corp_onnx.graph.model import outgrows_protobuf

LARGE = 2**30
"""Bytes of halves that stay in a file: a message would hold them several times on its way to one."""

Aside = Mapping[str, TensorProto]
"""Weights by name, whose numbers lie outside."""


def set_aside(proto: onnx.ModelProto) -> Aside:
    """The float32 weights that lie outside; empty ones stay in their place."""
    found: dict[str, TensorProto] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and external_data_helper.uses_external_data(tensor):
            found[tensor.name] = TensorProto()
            found[tensor.name].CopyFrom(tensor)
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
            tensor.dims[:] = [0]
    return found


def put_back(proto: onnx.ModelProto, aside: Aside, source_folder: Path, file: Path, halve: Callable[..., Any]) -> None:
    """Weights that are float16 by now are halved and go to a file, and back into the model where they are not large;
    those that stayed float32 come into it at once.

    Args:
        source_folder: where names of external data start from.
        file: written anew.

    Raises:
        ModelError: a weight can not be read.
        OSError: the file can not be written.
    """
    with file.open("wb") as stream:
        for tensor in proto.graph.initializer:
            if tensor.name not in aside:
                continue
            was = aside[tensor.name]
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(was)
                load_tensor(tensor, source_folder)
                continue
            tensor.dims[:] = was.dims
            offset = stream.tell()
            length = stream.write(halve(read_tensor(was, source_folder)).tobytes())
            point_outside(tensor, file.name, offset, length)
    n_bytes = file.stat().st_size
    if n_bytes < LARGE and not outgrows_protobuf(proto, n_bytes):
        load_tensors(proto, file.parent)
