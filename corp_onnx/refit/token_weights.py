"""How much the answers depend on each token position of the residual stream, without gradients.

Enters a graph and a few images; leaves a weight for every token position at every stop of the walk (see stream.py). A
refit that counts the class token like any patch spends itself on patches, which nobody reads behind the last attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.metrics import Judgement, OutputTask
from corp_onnx.progress import Count
from corp_onnx.refit.stream import StreamWalk, advance_model, read_data, run_prefix
from corp_onnx.run.segments import Segment, open_segment

SENSITIVITY_IMAGES = 16
NOISE = 0.05
"""Of the root mean square of an image's stream: small enough that the answer moves linearly, far above rounding."""

MAX_TOKEN_WEIGHT = 100.0
"""Behind the last attention only the class token counts and the ratio is infinite; patches still stay in the fit."""


def weigh_stops(
    graph: Graph,
    walk: StreamWalk,
    images: Images,
    tasks: Sequence[OutputTask],
    *,
    given: Sequence[str] = (),
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
) -> dict[SiteKey, Float[np.ndarray, " n_tokens"]]:
    """Weights of the token positions at every stop, from a few images through the dense model (see `weigh_tokens`).

    A stop whose stream is not [images, tokens, d_model] gets none.

    Args:
        tasks: of the outputs that are judged.
        given: as for `read_data`.
    """
    few = images.select(np.arange(min(SENSITIVITY_IMAGES, images.n_images)))
    data = read_data(graph, few, batch_size, provider, given)
    stream = run_prefix(graph, data, walk.starts[0], provider)
    weights: dict[SiteKey, np.ndarray] = {}
    for stop, before in zip(walk.stops, walk.starts, strict=True):
        after = stop.residual.stream
        stream = advance_model(graph.model, graph, data, stream, before, after, provider)
        if stream[0].ndim == 3 and len(stream[0]) == (data.n_batch or data.feeds[0][1]):
            names = [task.output for task in tasks]
            tail = open_segment(graph.model, graph.types, [after], names, given=given, provider=provider)
            weights[stop.key] = weigh_tokens(tail, stream, [f for f, _ in data.feeds], after, tasks)
        if progress:
            progress(1)
    return weights


def weigh_tokens(
    tail: Segment,
    stream: Sequence[np.ndarray],
    feeds: Sequence[Mapping[str, np.ndarray]],
    tensor: str,
    tasks: Sequence[OutputTask],
) -> Float[np.ndarray, " n_tokens"]:
    """sqrt of the loss that noise of a given energy on one token position causes, relative to that of a patch token.

    No gradients: the first positions (class and distillation tokens stand there) are disturbed one by one, the rest
    together. Values below 1 are raised to 1; a model without special tokens gets ones.
    """
    rng = np.random.default_rng(0)
    n_tokens = stream[0].shape[1]
    n_special = min(2, n_tokens - 1)
    groups = [np.array([i]) for i in range(n_special)] + [np.arange(n_special, n_tokens)]
    judgements = [Judgement(tasks) for _ in groups]
    for h, given in zip(stream, feeds, strict=True):
        base = _answer(tail, {tensor: h}, given)
        scale = NOISE * np.sqrt(np.mean(np.square(h), axis=(1, 2), keepdims=True))  # of each image: no batch has a say
        noise = scale * rng.standard_normal(h.shape, dtype=np.float32)
        for positions, judgement in zip(groups, judgements, strict=True):
            disturbed = h.copy()
            disturbed[:, positions] += noise[:, positions]
            judgement.add(_answer(tail, {tensor: disturbed}, given), base)
    losses = np.array([j.loss / len(positions) for j, positions in zip(judgements, groups, strict=True)])
    weights = np.ones(n_tokens, dtype=np.float32)
    if losses[-1] > 0:
        weights[:n_special] = np.maximum(1.0, np.sqrt(losses[:-1] / losses[-1]))
    elif n_special:
        weights[:n_special] = np.where(losses[:-1] > 0, MAX_TOKEN_WEIGHT, 1.0)
    return np.minimum(weights, MAX_TOKEN_WEIGHT)


def _answer(tail: Segment, fed: dict[str, np.ndarray], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in tail.run(fed, given).items()}
