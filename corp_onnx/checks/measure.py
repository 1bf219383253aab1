"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' plans and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.collect import Progress, tap_units
from corp_onnx.errors import NonFiniteError
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.metrics import Tally
from corp_onnx.results import HeldOut
from corp_onnx.run.sessions import open_tapped
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.units import UnitKey, UnitPlan
from corp_onnx.units.taps import read_tokens


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
    progress: Progress | None = None,
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
    *,
    trim: TokenTrim | None = None,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> HeldOut:
    """Agreement, KL and logit error of the pruned file, and how the error of the residual stream grows with depth.

    Args:
        trim: the tokens that the pruned file does not compute, from `find_left_out`; the others are compared.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
    first = graph.outputs[0]
    dense_run = open_tapped(graph.model, streams, provider=provider).stream(images, batch_size)
    pruned_run = open_tapped(pruned, streams, provider=provider).stream(images, batch_size)
    tally, errors = Tally(), np.zeros((len(streams), 2))
    for (dense, n_real), (cut, _) in zip(dense_run, pruned_run, strict=True):
        for model, arrays in ((graph.model, dense), (pruned, cut)):
            _require_finite(model, first, arrays[first])
        tally.add(cut[first][:n_real].astype(np.float64), None, dense[first][:n_real].astype(np.float64))
        for row, name in zip(errors, streams, strict=True):
            whole = dense[name] if trim is None else trim.select(name, dense[name])
            reference, found = (read_tokens(a, graph, n_real).astype(np.float64) for a in (whole, cut[name]))
            row += np.square(found - reference).sum(), np.square(reference).sum()
        if progress:
            progress(n_real)
    return HeldOut(
        n_images=tally.n_samples,
        agreement=tally.agreement,
        agreement_error=tally.agreement_error,
        kl=tally.kl,
        logit_error=tally.relative_error(),
        stream_error=tuple(float(np.sqrt(e / r)) if r else 0.0 for e, r in errors),
    )


def _require_finite(model: Model, name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise NonFiniteError(
            f"{model.path}: output '{name}' holds {bad} NaN or Inf on these images; nothing was pruned."
        )
