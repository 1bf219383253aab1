"""What units ask a run to expose, and how a batch of it is read: rows of tokens, heads of queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from corp_onnx.blocks import Operand
from corp_onnx.graph import Graph
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
    if not operand.linear.output_has_bias and operand.linear.output is not None:
        bias = operand.linear.read_bias(graph)
        heads = heads if bias is None else heads + bias.astype(np.float32)[operand.channel_idx]
    if operand.late_bias is not None:
        heads = heads + operand.read_late_bias(graph).astype(np.float32)
    return heads


def _take_channels(rows: np.ndarray, channel_idx: Int[np.ndarray, "h d"]) -> np.ndarray:
    """Channels by head; a view where they lie side by side, as they mostly do: taking them costs more than a Gram."""
    first = int(channel_idx[0, 0])
    if not np.array_equal(channel_idx.reshape(-1), np.arange(first, first + channel_idx.size)):
        return rows[..., channel_idx]
    return rows[..., first : first + channel_idx.size].reshape(*rows.shape[:-1], *channel_idx.shape)
