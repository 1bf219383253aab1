"""Ways to spoil stored tensors: their numbers, their types and dimensions, where their bytes are."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from fuzz.draw import Rng, pick, pick_weight, store_array, stored_array

Model = onnx.ModelProto


def drop_initializer(model: Model, rng: Rng) -> None:
    """A stored tensor is missing."""
    model.graph.initializer.remove(pick_weight(model, rng, floats=False))


def repeat_initializer(model: Model, rng: Rng) -> None:
    """Two stored tensors of one name."""
    model.graph.initializer.append(pick_weight(model, rng, floats=False))


def rename_initializer(model: Model, rng: Rng) -> None:
    """A stored tensor that nobody reads, and a read that nobody serves."""
    pick_weight(model, rng, floats=False).name += "_renamed"


def name_no_initializer(model: Model, rng: Rng) -> None:
    """A stored tensor without a name."""
    pick_weight(model, rng, floats=False).name = ""


def retype_initializer(model: Model, rng: Rng) -> None:
    """The bytes of one type under the name of another."""
    tensor = pick_weight(model, rng)
    kinds = [kind for kind in TensorProto.DataType.values() if kind not in (tensor.data_type, TensorProto.STRING)]
    tensor.data_type = pick(rng, kinds)


def unknown_type(model: Model, rng: Rng) -> None:
    """A type that no version of ONNX has."""
    pick_weight(model, rng).data_type = pick(rng, [99, 1000, 2**31 - 1, -1])


def cast_initializer(model: Model, rng: Rng) -> None:
    """One weight in another precision than the rest."""
    tensor = pick_weight(model, rng)
    kinds = [k for k in (np.float16, np.float64, np.int32) if k != stored_array(tensor).dtype]
    store_array(tensor, stored_array(tensor).astype(pick(rng, kinds)))


def string_initializer(model: Model, rng: Rng) -> None:
    """Words where numbers should be."""
    tensor = pick_weight(model, rng)
    words = np.full(tuple(tensor.dims), "word", dtype=object)
    store_array(tensor, words)


def change_dims(model: Model, rng: Rng) -> None:
    """One dimension does not fit the bytes."""
    tensor = pick_weight(model, rng, rank=1)
    tensor.dims[int(rng.integers(len(tensor.dims)))] += int(rng.integers(1, 100))


def swap_dims(model: Model, rng: Rng) -> None:
    """As many numbers, in another shape."""
    tensors = [t for t in model.graph.initializer if len(t.dims) > 1 and t.dims[0] != t.dims[-1]]
    tensor = pick(rng, tensors)
    tensor.dims[0], tensor.dims[-1] = tensor.dims[-1], tensor.dims[0]


def negative_dims(model: Model, rng: Rng) -> None:
    """A dimension below zero."""
    pick_weight(model, rng, rank=1).dims[0] = pick(rng, [-1, -(2**31), -(2**63)])


def huge_dims(model: Model, rng: Rng) -> None:
    """More numbers than there is memory, or than 64 bits count."""
    tensor = pick_weight(model, rng, rank=1)
    tensor.dims[0] = pick(rng, [2**31, 2**40, 2**62])
    tensor.dims.extend([2**40] * int(rng.integers(0, 3)))


def zero_size(model: Model, rng: Rng) -> None:
    """A weight without numbers."""
    tensor = pick_weight(model, rng, rank=1)
    shape = list(tensor.dims)
    shape[int(rng.integers(len(shape)))] = 0
    store_array(tensor, np.zeros(shape, np.float32))


def many_axes(model: Model, rng: Rng) -> None:
    """A shape of a hundred axes."""
    tensor = pick_weight(model, rng)
    tensor.dims.extend([1] * int(rng.integers(60, 200)))


def scalar_weight(model: Model, rng: Rng) -> None:
    """One number in place of a matrix."""
    store_array(pick_weight(model, rng, rank=1), np.array(0.5, np.float32))


def stretched_weight(model: Model, rng: Rng) -> None:
    """A weight with an axis in front: shapes broadcast to something else."""
    tensor = pick_weight(model, rng, rank=1)
    store_array(tensor, np.stack([stored_array(tensor)] * int(rng.integers(1, 3))))


def truncate_raw(model: Model, rng: Rng) -> None:
    """Fewer bytes than the shape wants."""
    tensor = _pick_raw(model, rng)
    tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data)))]


def extend_raw(model: Model, rng: Rng) -> None:
    """More bytes than the shape wants."""
    tensor = _pick_raw(model, rng)
    tensor.raw_data += rng.bytes(int(rng.integers(1, 64)))


def flip_raw(model: Model, rng: Rng) -> None:
    """Some bits of a weight; often legal numbers, sometimes NaN."""
    tensor = _pick_raw(model, rng)
    data = bytearray(tensor.raw_data)
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    tensor.raw_data = bytes(data)


def _pick_raw(model: Model, rng: Rng) -> TensorProto:
    return pick(rng, [t for t in model.graph.initializer if t.raw_data])


def store_twice(model: Model, rng: Rng) -> None:
    """Bytes and typed numbers in one tensor."""
    _pick_raw(model, rng).float_data.extend([1.0, 2.0, 3.0])


def store_typed(model: Model, rng: Rng) -> None:
    """Legal: numbers in a typed field, as old exporters write them."""
    tensor = pick(rng, [t for t in model.graph.initializer if t.raw_data and t.data_type == TensorProto.FLOAT])
    array = stored_array(tensor)
    tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, array.shape, array.ravel().tolist()))


def store_as_constant(model: Model, rng: Rng) -> None:
    """Legal: a weight in a Constant node."""
    tensor = _pick_raw(model, rng)
    node = helper.make_node("Constant", [], [tensor.name], value=tensor)
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, node)


def segment(model: Model, rng: Rng) -> None:
    """A tensor that says it is a piece of one; nothing writes those any more."""
    tensor = pick_weight(model, rng)
    tensor.segment.begin, tensor.segment.end = 0, int(rng.integers(1, 9))


def nan_weight(model: Model, rng: Rng) -> None:
    """One NaN."""
    _set_number(model, rng, np.nan)


def infinite_weight(model: Model, rng: Rng) -> None:
    """One infinity."""
    _set_number(model, rng, np.inf)


def _set_number(model: Model, rng: Rng, number: float) -> None:
    tensor = pick_weight(model, rng)
    array = stored_array(tensor)
    array.ravel()[int(rng.integers(array.size))] = number
    store_array(tensor, array)


def huge_weights(model: Model, rng: Rng) -> None:
    """Numbers whose products are infinite."""
    tensor = pick_weight(model, rng)
    store_array(tensor, np.full(tuple(tensor.dims), 3e38, np.float32))


def tiny_weights(model: Model, rng: Rng) -> None:
    """Subnormal numbers."""
    tensor = pick_weight(model, rng)
    store_array(tensor, np.full(tuple(tensor.dims), 1e-42, np.float32))


def zero_weights(model: Model, rng: Rng) -> None:
    """Legal: a weight of zeros, so that moments have no rank."""
    tensor = pick_weight(model, rng)
    store_array(tensor, np.zeros(tuple(tensor.dims), np.float32))


def sparse_initializer(model: Model, rng: Rng) -> None:
    """Legal: a weight stored sparse."""
    _make_sparse(model, rng, lambda array: np.flatnonzero(array))


def bad_sparse_initializer(model: Model, rng: Rng) -> None:
    """A sparse weight with indices outside of it."""
    _make_sparse(model, rng, lambda array: np.flatnonzero(array) + int(rng.integers(1, 2**40)))


def _make_sparse(model: Model, rng: Rng, index: object) -> None:
    tensor = pick_weight(model, rng, rank=2)
    array = stored_array(tensor)
    array.ravel()[: max(array.size // 2, 1)] = 0
    array.ravel()[-1] = 1
    values = numpy_helper.from_array(array[array != 0], tensor.name)
    places = numpy_helper.from_array(index(array), f"{tensor.name}_places")  # type: ignore[operator]
    sparse = SparseTensorProto(values=values, indices=places, dims=list(tensor.dims))
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(sparse)


SPOILERS = (
    drop_initializer, repeat_initializer, rename_initializer, name_no_initializer, retype_initializer, unknown_type,
    cast_initializer, string_initializer, change_dims, swap_dims, negative_dims, huge_dims, zero_size, many_axes,
    scalar_weight, stretched_weight, truncate_raw, extend_raw, flip_raw, store_twice, store_typed, store_as_constant,
    segment, nan_weight, infinite_weight, huge_weights, tiny_weights, zero_weights, sparse_initializer,
    bad_sparse_initializer,
)  # fmt: skip
