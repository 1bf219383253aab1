"""What units ask a run to expose, and how a batch of it is read: rows of tokens, heads of queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from onnx import TensorProto

from corp_onnx.blocks import Operand
from corp_onnx.graph import Graph
from corp_onnx.run.reduced import SumPen
from corp_onnx.run.tapped import Product


@dataclass(slots=True)
class Taps:
    """Tensors to expose, and products that a fused operator hides; filled by `Unit.tap`."""

    tensors: list[str] = field(default_factory=list)
    products: dict[str, Product] = field(default_factory=dict)

    def add_operand(self, operand: Operand) -> None:
        """What exposes an operand's projection: the tensor itself, or a product where a fused operator hides it."""
        linear = operand.linear
        if linear.output is not None:
            self.tensors.append(linear.output)
            return
        bias = linear.bias.name if linear.bias else ""
        self.products[operand.projection] = Product(operand.projection, linear.input, linear.weight.name, bias)


def read_tokens(
    array: np.ndarray, graph: Graph, n_real: int, *, token_major: bool = False
) -> Float[np.ndarray, "tokens n"]:
    """An activation as [tokens, channels], without the rows that fill up a fixed batch.

    The filled-up rows are the last along the axis of images, or whole blocks of it where tokens are folded in.

    Args:
        token_major: whether that axis comes behind the tokens; taken so in any case where the first axis can not be it.
    """
    n_batch = graph.n_images
    if not graph.fixed_batch or n_real == n_batch:
        return array.reshape(-1, array.shape[-1])
    if token_major or (array.ndim == 3 and array.shape[0] % n_batch and array.shape[1] == n_batch):
        return array.reshape(-1, n_batch, array.shape[-1])[:, :n_real].reshape(-1, array.shape[-1])
    return array[: len(array) * n_real // n_batch].reshape(-1, array.shape[-1])


def read_operand(
    arrays: Mapping[str, np.ndarray], graph: Graph, operand: Operand, n_real: int
) -> Float[np.ndarray, "images tokens n_heads d_head"]:
    """Queries, keys or values with their bias and before any scale; a window counts as an image."""
    array = arrays[operand.projection]
    rows = array.reshape(-1, array.shape[-1])
    n_batch = graph.n_images if graph.fixed_batch else n_real
    probed = graph.shapes.get(operand.projection, (graph.n_images, operand.n_tokens, rows.shape[1]))
    n_windows = int(np.prod(probed[:-1])) // (graph.n_images * operand.n_tokens)
    n_tokens = len(rows) // (n_batch * n_windows)
    if operand.token_major:
        images = rows.reshape(n_tokens, -1, rows.shape[1]).swapaxes(0, 1)
    else:
        images = rows.reshape(-1, n_tokens, rows.shape[1])
    heads = _take_channels(images[: len(images) * n_real // n_batch], operand.channel_idx)  # [images, tokens, H, d]
    for added in _own_biases(graph, operand):
        heads = heads + added
    return heads


def write_operand(pen: SumPen, operand: Operand) -> str:
    """`read_operand` as nodes, [images, H, tokens, d]."""
    graph, (n_heads, d_head) = pen.graph, operand.channel_idx.shape
    if operand.linear.output is None:
        bias = operand.linear.bias.name if operand.linear.bias else ""
        weight = operand.linear.weight.name
        pen.products[operand.projection] = Product(operand.projection, operand.linear.input, weight, bias)
        n_columns = graph.dims(weight)[-1]
    else:
        n_columns = graph.dims(operand.projection)[-1]
    probed = graph.shapes.get(operand.projection, (graph.n_images, operand.n_tokens, n_columns))
    n_windows = int(np.prod(probed[:-1])) // (graph.n_images * operand.n_tokens)
    n_images = pen.count_images() if n_windows == 1 else pen.put("Mul", pen.count_images(), pen.constant([n_windows]))
    rows = pen.read(operand.projection)
    if operand.token_major:
        images = pen.put("Transpose", pen.reshape(rows, -1, n_images, n_columns), perm=[1, 0, 2])
    else:
        images = pen.reshape(rows, n_images, -1, n_columns)
    flat = operand.channel_idx.reshape(-1)
    if not np.array_equal(flat, np.arange(n_columns)):
        images = pen.put("Gather", images, pen.constant(flat), axis=2)
    heads = pen.reshape(images, 0, 0, n_heads, d_head)
    for added in _own_biases(graph, operand):
        heads = pen.put("Add", heads, pen.constant(added, np.float32))
    heads = pen.put("Transpose", heads, perm=[0, 2, 1, 3])
    return pen.mask(heads, graph.n_images * n_windows, rank=4)


def _own_biases(graph: Graph, operand: Operand) -> Iterator[Float[np.ndarray, "h d"]]:
    """What is added to queries, keys or values behind the tensor that is exposed."""
    if not operand.linear.output_has_bias and operand.linear.output is not None:
        bias = operand.linear.read_bias(graph)
        if bias is not None:
            yield bias.astype(np.float32)[operand.channel_idx]
    if operand.late_bias is not None:
        yield operand.read_late_bias(graph).astype(np.float32)


def _take_channels(rows: np.ndarray, channel_idx: Int[np.ndarray, "h d"]) -> np.ndarray:
    """Channels by head; a view where they lie side by side, as they mostly do: taking them costs more than a Gram."""
    first = int(channel_idx[0, 0])
    if not np.array_equal(channel_idx.reshape(-1), np.arange(first, first + channel_idx.size)):
        return rows[..., channel_idx]
    return rows[..., first : first + channel_idx.size].reshape(*rows.shape[:-1], *channel_idx.shape)


def write_channels(pen: SumPen, key: str, tensor: str, n_channels: int, *, token_major: bool = False) -> None:
    """Adds up an activation, read as `read_tokens` does, about a pivot for a `GatheredChannels`."""
    dims, n_images = pen.graph.dims(tensor), pen.graph.n_images
    images_last = token_major or (len(dims) == 3 and bool(dims[0] % n_images) and dims[1] == n_images)
    rows = pen.about(pen.reshape(pen.read(tensor), -1, dims[-1]), f"{key}/pivot", n_channels)
    rows = pen.mask(rows, int(np.prod(dims[:-1])), images_last=images_last)
    pen.say_shape(key, rows)
    squares = pen.put("MatMul", pen.put("Transpose", rows, perm=[1, 0]), rows)
    pen.add_up(f"{key}/gram", squares, (n_channels, n_channels))
    pen.add_up(f"{key}/total", pen.total(rows, 0), (n_channels,))


def write_logits(pen: SumPen, key: str, q: str, k: str, n_heads: int, d_head: int) -> None:
    """Adds up queries and keys [images, H, tokens, d] for a `GatheredLogits`."""
    square = (n_heads, d_head, d_head)
    n_tokens = pen.put("Cast", pen.put("Gather", pen.put("Shape", k), pen.constant([2]), axis=0), to=TensorProto.FLOAT)
    mean = pen.put("Div", pen.total(k, 2, keep=True), n_tokens)
    norms = [pen.total(pen.put("Mul", x, x), 2) for x in (q, k)]
    for name, x in (("q", q), ("k", k)):
        pen.say_shape(f"{key}/{name}", x)
    for name, x, scale in (("q", q, ""), ("k_centred", pen.put("Sub", k, mean), ""), ("k_mean", mean, n_tokens)):
        by_head = pen.reshape(pen.put("Transpose", x, perm=[1, 0, 2, 3]), n_heads, -1, d_head)
        gram = pen.put("MatMul", pen.put("Transpose", by_head, perm=[0, 2, 1]), by_head)
        pen.add_up(f"{key}/{name}", pen.put("Mul", gram, scale) if scale else gram, square)
    pen.add_up(f"{key}/energy", pen.total(pen.put("Mul", *norms), 0), square[:2])
