"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' plans and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import tap_units
from corp_onnx.checks.disagreement import Disagreements
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.metrics import Judgement
from corp_onnx.metrics.intervals import images_needed
from corp_onnx.metrics.judgement import Kept
from corp_onnx.progress import Count
from corp_onnx.results import CheckResult, HeldOut, Promise
from corp_onnx.run.outputs import Outputs
from corp_onnx.run.pace import choose_pace
from corp_onnx.run.tapped import Batches, open_tapped, stream_together
from corp_onnx.settings import CONFIDENCE, Budget
from corp_onnx.threads import Crew
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.units import UnitKey, UnitPlan
from corp_onnx.units.energy import Energy
from corp_onnx.units.taps import read_tokens

MAX_SURPRISE = 3.0
"""Times the loss that the search saw; a refit whose rows do not correspond gives ten to a hundred times."""

CLASS_SLACK, SLACK = 0.05, 0.01
"""Added to that, of classes in nats, else in 1 - cosine or squared relative error: below it the two differ by which
images are asked."""


class UnitErrors:
    """What planned units lose, batch by batch; every one of them by itself, so that several are measured at once."""

    def __init__(self, graph: Graph, plans: Sequence[UnitPlan]) -> None:
        self.units = [plan.unit for plan in plans]
        self._graph = graph
        self._measures = [plan.unit.measure(graph, plan) for plan in plans]
        self._energies = [Energy() for _ in plans]

    def add(self, batches: Batches, crew: Crew) -> None:
        """Count batches, each with what `tap_units` gives first."""

        def measure(at: int) -> None:
            for (arrays, *_), n_real in batches:
                values = self.units[at].read(arrays, self._graph, n_real)
                self._energies[at] += self._measures[at](*values)

        crew.map(measure, range(len(self.units)))

    def result(self) -> dict[UnitKey, tuple[float, float]]:
        """(relative error, the same without compensation) of every unit (see `results.UnitResult`)."""
        return {unit.key: e.relative() for unit, e in zip(self.units, self._energies, strict=True)}


def measure_model(
    graph: Graph, blocks: Blocks, pruned: Model, images: Images, outputs: Outputs, errors: UnitErrors, *,
    apart: Disagreements | None = None, promised: Budget | None = None, confidence: float = CONFIDENCE,
    trim: TokenTrim | None = None, n_special: int = 0, batch_size: int = 8, provider: str = "cpu",
    progress: Count | None = None,
) -> HeldOut:  # fmt: skip
    """How far every output of the pruned file moved, and how the error of the residual stream grows with depth.

    Args:
        errors: of the units that were planned, filled on the way.
        apart: which images moved most, filled on the way.
        promised: what was asked to be kept.
        trim: the tokens that the pruned file does not compute, from `find_left_out`; the others are compared.
        n_special: leading tokens that never merge; where others have, these are compared, or the mean of all.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
    names = [task.output for task in outputs.tasks]
    judgement, off = Judgement(outputs.tasks, outputs.judged), np.zeros((len(streams), 2))
    for dense, cut, n_real in _run_both(graph, pruned, errors, streams, images, batch_size, provider):
        expected = _read_answers(graph.model, names, dense, n_real)
        found = _read_answers(pruned, names, cut, n_real)
        judgement.add(found, expected)
        if apart is not None:
            apart.add(found, expected)
        for row, name in zip(off, streams, strict=True):
            whole = dense[name] if trim is None else trim.select(name, dense[name])
            pair = _match_tokens(whole, cut[name], n_special)
            row += _compare_streams(*(read_tokens(array, graph, n_real) for array in pair))
        if progress:
            progress(n_real)
    return HeldOut(
        n_images=judgement.n_samples,
        outputs=judgement.scores(confidence),
        promise=make_promise(judgement.kept, promised, confidence),
        loss=judgement.loss,
        stream_error=tuple(float(np.sqrt(e / r)) if r else 0.0 for e, r in off),
    )


def _run_both(
    graph: Graph, pruned: Model, errors: UnitErrors, streams: Sequence[str], images: Images, batch_size: int,
    provider: str,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]]:  # fmt: skip
    """(tensors of the dense model, of the pruned one, number of images), when units have been measured on them."""
    pace = choose_pace(batch_size, graph.n_images if graph.fixed_batch else None, provider)
    dense = tap_units(graph, errors.units, streams, provider=provider, threads=pace.threads)
    cut = open_tapped(pruned, streams, provider=provider, threads=pace.threads, types=graph.types)
    with Crew() as crew:
        for batches in stream_together([dense, cut], images, pace, crew):
            errors.add(batches, crew)
            yield from ((one, other, n_real) for (one, other), n_real in batches)


def _compare_streams(reference: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Squares of the difference and of the reference."""
    difference = (found - reference).reshape(-1)
    return float(difference @ difference), float(np.vdot(reference, reference))


def _match_tokens(dense: np.ndarray, cut: np.ndarray, n_special: int) -> tuple[np.ndarray, np.ndarray]:
    """Both streams of the tokens that correspond: all, or behind a merge the special ones, or their mean."""
    if dense.shape == cut.shape:
        return dense, cut
    if n_special:
        return dense[:, :n_special], cut[:, :n_special]
    return dense.mean(axis=1, keepdims=True), cut.mean(axis=1, keepdims=True)


def make_promise(kept: Kept, promised: Budget | None, confidence: float = CONFIDENCE) -> Promise:
    """What may be said of other images, and what is missing for what was asked."""
    interval, n = kept.interval(confidence), len(kept.values)
    low, high = interval if interval is not None else (None, None)
    wanted = promised.value if promised is not None and promised.kind in ("agreement", "similarity") else None
    note = ""
    if wanted is not None and promised is not None and (low is None or low < wanted):
        needed = images_needed(wanted, kept.mean, confidence) if kept.is_share else None
        note = f"--min-{promised.kind} {wanted:g} is not proven by the {n} images that chose nothing" + (
            f": at this {kept.name} it takes {needed} of them." if needed else "; ask for less, or give more images."
        )
    return Promise(kept.name, kept.mean, low, high, confidence, n, wanted, note)


def check_expected(held: HeldOut, expected: float | None) -> CheckResult | None:
    """Whether the answers moved about as far as the search foresaw; None where it foresaw nothing.

    Args:
        expected: loss of the solution on the images that judged it, before a refit, which is to lower it.
    """
    if expected is None:
        return None
    allowed = MAX_SURPRISE * expected + (SLACK if held.agreement is None else CLASS_SLACK)
    detail = f"loss on images that chose nothing, {held.loss:.3g}, where the search saw {expected:.3g}"
    return CheckResult("expected", bool(held.loss <= allowed), held.loss, allowed, detail)


def _read_answers(
    model: Model, names: Sequence[str], arrays: Mapping[str, np.ndarray], n_real: int
) -> dict[str, np.ndarray]:
    for name in names:
        bad = int((~np.isfinite(arrays[name])).sum())
        if bad:
            raise NonFiniteError(
                f"{model.path}: output '{name}' holds {bad} NaN or Inf on these images; nothing was pruned."
            )
    return {name: arrays[name][:n_real].astype(np.float64) for name in names}
