"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' plans and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import tap_units
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.metrics import Judgement
from corp_onnx.metrics.intervals import images_needed
from corp_onnx.metrics.judgement import Kept
from corp_onnx.progress import Count
from corp_onnx.results import CheckResult, HeldOut, Promise
from corp_onnx.run.outputs import Outputs
from corp_onnx.run.tapped import open_tapped
from corp_onnx.settings import CONFIDENCE, Budget
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.units import UnitKey, UnitPlan
from corp_onnx.units.taps import read_tokens

MAX_SURPRISE = 3.0
"""Times the loss that the search saw; a refit whose rows do not correspond gives ten to a hundred times."""

CLASS_SLACK, SLACK = 0.05, 0.01
"""Added to that, of classes in nats, else in 1 - cosine or squared relative error: below it the two differ by which
images are asked."""


@dataclass(slots=True)
class _Energy:
    """Running error and reference energies of one unit.

    The reference is taken about a pivot, the mean of the first batch, and moved to the mean of all by `relative`:
    sum |y - E y|^2 = sum |y - p|^2 - |sum (y - p)|^2 / n. A response that is centred already needs no pivot.
    """

    is_centred: bool
    error: float = 0.0
    error_without: float = 0.0
    reference: float = 0.0
    count: int = 0
    pivot: np.ndarray | None = None
    total: np.ndarray | float = 0.0

    def add(self, exact: np.ndarray, solved: np.ndarray, dropped: np.ndarray) -> None:
        """Count one batch of a unit's output, [rows, channels] unless it is centred."""
        about = exact
        if not self.is_centred:
            self.pivot = exact.mean(axis=0) if self.pivot is None else self.pivot
            about = exact - self.pivot
            self.total = self.total + about.sum(axis=0, dtype=np.float64)
            self.count += len(exact)
        self.reference += float(np.square(about).sum(dtype=np.float64))
        self.error += float(np.square(solved - exact).sum(dtype=np.float64))
        self.error_without += float(np.square(dropped - exact).sum(dtype=np.float64))

    def relative(self) -> tuple[float, float]:
        """(error, error without compensation), both relative; 0 for a unit whose output does not vary."""
        scale = max(self.reference - float(np.square(self.total).sum()) / max(self.count, 1), 0.0) or 1.0
        return float(np.sqrt(self.error / scale)), float(np.sqrt(self.error_without / scale))


def measure_units(
    graph: Graph,
    plans: Sequence[UnitPlan],
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
) -> dict[UnitKey, tuple[float, float]]:
    """(relative error, the same without compensation) of every unit that was planned (see `results.UnitResult`)."""
    units = [plan.unit for plan in plans]
    responses = [[plan.unit.respond(graph, change) for change in (None, plan.solved, plan.dropped)] for plan in plans]
    energies = [_Energy(unit.is_centred) for unit in units]
    for arrays, n_real in tap_units(graph, units, provider=provider).stream(images, batch_size):
        for unit, respond, energy in zip(units, responses, energies, strict=True):
            values = unit.read(arrays, graph, n_real)
            energy.add(*(response(*values) for response in respond))
        if progress:
            progress(n_real)
    return {plan.key: energy.relative() for plan, energy in zip(plans, energies, strict=True)}


def measure_model(
    graph: Graph,
    blocks: Blocks,
    pruned: Model,
    images: Images,
    outputs: Outputs,
    *,
    promised: Budget | None = None,
    confidence: float = CONFIDENCE,
    trim: TokenTrim | None = None,
    n_special: int = 0,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
) -> HeldOut:
    """How far every output of the pruned file moved, and how the error of the residual stream grows with depth.

    Args:
        promised: what was asked to be kept.
        trim: the tokens that the pruned file does not compute, from `find_left_out`; the others are compared.
        n_special: leading tokens that never merge; where others have, these are compared, or the mean of all.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
    names = [task.output for task in outputs.tasks]
    dense_run = open_tapped(graph.model, streams, provider=provider).stream(images, batch_size)
    pruned_run = open_tapped(pruned, streams, provider=provider).stream(images, batch_size)
    judgement, errors = Judgement(outputs.tasks, outputs.judged), np.zeros((len(streams), 2))
    for (dense, n_real), (cut, _) in zip(dense_run, pruned_run, strict=True):
        judgement.add(_read_answers(pruned, names, cut, n_real), _read_answers(graph.model, names, dense, n_real))
        for row, name in zip(errors, streams, strict=True):
            whole = dense[name] if trim is None else trim.select(name, dense[name])
            pair = _match_tokens(whole, cut[name], n_special)
            reference, found = (read_tokens(a, graph, n_real).astype(np.float64) for a in pair)
            row += np.square(found - reference).sum(), np.square(reference).sum()
        if progress:
            progress(n_real)
    return HeldOut(
        n_images=judgement.n_samples,
        outputs=judgement.scores(confidence),
        promise=make_promise(judgement.kept, promised, confidence),
        loss=judgement.loss,
        stream_error=tuple(float(np.sqrt(e / r)) if r else 0.0 for e, r in errors),
    )


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
