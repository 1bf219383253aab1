"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' changes and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate import (
    Progress,
    Units,
    read_queries_keys,
    read_tokens,
    require_finite,
    run_tapped,
    tap_units,
)
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.metrics import Tally, binomial_error
from corp_onnx.plan import UnitPlan
from corp_onnx.results import HeldOut
from corp_onnx.rewrite import AttentionChange, MlpChange
from corp_onnx.runtime import open_tapped


@dataclass(slots=True)
class _Energy:
    """Running error and reference energies.

    The reference is taken about a pivot, the mean of the first batch, and moved to the mean of all by `relative`:
    sum |y - E y|^2 = sum |y - p|^2 - |sum (y - p)|^2 / n.
    """

    error: float = 0.0
    error_without: float = 0.0
    reference: float = 0.0
    count: int = 0
    pivot: np.ndarray | None = None
    total: np.ndarray | float = 0.0

    def relative(self) -> tuple[float, float]:
        """(error, error without compensation), both relative; 0 for a unit whose output does not vary."""
        scale = max(self.reference - float(np.square(self.total).sum()) / max(self.count, 1), 0.0) or 1.0
        return float(np.sqrt(self.error / scale)), float(np.sqrt(self.error_without / scale))


def measure_units(
    graph: Graph,
    units: Units,
    plans: Sequence[UnitPlan],
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """(relative error, the same without compensation) of every unit by its key (see `results.UnitResult`)."""
    by_key = {plan.key: plan for plan in plans}
    energies: dict[str, _Energy] = {}
    dense: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for unit in units.mlps:
        bias = unit.down.read_bias(graph)
        weight = unit.down.read_weight(graph).astype(np.float32)
        dense[unit.key] = weight, np.zeros(unit.down.d_out, np.float32) if bias is None else bias.astype(np.float32)
    for arrays, n_real in run_tapped(tap_units(graph, units, provider=provider), images, batch_size):
        for unit in units.mlps:
            hidden = read_tokens(arrays[unit.hidden], graph, n_real)
            weight, bias = dense[unit.key]
            _add_mlp(energies.setdefault(unit.key, _Energy()), by_key[unit.key], hidden, weight, bias)
        for unit in units.qk_pairs:
            q, k = read_queries_keys(arrays, graph, unit, n_real)
            _add_logits(energies.setdefault(unit.qk_key, _Energy()), by_key[unit.qk_key], q, k)
        if progress:
            progress(n_real)
    return {key: energy.relative() for key, energy in energies.items()}


def _add_mlp(energy: _Energy, plan: UnitPlan, hidden: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    exact = hidden @ weight.T + bias
    if energy.pivot is None:
        energy.pivot = exact.mean(axis=0)
    about = exact - energy.pivot
    energy.reference += float(np.square(about).sum(dtype=np.float64))
    energy.total = energy.total + about.sum(axis=0, dtype=np.float64)
    energy.count += len(exact)
    for change, field in ((plan.solved, "error"), (plan.dropped, "error_without")):
        assert isinstance(change, MlpChange)
        cut = hidden[:, change.kept_idx] @ change.weight.astype(np.float32).T + change.bias.astype(np.float32)
        setattr(energy, field, getattr(energy, field) + float(np.square(cut - exact).sum(dtype=np.float64)))


def _add_logits(energy: _Energy, plan: UnitPlan, q: np.ndarray, k: np.ndarray) -> None:
    """Row-centred logits: keys centred over the tokens of their image give exactly that."""
    q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)  # [images, H, tokens, d]
    k = k - k.mean(axis=2, keepdims=True)
    exact = q @ k.swapaxes(-1, -2)
    energy.reference += float(np.square(exact).sum(dtype=np.float64))
    for change, field in ((plan.solved, "error"), (plan.dropped, "error_without")):
        assert isinstance(change, AttentionChange)
        assert change.q_map is not None
        assert change.k_map is not None
        q_cut = q @ change.q_map.astype(np.float32).swapaxes(-1, -2)
        k_cut = k @ change.k_map.astype(np.float32).swapaxes(-1, -2)
        difference = q_cut @ k_cut.swapaxes(-1, -2) - exact
        setattr(energy, field, getattr(energy, field) + float(np.square(difference).sum(dtype=np.float64)))


def measure_model(
    graph: Graph,
    blocks: Blocks,
    pruned: Model,
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> HeldOut:
    """Agreement, KL and logit error of the pruned file, and how the error of the residual stream grows with depth.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
    first = graph.outputs[0]
    dense_run = run_tapped(open_tapped(graph.model, streams, provider=provider), images, batch_size)
    pruned_run = run_tapped(open_tapped(pruned, streams, provider=provider), images, batch_size)
    tally, errors = Tally(), np.zeros((len(streams), 2))
    for (dense, n_real), (cut, _) in zip(dense_run, pruned_run, strict=True):
        for model, arrays in ((graph.model, dense), (pruned, cut)):
            require_finite(model, first, arrays[first])
        tally.add(cut[first][:n_real].astype(np.float64), None, dense[first][:n_real].astype(np.float64))
        for row, name in zip(errors, streams, strict=True):
            reference, found = (read_tokens(a[name], graph, n_real).astype(np.float64) for a in (dense, cut))
            row += np.square(found - reference).sum(), np.square(reference).sum()
        if progress:
            progress(n_real)
    n, agree = tally.n_samples, tally.n_agree
    share = None if agree is None else agree / n
    return HeldOut(
        n_images=n,
        agreement=share,
        agreement_error=None if share is None else binomial_error(share, n),
        kl=None if tally.kl_sum is None else tally.kl_sum / n,
        logit_error=tally.relative_error(),
        stream_error=tuple(float(np.sqrt(e / r)) if r else 0.0 for e, r in errors),
    )
