"""Graph + blocks + images -> Moments: the model runs on images with the tensors of every unit exposed.

Per batch the exposed activations are folded into running sums and forgotten; nothing of size tokens x width is kept.
Units of tokens: sums run over all images and tokens alike, class token and padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import AttentionUnit, Blocks, MlpUnit, Operand
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.moments.sums import ChannelSum, LogitSum
from corp_onnx.moments.values import AnyMoments, Moments
from corp_onnx.run.feeds import bind_feeds, fixed_batch, read_inputs, split_feeds
from corp_onnx.run.sessions import Product, Tapped, open_tapped

Progress = Callable[[int], None]
"""Called with the number of images that have just been done."""


@dataclass(frozen=True, slots=True)
class Units:
    """Which units a run concerns: MLPs, query/key pairs, value/output pairs."""

    mlps: tuple[MlpUnit, ...] = ()
    qk_pairs: tuple[AttentionUnit, ...] = ()
    vo_pairs: tuple[AttentionUnit, ...] = ()


def choose_units(blocks: Blocks, *, mlp: bool = True, qk: bool = True, vo: bool = False) -> Units:
    """The units of the wanted kinds that can change width."""
    return Units(blocks.mlps if mlp else (), blocks.qk_pairs if qk else (), blocks.vo_pairs if vo else ())


def run_tapped(tapped: Tapped, images: Images, batch_size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Run images through a tapped session.

    Yields:
        (tensor name -> array in float32, images in it): a fixed-batch model's filled-up rows are still in the arrays
        and come last along the batch axis; the count says how many are real.
    """
    inputs = read_inputs(tapped.session)
    size = fixed_batch(inputs)
    for batch in images.batches(size or batch_size):
        for feeds, n_real in split_feeds(bind_feeds(batch, inputs), size):
            yield tapped.run(feeds), n_real


def collect_moments(
    graph: Graph,
    units: Units,
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> Moments:
    """The moments of every unit over a set of images.

    Args:
        graph: of the dense model, from `probe_graph`.
        units: what to expose.
        images: unlabelled; float32 or what the model's input takes.
        batch_size: images at a time; has no effect on the result, nor on a model of fixed batch.

    Returns:
        `ChannelMoments` of an MLP's hidden activation under its key, `LogitMoments` of queries and keys under
        `qk_key`, `ChannelMoments` of the output projection's input under `vo_key`.

    Raises:
        NonFiniteError: an exposed tensor holds NaN or Inf; says which.
    """
    sums = _start_sums(units)
    tapped = tap_units(graph, units, provider=provider)
    for arrays, n_real in run_tapped(tapped, images, batch_size):
        for unit in units.mlps:
            sums.channels[unit.key].update(read_tokens(arrays[unit.hidden], graph, n_real))
        for unit in units.vo_pairs:
            sums.channels[unit.vo_key].update(read_head_outputs(arrays, graph, unit, n_real))
        for unit in units.qk_pairs:
            sums.logits[unit.qk_key].update(*read_queries_keys(arrays, graph, unit, n_real))
        if progress:
            progress(n_real)
    entries: list[tuple[str, AnyMoments]] = [(key, s.result()) for key, s in sums.channels.items()]
    return Moments((*entries, *((key, s.result()) for key, s in sums.logits.items())))


@dataclass(frozen=True, slots=True)
class _Sums:
    """The running sums of a calibration by the keys of their units."""

    channels: dict[str, ChannelSum]
    logits: dict[str, LogitSum]


def _start_sums(units: Units) -> _Sums:
    channels = {u.key: ChannelSum(u.d_hidden, f"tensor '{u.hidden}' ({u.key})") for u in units.mlps}
    for unit in units.vo_pairs:
        assert unit.out is not None
        x = unit.out.linear
        channels[unit.vo_key] = ChannelSum(x.d_in, f"tensor '{x.input}' ({unit.vo_key})")
    logits = {u.qk_key: LogitSum(u.n_heads, u.d_qk, f"the queries and keys of {u.key}") for u in units.qk_pairs}
    return _Sums(channels, logits)


def tap_units(graph: Graph, units: Units, *, extra: Sequence[str] = (), provider: str = "cpu") -> Tapped:
    """A session of the model with everything exposed that the units' moments are made of."""
    taps = [*extra, *(u.hidden for u in units.mlps)]
    taps += [u.out.linear.input for u in units.vo_pairs if u.out is not None]
    products: dict[str, Product] = {}
    for unit in units.qk_pairs:
        for operand in (unit.q, unit.k):
            assert operand is not None
            tap_operand(operand, taps, products)
    return open_tapped(graph.model, taps, products=list(products.values()), provider=provider)


def tap_operand(operand: Operand, taps: list[str], products: dict[str, Product]) -> None:
    """Add what exposes an operand's projection: the tensor itself, or a product where a fused operator hides it."""
    linear = operand.linear
    if linear.output is not None:
        taps.append(linear.output)
        return
    bias = linear.bias.name if linear.bias else ""
    products[operand.projection] = Product(operand.projection, linear.input, linear.weight.name, bias)


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
    heads = images[: len(images) * n_real // n_batch][..., operand.channel_idx]  # [images, tokens, H, d]
    if not operand.linear.output_has_bias and operand.linear.output is not None:
        bias = operand.linear.read_bias(graph)
        heads = heads if bias is None else heads + bias.astype(np.float32)[operand.channel_idx]
    if operand.late_bias is not None:
        heads = heads + operand.read_late_bias(graph).astype(np.float32)
    return heads


def read_head_outputs(
    arrays: Mapping[str, np.ndarray], graph: Graph, unit: AttentionUnit, n_real: int
) -> Float[np.ndarray, "tokens h*d"]:
    """What the output projection of a unit reads: the heads' outputs side by side."""
    assert unit.out is not None
    assert unit.v is not None
    return read_tokens(arrays[unit.out.linear.input], graph, n_real, token_major=unit.v.token_major)


def read_queries_keys(
    arrays: Mapping[str, np.ndarray], graph: Graph, unit: AttentionUnit, n_real: int
) -> tuple[np.ndarray, np.ndarray]:
    """(q, k) of a unit, [images, tokens, n_heads, d_head] each."""
    assert unit.q is not None
    assert unit.k is not None
    return read_operand(arrays, graph, unit.q, n_real), read_operand(arrays, graph, unit.k, n_real)


def require_finite(model: Model, name: str, array: np.ndarray) -> None:
    """Raise NonFiniteError when an output holds NaN or Inf."""
    if not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise NonFiniteError(
            f"{model.path}: output '{name}' holds {bad} NaN or Inf on these images; nothing was pruned."
        )
