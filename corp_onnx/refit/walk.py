"""Refit on the pruned stream: every unit's last product, solved again so that the pruned model meets the dense stream.

The residual stream is walked addition by addition, dense h and pruned h' side by side. At each one

    h_after = skip + scale * (W z + b)      z the regressor: what the unit's last product reads

W and b are solved so that the pruned unit, fed with h', brings the stream back to where the dense one is:

    minimise  E w |W z' + b - (h_after - skip') / scale|^2 + lambda |W - W_0|^2

with W_0 the one-shot solution, lambda chosen for every product by cross-validation over the images, w a weight of the
token's position: the share of its position in the sensitivity of the answers (`weigh_tokens`). DESIGN section 4. Cost:
two passes over the images in stretches of one unit; both streams of all images and one regressor are kept, 4 bytes a
number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import numpy as np
import onnx

from corp_onnx.blocks import SiteKey
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.moments.sums import CrossSum, PooledSum
from corp_onnx.moments.values import CrossMoments, merge_moments
from corp_onnx.progress import Count
from corp_onnx.refit.rows import RowFinder
from corp_onnx.refit.stream import Arrays, Stop, StreamData, StreamWalk, advance_model, read_data, run_prefix
from corp_onnx.run.segments import Segment, open_segment
from corp_onnx.solve.refit import choose_ridge, refit_linear
from corp_onnx.units import Change, Changes, unchanged

N_FOLDS = 4
"""Of the images, to choose the ridge by: image by image, so that the ridge does not depend on how batches are cut."""

POOLED = 8
"""Images of a model of smaller batch that are added up together."""


def refit_changes(
    graph: Graph,
    walk: StreamWalk,
    changes: Changes,
    pruned: onnx.ModelProto,
    images: Images,
    weights: Mapping[SiteKey, np.ndarray],
    *,
    given: Sequence[str] = (),
    ridge: float | None = None,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
) -> dict[SiteKey, Change]:
    """The changes with the last product of every stop solved again, including of units that stayed whole.

    A stop whose rows are mixed on their way into the stream keeps its one-shot solution.

    Args:
        changes: the one-shot solution, which the refit starts from and stays near.
        pruned: the model rewritten with `changes`.
        weights: of the token positions by stop, from `weigh_stops`; a stop without weighs all tokens alike.
        given: integer tensors that both streams take from the dense model: which tokens merge, so that rows correspond.
        ridge: lambda relative to the mean diagonal of the regressor's covariance; None chooses it by cross-validation.
    """
    data = read_data(graph, images, batch_size, provider, given)
    cut = Model(pruned, graph.model.path, graph.model.sha256)
    refitted = dict(changes)
    before = walk.stops[0].residual.skip or ""
    dense_stream = run_prefix(graph, data, before, provider)
    pruned_stream = list(dense_stream)
    for stop in walk.stops:
        dense_stream = advance_model(graph.model, graph, data, dense_stream, before, stop.residual.stream, provider)
        change = changes.get(stop.key) or unchanged(stop.site, graph)
        step = _open_step(graph, cut, stop, change, before, data, provider)
        batches = step.run(pruned_stream)
        if batches is None:
            pruned_stream = advance_model(cut, graph, data, pruned_stream, before, stop.residual.stream, provider)
        else:
            weight, bias = step.solve(batches, dense_stream, weights.get(stop.key), ridge)
            pruned_stream = step.advance(batches, weight, bias)
            refitted[stop.key] = change.with_product(weight, bias)
        before = stop.residual.stream
        if progress:
            progress(1)
    return refitted


def _open_step(
    graph: Graph, cut: Model, stop: Stop, change: Change, before: str, data: StreamData, provider: str
) -> _Step:
    residual, skip, product = stop.residual, stop.residual.skip or "", stop.linear.output or ""
    prior, _ = change.last_product(graph)
    wanted = [*([stop.regressor] if prior.shape[1] else []), *([skip] if skip != before else [])]
    given = data.given
    segment = open_segment(cut, graph.types, [before], wanted, given=given, provider=provider) if wanted else None
    behind = open_segment(graph.model, graph.types, [product, skip], [residual.stream], given=given, provider=provider)
    value = np.ones(1) if residual.scale is None else graph.constant(residual.scale.name)
    assert value is not None
    scale = value.reshape(-1).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1e-12), scale)
    return _Step(stop, prior, before, segment, data, scale, RowFinder(behind, product, skip, residual.stream, scale))


@dataclass(frozen=True, slots=True, eq=False)
class _Ran:
    """One batch of the pruned model at a stop: regressor z' [rows of the stream, n], skip', real images."""

    z: np.ndarray
    skip: np.ndarray
    n_real: int


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

    def run(self, pruned_stream: Arrays) -> list[_Ran] | None:
        """The pruned model up to here; kept for one stop, since solving and advancing both need it.

        None where the rows of the product are no rows of the stream.
        """
        skip_name = self.stop.residual.skip or ""
        ran: list[_Ran] = []
        for stream, (feeds, n_real) in zip(pruned_stream, self.data.feeds, strict=True):
            arrays = self.segment.run({self.before: stream}, feeds) if self.segment else {}
            skip = arrays.get(skip_name, stream)
            if not self.prior.shape[1]:
                ran.append(_Ran(np.zeros((skip[..., 0].size, 0), np.float32), skip, n_real))
                continue
            z = arrays[self.stop.regressor]
            rows = self.finder.find(z.shape[:-1], skip.shape, feeds)
            if rows is None:
                return None
            flat = z.reshape(-1, z.shape[-1])
            in_order = np.array_equal(rows, np.arange(len(flat)))
            ran.append(_Ran(flat if in_order else flat[rows], skip, n_real))
        return ran

    def solve(
        self, batches: list[_Ran], dense_stream: Arrays, weights: np.ndarray | None, ridge: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The refitted weight and bias."""
        prior = self.prior
        if not prior.shape[1]:
            return prior, self._mean_target(batches, dense_stream, weights)
        name = f"tensor '{self.stop.regressor}' ({self.stop.key})"
        n_folds = min(N_FOLDS, sum(ran.n_real for ran in batches))
        sums = [PooledSum(CrossSum(prior.shape[1], prior.shape[0], name), POOLED) for _ in range(n_folds)]
        for i, rows in enumerate(self._pairs_by_image(batches, dense_stream, weights)):
            sums[i % n_folds].update(1, *rows)
        folds = [cast(CrossMoments, part.result()) for part in sums]
        moments = reduce(merge_moments, folds)
        solved = refit_linear(moments, prior, choose_ridge(folds, prior) if ridge is None else ridge)
        return solved.weight, solved.bias

    def _pairs(
        self, batches: list[_Ran], dense_stream: Arrays, weights: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """(regressor, target, weights) of the real rows, batch by batch."""
        for ran, dense in zip(batches, dense_stream, strict=True):
            target = ((dense - ran.skip) / self.scale).reshape(len(ran.z), -1)
            n_kept = len(ran.z) if self.data.n_batch is None else len(ran.z) * ran.n_real // self.data.n_batch
            of_rows = None if weights is None else np.tile(weights, n_kept // len(weights))
            yield ran.z[:n_kept], target[:n_kept], of_rows

    def _pairs_by_image(
        self, batches: list[_Ran], dense_stream: Arrays, weights: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray | None, ...]]:
        """The same, image by image: the rows of one stand together in the stream."""
        for ran, pair in zip(batches, self._pairs(batches, dense_stream, weights), strict=True):
            parts = [[None] * ran.n_real if rows is None else np.array_split(rows, ran.n_real) for rows in pair]
            yield from zip(*parts, strict=True)

    def _mean_target(self, batches: list[_Ran], dense_stream: Arrays, weights: np.ndarray | None) -> np.ndarray:
        total, count = np.zeros(len(self.prior)), 0.0
        for _, target, of_rows in self._pairs(batches, dense_stream, weights):
            rows = np.ones(len(target)) if of_rows is None else of_rows.astype(np.float64)
            total += rows @ target
            count += float(rows.sum())
        return total / count

    def advance(self, batches: list[_Ran], weight: np.ndarray, bias: np.ndarray) -> Arrays:
        """The pruned stream behind this stop."""
        transposed = np.ascontiguousarray(weight.T, dtype=np.float32)
        b = bias.astype(np.float32)
        return [r.skip + self.scale * (r.z @ transposed + b).reshape(r.skip.shape) for r in batches]
