"""Sums that a model makes of its own inner tensors: nodes behind them, and accumulators that stay where it runs.

Enters a model and what a `SumPen` wrote; leaves a `Reduced` session. A run adds a batch: what it sums in float32 is
added to float64 in the device's memory, where an accumulator is input and output at once, and nothing leaves the device
but a few shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.run.device import DEVICES, explain_call
from corp_onnx.run.feeds import bind_feeds, fixed_batch, split_feeds
from corp_onnx.run.runtime import import_runtime
from corp_onnx.run.sessions import Session
from corp_onnx.run.tapped import Product, open_cut, product_nodes

PREFIX = "corp_onnx.sum/"
"""In front of every name that is added, so that it can not meet a name of the graph."""

SUMS_IN_AXES = 13
"""The operator set in which the axes of a ReduceSum became an input."""


@dataclass(slots=True, eq=False)
class SumPen:
    """Nodes that are added behind the tensors of a graph; shapes are given, or 0 and -1 as Reshape has them.

    Attributes:
        masks: by the name of an input, [n, 1]: (its length at a full batch, whether images are its last axis).
        pivots: length of every input that is taken away from a tensor.
        carried: shape of every accumulator.
        shaped: tensors whose shapes are given, by name.
    """

    graph: Graph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    masks: dict[str, tuple[int, bool]] = field(default_factory=dict)
    pivots: dict[str, int] = field(default_factory=dict)
    carried: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shaped: dict[str, str] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    _cast: dict[str, str] = field(default_factory=dict)
    _n_images: str = ""

    def put(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node; the name of its output."""
        name = f"{PREFIX}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A stored tensor."""
        return self.put("Constant", value=numpy_helper.from_array(np.asarray(values, dtype)))

    def read(self, tensor: str) -> str:
        """A tensor of the graph, or of `products`, in float32."""
        if self.graph.types.get(tensor) == TensorProto.FLOAT and tensor not in self.products:
            return tensor
        if tensor not in self._cast:
            self._cast[tensor] = self.put("Cast", tensor, to=TensorProto.FLOAT)
        return self._cast[tensor]

    def count_images(self) -> str:
        """How many images a batch has, [1], out of the shape of an input: such numbers never go to a device."""
        if not self._n_images and self.graph.fixed_batch:
            self._n_images = self.constant([self.graph.n_images])
        elif not self._n_images:
            self._n_images = self.put("Gather", self.put("Shape", self.graph.inputs[0]), self.constant([0]), axis=0)
        return self._n_images

    def reshape(self, x: str, *shape: int | str) -> str:
        """To whole numbers, and names of tensors [1] among them."""
        if all(isinstance(size, int) for size in shape):
            return self.put("Reshape", x, self.constant(shape))
        sizes = [size if isinstance(size, str) else self.constant([size]) for size in shape]
        return self.put("Reshape", x, self.put("Concat", *sizes, axis=0))

    def total(self, x: str, axis: int, *, keep: bool = False) -> str:
        """The sum along an axis."""
        if self.graph.model.opset < SUMS_IN_AXES:
            return self.put("ReduceSum", x, axes=[axis], keepdims=int(keep))
        return self.put("ReduceSum", x, self.constant([axis]), keepdims=int(keep))

    def mask(self, x: str, length: int, *, images_last: bool = False, rank: int = 2) -> str:
        """The tensor with zeros in what fills up a fixed batch, along its first axis; itself where none is."""
        if not self.graph.fixed_batch or self.graph.n_images == 1:
            return x
        name = f"{PREFIX}mask/{length}/{int(images_last)}"
        self.masks[name] = (length, images_last)
        return self.put("Mul", x, name if rank == 2 else self.reshape(name, length, *[1] * (rank - 1)))

    def about(self, x: str, name: str, length: int) -> str:
        """The tensor about a pivot of its own."""
        self.pivots[name] = length
        return self.put("Sub", x, PREFIX + name)

    def add_up(self, name: str, x: str, shape: tuple[int, ...]) -> None:
        """Add a tensor to an accumulator, in float64. Nothing else may read that: the sum is written over it."""
        self.carried[name] = shape
        double = self.put("Cast", x, to=TensorProto.DOUBLE)
        self.nodes.append(helper.make_node("Add", [PREFIX + name, double], [PREFIX + name + "/next"]))

    def say_shape(self, name: str, x: str) -> None:
        """Give the shape of a tensor."""
        self.shaped[name] = self.put("Shape", x)


