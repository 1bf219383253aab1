"""Ways to spoil external data: references that leave the folder, miss the file, or land on files of ours.

A spoiler also writes the file that it refers to, beside the model.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from onnx import TensorProto

from fuzz.draw import Rng, pick, stored_array

Model = onnx.ModelProto

DATA = "m.onnx.data"
MODEL = "m.onnx"


def store_outside(model: Model, folder: Path, name: str = DATA) -> list[TensorProto]:
    """Move every tensor of the file that has bytes into one file beside it."""
    moved: list[TensorProto] = []
    with (folder / name).open("wb") as stream:
        for tensor in model.graph.initializer:
            if not tensor.raw_data:
                continue
            refer(tensor, name, stream.tell(), len(tensor.raw_data))
            stream.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            moved.append(tensor)
    return moved


def refer(tensor: TensorProto, location: str, offset: object, length: object) -> None:
    """Let a tensor say where its bytes are."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _entry(tensor: TensorProto, key: str) -> onnx.StringStringEntryProto:
    return next(entry for entry in tensor.external_data if entry.key == key)


def whole_outside(model: Model, rng: Rng, folder: Path) -> None:
    """Legal: weights in a file beside."""
    del rng
    store_outside(model, folder)


def one_outside(model: Model, rng: Rng, folder: Path) -> None:
    """Legal: one weight in a file beside, without offset and length."""
    tensor = pick(rng, [t for t in model.graph.initializer if t.raw_data])
    (folder / DATA).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=DATA)


def linked_outside(model: Model, rng: Rng, folder: Path) -> None:
    """Legal: the layout of the Hugging Face cache, where the data is a link into blobs/."""
    store_outside(model, folder)
    (folder / "blobs").mkdir()
    (folder / DATA).rename(folder / "blobs" / "b10b")
    if int(rng.integers(2)):
        (folder / DATA).symlink_to(Path("blobs") / "b10b")
    else:
        (folder / DATA).hardlink_to(folder / "blobs" / "b10b")


def missing_outside(model: Model, rng: Rng, folder: Path) -> None:
    """The file beside is not there."""
    del rng
    store_outside(model, folder)
    (folder / DATA).unlink()


def cut_outside(model: Model, rng: Rng, folder: Path) -> None:
    """The file beside was cut."""
    store_outside(model, folder)
    size = (folder / DATA).stat().st_size
    os.truncate(folder / DATA, int(rng.integers(size)))


def odd_location(model: Model, rng: Rng, folder: Path) -> None:
    """A name that leaves the folder, is no file, or is a file of ours."""
    moved = store_outside(model, folder)
    (folder / "somewhere").mkdir()
    (folder / "linked").symlink_to(folder / DATA)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    names = (
        "", ".", "..", "/", "/etc/passwd", "../../../../etc/passwd", "somewhere", "linked", "loop", "pipe", "/dev/zero",
        "/dev/stdin", "/proc/self/mem", MODEL, f"./{MODEL}", f"somewhere/../{MODEL}", f"{DATA}/", f"./{DATA}",
        "model.onnx", "./model.onnx", "model.py", "./model.py", "config.pbtxt", "../config.pbtxt", "labels.txt",
        "out/p.onnx", "p.onnx.data", "a\x00b", "\x1b[31m", "x" * 300, "%00", "C:\\x", "~", str(folder / DATA),
    )  # fmt: skip
    name = pick(rng, names)
    for tensor in moved if int(rng.integers(2)) else moved[:1]:
        _entry(tensor, "location").value = name


def real_file_of_our_name(model: Model, rng: Rng, folder: Path) -> None:
    """Legal, but its name is one that the package writes under."""
    plain = pick(rng, ["model.onnx", "model.py", "config.pbtxt", "p.onnx", "p.onnx.data", "labels.txt"])
    moved = store_outside(model, folder, plain)
    for tensor in moved:
        _entry(tensor, "location").value = pick(rng, [plain, f"./{plain}", f".//{plain}"])


def odd_offset(model: Model, rng: Rng, folder: Path) -> None:
    """An offset that is no place of the file."""
    moved = store_outside(model, folder)
    values = ("-1", "99999999", str(2**63), str(2**70), "word", "", "1.5", "0x10", "1e3", "NaN", " 0", "\u0661", "3")
    _entry(pick(rng, moved), "offset").value = pick(rng, values)


def odd_length(model: Model, rng: Rng, folder: Path) -> None:
    """A length that is not that of the tensor."""
    moved = store_outside(model, folder)
    values = ("-1", "0", "1", "99999999", str(2**63), str(2**70), "word", "", "1.5", "NaN")
    _entry(pick(rng, moved), "length").value = pick(rng, values)


def repeat_key(model: Model, rng: Rng, folder: Path) -> None:
    """Two names of one file."""
    moved = store_outside(model, folder)
    pick(rng, moved).external_data.add(key="location", value="other.data")


def unknown_key(model: Model, rng: Rng, folder: Path) -> None:
    """A key that nobody knows, or a checksum that does not hold."""
    moved = store_outside(model, folder)
    pick(rng, moved).external_data.add(key=pick(rng, ["checksum", "unheard", "", "basepath"]), value="0" * 40)


def no_location(model: Model, rng: Rng, folder: Path) -> None:
    """Data outside, nowhere."""
    moved = store_outside(model, folder)
    del pick(rng, moved).external_data[:]


def inside_and_outside(model: Model, rng: Rng, folder: Path) -> None:
    """Bytes in the file and a reference to others."""
    moved = store_outside(model, folder)
    pick(rng, moved).raw_data = b"\x00" * 16


def constant_outside(model: Model, rng: Rng, folder: Path) -> None:
    """Legal for ONNX: a Constant node whose bytes are in a file beside."""
    tensor = pick(rng, [t for t in model.graph.initializer if t.raw_data])
    stored = stored_array(tensor)
    node = onnx.helper.make_node("Constant", [], [tensor.name], value=onnx.numpy_helper.from_array(stored))
    value = node.attribute[0].t
    (folder / DATA).write_bytes(value.raw_data)
    refer(value, DATA, 0, len(value.raw_data))
    value.ClearField("raw_data")
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, node)


def overlapping(model: Model, rng: Rng, folder: Path) -> None:
    """Legal for ONNX: two tensors share bytes."""
    moved = store_outside(model, folder)
    _entry(pick(rng, moved[1:]), "offset").value = "0"


SPOILERS = (
    whole_outside, one_outside, linked_outside, missing_outside, cut_outside, odd_location, real_file_of_our_name,
    odd_offset, odd_length, repeat_key, unknown_key, no_location, inside_and_outside, constant_outside, overlapping,
)  # fmt: skip
