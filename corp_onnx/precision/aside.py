"""Weights outside of a model, kept away from ONNX Runtime's converters: these see nothing of them, or a row of zeros.

A converter looks at a weight's type and at who reads it, and a quantiser at its columns as well. So the numbers go from
file to file, one weight at a time, in place of through a message that keeps the room of both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper

from corp_onnx.graph.external import load_tensor, point_outside
from corp_onnx.graph.model import outgrows_protobuf

LARGE = 2**30
"""Bytes of new weights that stay in a file: a message would hold them several times on its way to one."""

Aside = Mapping[str, TensorProto]
"""Weights by name, whose numbers lie outside."""


def set_aside(proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Aside:
    """The float32 weights that lie outside; empty ones stay in their place.

    Args:
        shapes: of zeros that stay in the place of those that are named; others are left as they are then.
    """
    found: dict[str, TensorProto] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and external_data_helper.uses_external_data(tensor):
            if shapes is not None and tensor.name not in shapes:
                continue
            found[tensor.name] = TensorProto()
            found[tensor.name].CopyFrom(tensor)
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
            tensor.dims[:] = [0] if shapes is None else shapes[tensor.name]
            if all(tensor.dims):
                tensor.raw_data = np.zeros(tuple(tensor.dims), np.float32).tobytes()
    return found


def restore(tensor: TensorProto, aside: Aside, source_folder: Path | None) -> bool:
    """Whether a tensor of the model is a weight that was set aside and stayed float32; it has its numbers again then.

    Args:
        source_folder: where names of external data start from; None leaves the numbers there.

    Raises:
        ModelError: they can not be read.
    """
    if tensor.name not in aside or tensor.data_type != TensorProto.FLOAT:
        return False
    tensor.CopyFrom(aside[tensor.name])
    if source_folder is not None:
        load_tensor(tensor, source_folder)
    return True


def put_back(
    proto: onnx.ModelProto, aside: Aside, source_folder: Path | None, file: Path,
    convert: Callable[[TensorProto], np.ndarray | None], later: Collection[str] = (),
) -> None:  # fmt: skip
    """Weights that were converted go to a file, and back into the model where they are not large; those that stayed
    float32 come into it at once.

    Args:
        source_folder: where names of external data start from; None leaves what stayed float32 there, and nothing else
            outside, so that they can go on from there.
        file: written anew.
        convert: gives the numbers of a tensor that stands for a weight; None of any other.
        later: weights that stay aside where they stayed float32.

    Raises:
        ModelError: a weight can not be read.
        OSError: the file can not be written.
    """
    converted: list[TensorProto] = []
    with file.open("wb") as stream:
        for tensor in proto.graph.initializer:
            if tensor.name in later and tensor.data_type == TensorProto.FLOAT:
                continue
            if restore(tensor, aside, source_folder):
                continue
            numbers = convert(tensor)
            if numbers is not None:
                tensor.dims[:] = numbers.shape
                point_outside(tensor, file.name, stream.tell(), stream.write(numbers.tobytes()))
                converted.append(tensor)
    n_bytes = file.stat().st_size
    if source_folder is None or (n_bytes < LARGE and not outgrows_protobuf(proto, n_bytes)):
        for tensor in converted:
            load_tensor(tensor, file.parent)
