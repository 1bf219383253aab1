"""Arrays by name in a safetensors file: written one at a time, mapped when they are read, nothing in it is executed.

    8 bytes      length of the header, little-endian
    header       JSON: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets": [begin, end]}}
    the rest     numbers, one array behind the other

The format is Hugging Face's (github.com/huggingface/safetensors), whose library holds all arrays in memory twice to
write them and copies what it reads; moments of a large model are gigabytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from corp_onnx.errors import InputError, OutputError

TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
NAMES = {np.dtype(spelled): name for name, spelled in TYPES.items()}

MAX_HEADER = 100 << 20
"""Bytes; the library refuses longer ones."""

ALIGNED = 64
"""Bytes at whose multiples the numbers begin: any array of them can be mapped."""

METADATA = "__metadata__"


@dataclass(frozen=True, slots=True, eq=False)
class TensorFile:
    """What a file holds.

    Attributes:
        arrays: by name, mapped: what is read of them is read from the file, which must stay.
        metadata: texts about them.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], destination: Path | None = None
) -> None:
    """Write arrays and texts about them.

    Args:
        destination: what an error calls the file; the path.

    Raises:
        OutputError: the disk is full or the folder not writable.
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    # so that none is out of step, and that it is one file whoever was done first
    ordered = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    end = 0
    for name, array in ordered.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNED)
    try:
        with path.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for array in ordered.values():
                stream.write(memoryview(cast(Any, np.ascontiguousarray(array).reshape(-1).view(np.uint8))))
    except OSError as error:
        raise OutputError(f"{destination or path}: could not be written ({error.strerror or error}).") from error


def read_tensors(path: Path) -> TensorFile:
    """The arrays of a file, mapped, and the texts about them.

    Raises:
        InputError: it is missing, no such file, or shorter than it says.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"its header would be {length} bytes long")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table")
        metadata = header.pop(METADATA, {})
        stored = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)[8 + length :]
        arrays = {str(name): _find_array(stored, about) for name, about in header.items()}
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: is no safetensors file that can be read ({reason.rstrip('.')}).") from error
    return TensorFile(arrays, {str(key): str(value) for key, value in metadata.items()})


def _find_array(stored: np.ndarray, about: Any) -> np.ndarray:
    dtype, shape = np.dtype(TYPES[about["dtype"]]), tuple(int(n) for n in about["shape"])
    begin, end = (int(n) for n in about["data_offsets"])
    if min(shape, default=0) < 0 or begin < 0 or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError("an array is of another size than its shape says")
    if end > len(stored):
        raise ValueError("it ends early")
    return stored[begin:end].view(dtype).reshape(shape)
