"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' changes and the written file; leaves `results` values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corp_onnx.blocks import Blocks, Linear
from corp_onnx.calibrate.collect import (
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
from corp_onnx.results import HeldOut
from corp_onnx.rewrite import AttentionChange, MlpChange
from corp_onnx.run.sessions import open_tapped
from corp_onnx.search.plan import UnitPlan
from corp_onnx.tokens.liveness import TokenTrim


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
    planned = Units(
        tuple(u for u in units.mlps if u.key in by_key),
        tuple(u for u in units.qk_pairs if u.qk_key in by_key),
        tuple(u for u in units.vo_pairs if u.vo_key in by_key),
    )
    products = {u.key: (u.hidden, u.down) for u in planned.mlps}
    products |= {u.vo_key: (u.out.linear.input, u.out.linear) for u in planned.vo_pairs if u.out is not None}
    dense = {key: _read_product(graph, linear) for key, (_, linear) in products.items()}
    energies = {plan.key: _Energy() for plan in plans}
    for arrays, n_real in run_tapped(tap_units(graph, planned, provider=provider), images, batch_size):
        for key, (regressor, _) in products.items():
            _add_product(energies[key], by_key[key], read_tokens(arrays[regressor], graph, n_real), *dense[key])
        for unit in planned.qk_pairs:
            q, k = read_queries_keys(arrays, graph, unit, n_real)
            _add_logits(energies[unit.qk_key], by_key[unit.qk_key], q, k)
        if progress:
            progress(n_real)
    return {key: energy.relative() for key, energy in energies.items()}


def _read_product(graph: Graph, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a dense product in float32; zeros where it has no bias."""
    bias = linear.read_bias(graph)
    weight = linear.read_weight(graph).astype(np.float32)
    return weight, np.zeros(linear.d_out, np.float32) if bias is None else bias.astype(np.float32)


def _add_product(energy: _Energy, plan: UnitPlan, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    """The last product of an MLP or of an attention, on the dense model's regressor x [tokens, n]."""
    exact = x @ weight.T + bias
    if energy.pivot is None:
        energy.pivot = exact.mean(axis=0)
    about = exact - energy.pivot
    energy.reference += float(np.square(about).sum(dtype=np.float64))
    energy.total = energy.total + about.sum(axis=0, dtype=np.float64)
    energy.count += len(exact)
    for change, field in ((plan.solved, "error"), (plan.dropped, "error_without")):
        difference = _changed_product(change, x) - exact
        setattr(energy, field, getattr(energy, field) + float(np.square(difference).sum(dtype=np.float64)))


def _changed_product(change: MlpChange | AttentionChange, x: np.ndarray) -> np.ndarray:
    if isinstance(change, MlpChange):
        return x[:, change.kept_idx] @ change.weight.astype(np.float32).T + change.bias.astype(np.float32)
    assert change.v_map is not None
    assert change.out_weight is not None
    assert change.out_bias is not None
    heads = x.reshape(len(x), len(change.v_map), -1)  # [tokens, H, d]
    kept = np.einsum("thd,hrd->thr", heads, change.v_map.astype(np.float32), optimize=True).reshape(len(x), -1)
    return kept @ change.out_weight.astype(np.float32).T + change.out_bias.astype(np.float32)


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
    trim: TokenTrim | None = None,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> HeldOut:
    """Agreement, KL and logit error of the pruned file, and how the error of the residual stream grows with depth.

    Args:
        trim: the tokens that the pruned file does not compute; its stream is compared at the others.

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
            whole = dense[name] if trim is None else trim.select(name, dense[name])
            reference, found = (read_tokens(a, graph, n_real).astype(np.float64) for a in (whole, cut[name]))
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
