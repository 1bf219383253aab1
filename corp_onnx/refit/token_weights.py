"""How much the answers depend on each token position of the residual stream, without gradients.

Enters a graph and a few images; leaves a weight for every token position at every stop of the walk (see stream.py). A
refit that counts the class token like any patch spends itself on patches, which nobody reads behind the last attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.metrics import Judgement, OutputTask
from corp_onnx.progress import Count
from corp_onnx.refit.stream import StreamWalk, advance_model, is_by_image, read_data, run_prefix
from corp_onnx.run.segments import Segment, open_segment
from corp_onnx.threads import Crew

SENSITIVITY_IMAGES = 8

STRIDE = 3
"""Every so many stops are measured, and the last ones, behind which little is left to compute. Between two the log
of a weight is near a line: the draw of the images moves it more (benchmarks/refit.md)."""

NOISE = 0.05
"""Of the root mean square of an image's stream: small enough that the answer moves linearly, far above rounding."""

MAX_TOKEN_WEIGHT = 100.0
"""Behind the last attention only the class token counts and the ratio is infinite; patches still stay in the fit."""

N_LEADING = 2
"""Positions that are looked at one by one: class and distillation tokens stand there."""


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
    names = [task.output for task in tasks]
    lengths: dict[int, int] = {}
    measured: dict[int, np.ndarray] = {}
    for i, (stop, before) in enumerate(zip(walk.stops, walk.starts, strict=True)):
        after, n_behind = stop.residual.stream, len(walk.stops) - 1 - i
        stream = advance_model(graph.model, graph, data, stream, before, after, provider)
        if is_by_image(stream[0].shape[:-1], data.n_batch or data.feeds[0][1]):
            lengths[i] = stream[0].shape[1]
            if n_behind < STRIDE or n_behind % STRIDE == 0:
                tail = open_segment(
                    graph.model, graph.types, [after], names, given=given, provider=provider, threads=data.pace.threads
                )
                measured[i] = weigh_tokens(tail, stream, data.feeds, after, tasks, data.pace.n_calls)
        if progress:
            progress(1)
    return {walk.stops[i].key: _between(measured, i, n_tokens) for i, n_tokens in lengths.items() if measured}


def _between(measured: Mapping[int, np.ndarray], place: int, n_tokens: int) -> Float[np.ndarray, " n_tokens"]:
    """The weights at a stop: its own, or by those that were measured before and behind it."""
    if place in measured:
        return measured[place]
    weights = np.ones(n_tokens, dtype=np.float32)
    n_leading = min(N_LEADING, n_tokens - 1)
    logs = np.log([_pad(found[:n_leading], n_leading) for found in measured.values()])
    weights[:n_leading] = [np.exp(np.interp(place, list(measured), column)) for column in logs.T]
    return weights


def _pad(weights: np.ndarray, n: int) -> np.ndarray:
    return np.pad(weights, (0, n - len(weights)), constant_values=1.0)


def weigh_tokens(
    tail: Segment,
    stream: Sequence[np.ndarray],
    feeds: Sequence[tuple[Mapping[str, np.ndarray], int]],
    tensor: str,
    tasks: Sequence[OutputTask],
    n_calls: int = 1,
) -> Float[np.ndarray, " n_tokens"]:
    """sqrt of the loss that noise of a given energy on one token position causes, relative to that of a patch token.

    No gradients: the first positions (class and distillation tokens stand there) are disturbed one by one, the rest
    together. The ratio is the geometric mean over the images: their losses differ by orders of magnitude, and an
    arithmetic one is that of one or two of them. Values below 1 are raised to 1; a model without special tokens gets
    ones.

    Args:
        feeds: of every batch, and its real images.
        n_calls: side by side.
    """
    n_tokens = stream[0].shape[1]
    n_leading = min(N_LEADING, n_tokens - 1)
    groups = [np.array([i]) for i in range(n_leading)] + [np.arange(n_leading, n_tokens)]
    losses: list[list[float]] = []  # of every image, a token position of every group
    with Crew(n_calls) as crew:
        jobs = _disturb(stream, feeds, groups)
        answers = crew.stream(lambda job: _answer(tail, {tensor: job[0]}, job[1]), jobs)
        for _, n_real in feeds:
            base, *found = [next(answers) for _ in range(len(groups) + 1)]
            losses += [[_loss(tasks, one, base, i) for one in found] for i in range(n_real)]
    each = np.array(losses) / [len(positions) for positions in groups]
    weights = np.ones(n_tokens, dtype=np.float32)
    read = each[each[:, -1] > 0]
    if len(read):
        leading = np.maximum(read[:, :-1], np.finfo(np.float64).tiny)
        weights[:n_leading] = np.exp(0.5 * np.log(leading / read[:, -1:]).mean(axis=0))
    else:
        weights[:n_leading] = np.where((each[:, :-1] > 0).any(axis=0), MAX_TOKEN_WEIGHT, 1.0)
    return np.clip(weights, 1.0, MAX_TOKEN_WEIGHT)


def _disturb(
    stream: Sequence[np.ndarray],
    feeds: Sequence[tuple[Mapping[str, np.ndarray], int]],
    groups: Sequence[np.ndarray],
) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
    """Of every batch the stream as it is, then with noise on each group of positions."""
    rng = np.random.default_rng(0)
    for h, (given, _) in zip(stream, feeds, strict=True):
        scale = NOISE * np.sqrt(np.mean(np.square(h), axis=(1, 2), keepdims=True))  # of each image: no batch has a say
        noise = scale * rng.standard_normal(h.shape, dtype=np.float32)
        yield h, given
        for positions in groups:
            disturbed = h.copy()
            disturbed[:, positions] += noise[:, positions]
            yield disturbed, given


def _loss(
    tasks: Sequence[OutputTask], found: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray], image: int
) -> float:
    """Of one image of a batch."""
    judgement, own = Judgement(tasks), slice(image, image + 1)
    judgement.add({name: a[own] for name, a in found.items()}, {name: a[own] for name, a in base.items()})
    return judgement.loss


def _answer(tail: Segment, fed: dict[str, np.ndarray], given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in tail.run(fed, given).items()}
