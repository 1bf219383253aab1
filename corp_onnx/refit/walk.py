"""Refit on the pruned stream: the last products, solved again so that the pruned model meets the dense stream.

The residual stream is walked addition by addition, dense h and pruned h' side by side. At each one

    h_after = skip + scale * (W z + b)      z the regressor: what the unit's last product reads

W and b are solved so that the pruned unit, fed with h', brings the stream back to where the dense one is:

    minimise  E w |W z' + b - (h_after - skip') / scale|^2 + lambda |W - W_0|^2

with W_0 the one-shot solution, lambda chosen for every product by cross-validation over the images, w a weight of the
token's position: the share of its position in the sensitivity of the answers (`weigh_tokens`). DESIGN section 4. Cost:
two passes over the images in stretches of one unit, and sums of as many tokens as are enough (parts.py); both streams
of all images and one regressor are kept on a shelf (shelf.py), 4 bytes a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import onnx

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.memory import forget_pages
from corp_onnx.moments.sums import CrossSum
from corp_onnx.moments.values import CrossMoments, merge_moments
from corp_onnx.progress import Count
from corp_onnx.refit.parts import N_FOLDS, Batch, Part, count_tokens, cut_folds, fold_group
from corp_onnx.refit.rows import RowFinder
from corp_onnx.refit.stream import (
    Arrays,
    KnownStreams,
    Stop,
    StreamData,
    StreamWalk,
    advance_dense,
    advance_model,
    place_given,
    read_data,
    run_prefix,
)
from corp_onnx.run.segments import Segment, open_segment
from corp_onnx.shelf import Shelf
from corp_onnx.solve.refit import REFIT_RIDGE, choose_ridge, refit_linear
from corp_onnx.threads import Crew
from corp_onnx.units import Change, Changes, unchanged


def refit_changes(
    graph: Graph, walk: StreamWalk, changes: Changes, pruned: onnx.ModelProto, images: Images,
    weights: Mapping[SiteKey, np.ndarray], *, given: Sequence[str] = (), ridge: float | None = None,
    batch_size: int = 8, provider: str = "cpu", shelf: Shelf | None = None, known: KnownStreams | None = None,
    progress: Count | None = None,
) -> dict[SiteKey, Change]:  # fmt: skip
    """The changes, with the last product of every stop from the first of them on solved again, also of whole units.

    In front of the first change both streams are one. A stop whose rows are mixed on their way into the stream keeps
    its one-shot solution.

    Args:
        changes: the one-shot solution, which the refit starts from and stays near.
        pruned: the model rewritten with `changes`.
        weights: of the token positions by stop, from `weigh_stops`, of images of more or fewer tokens as well; a stop
            without weighs all tokens alike.
        given: tensors that both streams take from the dense one: which tokens merge, and what they then stand for.
        ridge: lambda relative to the mean diagonal of the regressor's covariance; None chooses it by cross-validation.
        shelf: where the streams lie; None keeps all in memory.
        known: what an earlier refit on the same images has found of the dense stream, and a later one is to know.
    """
    known = known or KnownStreams(room=0)
    data = read_data(graph, images, batch_size, provider, shelf=shelf)
    cut = Model(pruned, graph.model.path, graph.model.sha256)
    refitted = dict(changes)
    dense_stream = known.recall(walk.starts[0], lambda: run_prefix(graph, data, walk.starts[0], provider))
    pruned_stream, ridges, alike = dense_stream, dict[str, float](), walk.stops[: _count_alike(walk, changes)]
    for stop, before, new in zip(walk.stops, walk.starts, place_given(graph, walk, given), strict=True):
        after = stop.residual.stream
        data, dense_stream = advance_dense(graph, data, dense_stream, before, after, new, provider, known)
        change = None if stop in alike else changes.get(stop.key) or unchanged(stop.site, graph)
        step = None if change is None else _open_step(graph, cut, stop, change, before, data, provider)
        ran = None if step is None else step.run(pruned_stream)
        if change is None or step is None:
            pruned_stream = dense_stream
        elif ran is None:
            pruned_stream = advance_model(cut, graph, data, pruned_stream, before, after, provider)
        else:
            start = ridges.get(stop.key.part, REFIT_RIDGE)
            weight, bias, ridges[stop.key.part] = step.solve(ran, dense_stream, weights.get(stop.key), ridge, start)
            refitted[stop.key] = change.with_product(weight, bias).moved(data.shelf.aside)
            if stop is not walk.stops[-1]:  # behind it nobody asks
                pruned_stream = step.advance(ran, weight, bias)
        if progress:
            progress(1)
    return refitted


def _count_alike(walk: StreamWalk, changes: Changes) -> int:
    """Stops in front of the first change; none where one is of no stop, and so nobody knows where it is felt."""
    places = {stop.key: place for place, stop in enumerate(walk.stops)}
    return min((places.get(key, 0) for key in changes), default=0)


def _open_step(
    graph: Graph, cut: Model, stop: Stop, change: Change, before: str, data: StreamData, provider: str
) -> _Step:
    residual, skip, product = stop.residual, stop.residual.skip or "", stop.linear.output or ""
    prior, _ = change.last_product(graph)
    wanted = [*([stop.regressor] if prior.shape[1] else []), *([skip] if skip != before else [])]
    given = data.given
    opening: dict[str, Any] = {"given": given, "provider": provider, "threads": data.pace.threads}
    segment = open_segment(cut, graph.types, [before], wanted, **opening) if wanted else None
    behind = open_segment(graph.model, graph.types, [product, skip], [residual.stream], given=given, provider=provider)
    value = np.ones(1) if residual.scale is None else graph.constant(residual.scale.name)
    assert value is not None
    scale = value.reshape(-1).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1e-12), scale)
    return _Step(stop, prior, before, segment, data, scale, RowFinder(behind, product, skip, residual.stream, scale))


@dataclass(frozen=True, slots=True, eq=False)
class _Ran:
    """The pruned model at a stop, batch by batch: regressor z' [rows of the stream, n] and skip'."""

    z: Arrays
    skip: Arrays


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One stop: its one-shot weight, the stretch of the pruned model up to it, LayerScale's vector (or 1), and where
    its rows go. A unit that was removed has no regressor, and only its mean is solved again."""

    stop: Stop
    prior: np.ndarray
    before: str
    segment: Segment | None
    data: StreamData
    scale: np.ndarray
    finder: RowFinder

    def run(self, pruned_stream: Arrays) -> _Ran | None:
        """The pruned model up to here; kept for one stop, since solving and advancing both need it.

        None where the rows of the product are no rows of the stream.
        """
        skip_name = self.stop.residual.skip or ""
        ran = self._stretch(pruned_stream)
        z_row, skip_row = self.data.shelf.row(), self.data.shelf.row()
        for arrays, stream, (feeds, _) in zip(ran, pruned_stream, self.data.feeds, strict=False):
            skip = arrays.get(skip_name, stream)
            if skip_name in arrays:
                skip_row.put(skip)
            if not self.prior.shape[1]:
                z_row.put(np.zeros((skip[..., 0].size, 0), np.float32))
                continue
            z = arrays[self.stop.regressor]
            rows = self.finder.find(z.shape[:-1], skip.shape, feeds)
            if rows is None:
                return None
            flat = z.reshape(-1, z.shape[-1])
            z_row.put(flat if np.array_equal(rows, np.arange(len(flat))) else flat[rows])
        return _Ran(z_row, skip_row if len(skip_row) else pruned_stream)

    def _stretch(self, pruned_stream: Arrays) -> Iterable[Mapping[str, np.ndarray]]:
        """What the pruned model's stretch gives of every batch; nothing without one."""
        if self.segment is None:
            nothing: dict[str, np.ndarray] = {}
            return repeat(nothing)
        return self.data.stream(self.segment, self.before, pruned_stream)

    def solve(
        self, ran: _Ran, dense_stream: Arrays, weights: np.ndarray | None, ridge: float | None, start: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """The refitted weight and bias, and the ridge: where it is not given, chosen from `start` on, that of the block
        before; neighbours want about the same."""
        prior = self.prior
        if not prior.shape[1]:
            return prior, self._mean_target(ran, dense_stream, weights), start
        folds = self._sum_folds(ran, dense_stream, weights)
        with Crew() as crew:
            chosen = choose_ridge(folds, prior, crew.map, start) if ridge is None else ridge
        total = folds.pop(0)
        while folds:  # each goes when it is in the total: wide products have large ones
            total = merge_moments(total, folds.pop(0))
        solved = refit_linear(total, prior, chosen)
        forget_pages(prior)
        return solved.weight, solved.bias, chosen

    def _sum_folds(self, ran: _Ran, dense_stream: Arrays, weights: np.ndarray | None) -> list[CrossMoments]:
        """The moments of every fold, each from its own images in their order, whatever goes on beside it."""
        name = f"tensor '{self.stop.regressor}' ({self.stop.key})"
        group = fold_group(self.data.n_images)
        n_folds = min(N_FOLDS, math.ceil(self.data.n_images / group))

        def sum_fold(fold: int) -> CrossMoments:
            total = CrossSum(self.prior.shape[1], self.prior.shape[0], name)
            for part in self._parts(ran, dense_stream, weights, group, n_folds, fold):
                total.update(part.z, part.target, part.weights)
            return total.result()

        with Crew() as crew:
            return crew.map(sum_fold, range(n_folds))

    def _parts(
        self, ran: _Ran, dense_stream: Arrays, weights: np.ndarray | None, group: int, n_folds: int = 1, fold: int = 0
    ) -> Iterator[Part]:
        """The rows of a fold that are summed, at most a batch at a time."""
        counts = [n_real for _, n_real in self.data.feeds]
        n_tokens = count_tokens(self.data.n_images, self.prior.shape[1])
        for i, first, wanted in cut_folds(counts, group, n_folds, fold):
            batch = Batch(ran.z[i], ran.skip[i], dense_stream[i], first, self.data.n_batch or counts[i], n_tokens)
            yield from (batch.cut(*images, weights, self.scale) for images in wanted)

    def _mean_target(self, ran: _Ran, dense_stream: Arrays, weights: np.ndarray | None) -> np.ndarray:
        total, count = np.zeros(len(self.prior)), 0.0
        for part in self._parts(ran, dense_stream, weights, self.data.n_images):
            rows = np.ones(len(part.target)) if part.weights is None else part.weights.astype(np.float64)
            total += rows @ part.target
            count += float(rows.sum())
        return total / count

    def advance(self, ran: _Ran, weight: np.ndarray, bias: np.ndarray) -> Arrays:
        """The pruned stream behind this stop."""
        transposed = np.ascontiguousarray((weight * self.scale[:, None]).T, dtype=np.float32)
        b = (bias * self.scale).astype(np.float32)

        def step(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            behind = (pair[0] @ transposed).reshape(pair[1].shape)
            behind += b
            behind += pair[1]
            return behind

        with Crew() as crew:
            return self.data.shelf.row(crew.stream(step, zip(ran.z, ran.skip, strict=True)))