class Reduced:
    """A session with accumulators."""

    def __init__(self, session: Session, pen: SumPen) -> None:
        self.session = session
        self._pen = pen
        self._device = DEVICES.get(session.provider, "cpu")
        self._kept = {name: self._hold(np.zeros(shape)) for name, shape in pen.carried.items()}
        self._fed = {name: self._hold(np.zeros(n, np.float32)) for name, n in pen.pivots.items()}
        self._masks: dict[tuple[str, int], Any] = {}
        self._binding = explain_call(session, self._bind)

    def stream(self, images: Images, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """All images as the model takes them, as `Session.stream`."""
        own = [value for value in self.session.inputs if not value.name.startswith(PREFIX)]
        for batch in images.batches(fixed_batch(own) or batch_size):
            yield from split_feeds(bind_feeds(batch, own), fixed_batch(own))

    def run(self, feeds: Mapping[str, np.ndarray], n_real: int) -> dict[str, tuple[int, ...]]:
        """Add a batch.

        Returns:
            the shapes that were asked for, by name.

        Raises:
            ModelError: ONNX Runtime failed on it.
        """
        return explain_call(self.session, lambda: self._run(feeds, n_real))

    def read(self, name: str) -> np.ndarray:
        """An accumulator, on the host."""
        array: np.ndarray = self._kept[name].numpy()
        return array.copy() if self._device == "cpu" else array  # there it is the accumulator itself

    def write(self, name: str, array: np.ndarray) -> None:
        """Set an accumulator."""
        self._kept[name].update_inplace(np.ascontiguousarray(array, np.float64))

    def write_pivot(self, name: str, array: np.ndarray) -> None:
        """Set what is taken away from a tensor."""
        self._fed[name].update_inplace(np.ascontiguousarray(array, np.float32))

    def clear(self) -> None:
        """Every accumulator to zero."""
        for name, shape in self._pen.carried.items():
            self.write(name, np.zeros(shape))

    def _bind(self) -> Any:
        """All that stays the same from run to run; every accumulator is bound twice."""
        binding = self.session.native.io_binding()
        for name, value in self._fed.items():
            binding.bind_ortvalue_input(PREFIX + name, value)
        for name, value in self._kept.items():
            binding.bind_ortvalue_input(PREFIX + name, value)
            binding.bind_ortvalue_output(PREFIX + name + "/next", value)
        for output in self._pen.shaped.values():
            binding.bind_output(output, "cpu")
        return binding

    def _run(self, feeds: Mapping[str, np.ndarray], n_real: int) -> dict[str, tuple[int, ...]]:
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._pen.masks:
            self._binding.bind_ortvalue_input(name, self._find_mask(name, n_real))
        self.session.native.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        shapes = self._binding.get_outputs()[len(self._kept) :]  # in the order in which they were bound
        return {name: tuple(int(n) for n in s.numpy()) for name, s in zip(self._pen.shaped, shapes, strict=True)}

    def _find_mask(self, name: str, n_real: int) -> Any:
        if (name, n_real) not in self._masks:
            length, images_last = self._pen.masks[name]
            self._masks[name, n_real] = self._hold(make_mask(length, self._pen.graph.n_images, n_real, images_last))
        return self._masks[name, n_real]

    def _hold(self, array: np.ndarray) -> Any:
        return import_runtime().OrtValue.ortvalue_from_numpy(array, self._device, 0)


def make_mask(length: int, n_images: int, n_real: int, images_last: bool) -> np.ndarray:
    """Ones and zeros [length, 1]: rows of images that are real, which come first along the axis of images."""
    rows = np.zeros((length, 1), np.float32)
    if images_last:
        rows.reshape(-1, n_images)[:, :n_real] = 1
    else:
        rows[: length * n_real // n_images] = 1
    return rows


def open_reduced(pen: SumPen, *, provider: str = "cpu") -> Reduced:
    """A session of the graph of a pen with its nodes, and nothing that those do not need.

    Raises:
        ModelError: ONNX Runtime can not load it.
    """
    extra = [node for product in pen.products.values() for node in product_nodes(product)]
    float32, float64 = TensorProto.FLOAT, TensorProto.DOUBLE
    inputs = [helper.make_tensor_value_info(name, float32, [n, 1]) for name, (n, _) in pen.masks.items()]
    inputs += [helper.make_tensor_value_info(PREFIX + name, float32, [n]) for name, n in pen.pivots.items()]
    inputs += [helper.make_tensor_value_info(PREFIX + name, float64, s) for name, s in pen.carried.items()]
    outputs = [
        helper.make_tensor_value_info(PREFIX + name + "/next", float64, shape) for name, shape in pen.carried.items()
    ]
    outputs += [onnx.ValueInfoProto(name=name) for name in pen.shaped.values()]
    model = pen.graph.model
    session = open_cut(model, [*extra, *pen.nodes], outputs, inputs=inputs, provider=provider)
    return Reduced(session, pen)
