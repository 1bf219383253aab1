"""Ways to spoil the bytes of a file, with no regard for what they mean; and names that are no UTF-8, byte by byte."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from fuzz.draw import Rng, pick, pick_inner, pick_node, pick_weight, replace_reads

MARKER = "MARKED_TO_BE_SPOILT"
"""Stands in a message until it is bytes: protobuf itself writes no name that is not UTF-8."""


def truncate(data: bytes, rng: Rng) -> bytes:
    """The begin of a file, as a broken download leaves it."""
    return data[: int(rng.integers(len(data)))]


def cut_begin(data: bytes, rng: Rng) -> bytes:
    """The end of a file."""
    return data[int(rng.integers(1, len(data))) :]


def flip_bit(data: bytes, rng: Rng) -> bytes:
    """One bit."""
    changed = bytearray(data)
    changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_head(data: bytes, rng: Rng) -> bytes:
    """Some bits of the first bytes, where structure is dense."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        changed[int(rng.integers(min(len(data), 2_000)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_tail(data: bytes, rng: Rng) -> bytes:
    """Some bits of the last bytes: inputs, outputs, operator sets."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        changed[-1 - int(rng.integers(min(len(data), 400)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def insert_bytes(data: bytes, rng: Rng) -> bytes:
    """Bytes that do not belong there."""
    at = int(rng.integers(len(data)))
    return data[:at] + rng.bytes(int(rng.integers(1, 32))) + data[at:]


def delete_bytes(data: bytes, rng: Rng) -> bytes:
    """Bytes that are missing."""
    at = int(rng.integers(len(data) - 1))
    return data[:at] + data[at + int(rng.integers(1, 32)) :]


def swap_spans(data: bytes, rng: Rng) -> bytes:
    """Two pieces of a file change places."""
    first, second, third = sorted(int(i) for i in rng.choice(len(data), 3, replace=False))
    swapped = data[:first] + data[second:third] + data[first:second] + data[third:]
    return swapped if swapped != data else data[third:] + data[:third]


def zero_span(data: bytes, rng: Rng) -> bytes:
    """A hole, as a sparse copy leaves it."""
    at = int(rng.integers(len(data) - 1))
    size = int(rng.integers(1, 4_096))
    zeroed = data[:at] + bytes(len(data[at : at + size])) + data[at + size :]
    return zeroed if zeroed != data else data[:-1]


def append_bytes(data: bytes, rng: Rng) -> bytes:
    """Something behind the end."""
    return data + rng.bytes(int(rng.integers(1, 100)))


def twice(data: bytes, rng: Rng) -> bytes:
    """A file behind itself: protobuf merges the two, so that every node is there twice."""
    del rng
    return data + data


def as_text(data: bytes, rng: Rng) -> bytes:
    """A file that went through a conversion of line ends, or that is a page with an error."""
    page = b"<!DOCTYPE html><html><body>404: not found</body></html>"
    return pick(
        rng, [data.replace(b"\n", b"\r\n") + b"\r\n", page, b"version https://git-lfs.github.com/spec/v1\n", b""]
    )


def bad_tensor_name(data: bytes, rng: Rng) -> bytes:
    """A tensor whose name is no UTF-8."""

    def mark(model: onnx.ModelProto) -> None:
        old = pick_inner(model, rng)
        for node in model.graph.node:
            node.output[:] = [MARKER if name == old else name for name in node.output]
        replace_reads(model.graph.node, old, MARKER)

    return _spoil_marked(data, rng, mark)


def bad_node_name(data: bytes, rng: Rng) -> bytes:
    """A node whose name is no UTF-8."""
    return _spoil_marked(data, rng, lambda model: setattr(pick_node(model, rng), "name", MARKER))


def bad_operator_name(data: bytes, rng: Rng) -> bytes:
    """An operator whose name is no UTF-8."""
    return _spoil_marked(data, rng, lambda model: setattr(pick_node(model, rng), "op_type", MARKER))


def bad_weight_name(data: bytes, rng: Rng) -> bytes:
    """A stored tensor whose name is no UTF-8."""

    def mark(model: onnx.ModelProto) -> None:
        tensor = pick_weight(model, rng)
        replace_reads(model.graph.node, tensor.name, MARKER)
        tensor.name = MARKER

    return _spoil_marked(data, rng, mark)


def bad_metadata(data: bytes, rng: Rng) -> bytes:
    """A metadata entry that is no UTF-8."""
    keys = ("notes", "corp_onnx.preprocessing", "corp_onnx.labels", "corp_onnx.prune", MARKER)
    return _spoil_marked(data, rng, lambda model: model.metadata_props.add(key=pick(rng, keys), value=MARKER))


def bad_producer(data: bytes, rng: Rng) -> bytes:
    """A producer whose name is no UTF-8."""
    return _spoil_marked(data, rng, lambda model: setattr(model, "producer_name", MARKER))


def bad_dim_name(data: bytes, rng: Rng) -> bytes:
    """A dynamic dimension whose name is no UTF-8."""

    def mark(model: onnx.ModelProto) -> None:
        pick(rng, model.graph.input).type.tensor_type.shape.dim[0].dim_param = MARKER

    return _spoil_marked(data, rng, mark)


def bad_location(data: bytes, rng: Rng) -> bytes:
    """External data in a file whose name is no UTF-8."""

    def mark(model: onnx.ModelProto) -> None:
        tensor = pick_weight(model, rng)
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=MARKER)

    return _spoil_marked(data, rng, mark)


def _spoil_marked(data: bytes, rng: Rng, mark: Callable[[onnx.ModelProto], object]) -> bytes:
    model = onnx.load_from_string(data)
    mark(model)
    endings = (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\x80", b"\xf5\x80\x80\x80")
    bad = pick(rng, endings)
    return model.SerializeToString().replace(MARKER.encode(), b"x" * (len(MARKER) - len(bad)) + bad)


SPOILERS = (
    truncate, cut_begin, flip_bit, flip_head, flip_tail, insert_bytes, delete_bytes, swap_spans, zero_span,
    append_bytes, twice, as_text, bad_tensor_name, bad_node_name, bad_operator_name, bad_weight_name, bad_metadata,
    bad_producer, bad_dim_name, bad_location,
)  # fmt: skip
