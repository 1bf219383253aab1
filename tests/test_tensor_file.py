"""safetensors files: what is written is read, mapped; what is spoilt is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from corp_onnx.errors import InputError, OutputError
from corp_onnx.tensor_file import ALIGNED, NAMES, read_tensors, write_tensors

safetensors = pytest.importorskip("safetensors.numpy")

ARRAYS = {f"a/{dtype}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in NAMES} | {
    "scalar": np.array(1.5),
    "empty": np.zeros((0, 4)),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def test_arrays_come_back_mapped(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", ARRAYS, {"who": "we"})
    found = read_tensors(tmp_path / "a")
    assert found.metadata == {"who": "we"}
    assert {name: (a.dtype, a.tolist()) for name, a in found.arrays.items()} == {
        name: (a.dtype, a.tolist()) for name, a in ARRAYS.items()
    }
    for array in found.arrays.values():
        assert array.flags.aligned
        assert not array.flags.writeable or not array.size
    (length,) = struct.unpack("<Q", (tmp_path / "a").read_bytes()[:8])
    assert (length + 8) % ALIGNED == 0


def test_the_library_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", ARRAYS, {"who": "we"})
    theirs = safetensors.load_file(tmp_path / "a")
    assert {name: a.tolist() for name, a in theirs.items()} == {name: a.tolist() for name, a in ARRAYS.items()}
    safetensors.save_file({name: a.copy(order="C") for name, a in ARRAYS.items()}, tmp_path / "b")
    assert {name: a.tolist() for name, a in read_tensors(tmp_path / "b").arrays.items()} == {
        name: a.tolist() for name, a in ARRAYS.items()
    }


def header(about: object) -> bytes:
    text = json.dumps(about).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 9) + b"[1, 2, 3]",
        struct.pack("<Q", 4) + b"nope",
        header({"a": {"dtype": "F64", "shape": [4], "data_offsets": [0, 32]}}) + bytes(31),
        header({"a": {"dtype": "F64", "shape": [4], "data_offsets": [0, 8]}}) + bytes(32),
        header({"a": {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}}) + bytes(32),
        header({"a": {"dtype": "F64", "shape": [1], "data_offsets": [-8, 0]}}) + bytes(32),
        header({"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 8]}}) + bytes(32),
        header({"a": 3}) + bytes(32),
    ],
)
def test_a_spoilt_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="is no safetensors file that can be read"):
        read_tensors(tmp_path / "a")


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_tensors(tmp_path / "absent")
    with pytest.raises(OutputError, match=r"b.bin: could not be written \(No such file"):
        write_tensors(tmp_path / "absent" / "a", {}, {}, Path("b.bin"))
