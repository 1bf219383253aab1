"""Moments + weights + settings -> what changes in every unit.

`plan_paper` is the method of the paper (arXiv 2602.05243): the same fraction of every unit, ranked by energy or
magnitude, compensated in closed form. A plan holds, for every unit, the solved change and the plain cut beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from corp_onnx.blocks import AttentionUnit, MlpUnit
from corp_onnx.calibrate.collect import Units
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph
from corp_onnx.moments.values import ChannelMoments, LogitMoments, Moments
from corp_onnx.rewrite import AttentionChange, MlpChange
from corp_onnx.solve.mlp import MlpSolution, compensate_mlp, drop_mlp
from corp_onnx.solve.qk import QkSolution, compensate_qk, drop_qk, select_logit_energy
from corp_onnx.solve.ridge import DEFAULT_RIDGE
from corp_onnx.solve.select import ChannelOrder, order_by_score, rank_energy, rank_magnitude

Rank = Literal["energy", "magnitude", "taylor"]


@dataclass(frozen=True, slots=True)
class Cut:
    """How units are cut.

    Args:
        mlp: fraction of the hidden channels removed, in [0, 1).
        attn: fraction of every query/key head removed, in [0, 1).
        rank: which hidden channels go first; `taylor` is not the paper's. Has no effect on queries and keys, which
            always go by logit energy.
        ridge: lambda relative to the mean diagonal of what is inverted.
        compensate: False cuts only, as an ablation.
    """

    mlp: float = 0.5
    attn: float = 0.5
    rank: Rank = "energy"
    ridge: float = DEFAULT_RIDGE
    compensate: bool = True

    def __post_init__(self) -> None:
        for name, value in (("mlp", self.mlp), ("attn", self.attn)):
            if not 0 <= value < 1:
                raise OptionError(f"--{name} is the fraction removed and must lie in [0, 1); found {value:g}.")
        if not (np.isfinite(self.ridge) and self.ridge > 0):
            raise OptionError(f"--ridge must be a number above 0; found {self.ridge:g}.")
        if self.rank not in ("energy", "magnitude", "taylor"):
            raise OptionError(f"--rank must be energy, magnitude or taylor; found {self.rank}.")


@dataclass(frozen=True, slots=True, eq=False)
class UnitPlan:
    """One unit's solution: `solved` goes into the model, `dropped` is the same width without compensation."""

    key: str
    unit_key: str
    kind: Literal["mlp", "qk", "vo"]
    width_before: int
    width_after: int
    condition_number: float
    solved: MlpChange | AttentionChange
    dropped: MlpChange | AttentionChange


def kept_width(width: int, removed: float) -> int:
    """Channels that stay when a fraction is removed: rounded, and at least one."""
    return max(1, round(width * (1 - removed)))


def plan_paper(
    graph: Graph, units: Units, moments: Moments, cut: Cut, importances: Mapping[str, np.ndarray] | None = None
) -> tuple[UnitPlan, ...]:
    """The paper's method on every unit, the same fraction everywhere.

    Args:
        units: those to cut; `moments` holds each under its key.
        importances: of every MLP's channels, by unit key, for the rank `taylor`.
    """
    ranks = importances or {}
    plans = [_plan_mlp(graph, unit, moments[unit.key], cut, ranks.get(unit.key)) for unit in units.mlps]
    plans += [_plan_qk(unit, moments[unit.qk_key], cut) for unit in units.qk_pairs]
    return tuple(plans)


def _plan_mlp(graph: Graph, unit: MlpUnit, moments: object, cut: Cut, importance: np.ndarray | None) -> UnitPlan:
    assert isinstance(moments, ChannelMoments)
    weight = unit.down.read_weight(graph).astype(np.float64)
    stored = unit.down.read_bias(graph)
    bias = np.zeros(unit.down.d_out) if stored is None else stored.astype(np.float64)
    order = order_channels(moments, weight, cut.rank, importance)
    kept_idx = order.kept_idx(kept_width(unit.d_hidden, cut.mlp))
    dropped = drop_mlp(weight, bias, kept_idx)
    solved = compensate_mlp(weight, bias, moments, kept_idx, cut.ridge) if cut.compensate else dropped
    return UnitPlan(
        unit.key, unit.key, "mlp", unit.d_hidden, len(kept_idx), solved.condition_number,
        mlp_change(solved), mlp_change(dropped),
    )  # fmt: skip


def order_channels(
    moments: ChannelMoments, weight: np.ndarray, rank: Rank, importance: np.ndarray | None
) -> ChannelOrder:
    """The order of an MLP's channels by a rank that looks at each alone; `importance` is that of `taylor`."""
    if rank == "taylor":
        assert importance is not None
        return order_by_score(importance)
    return rank_energy(moments) if rank == "energy" else rank_magnitude(weight)


def mlp_change(solution: MlpSolution) -> MlpChange:
    """A solution as the rewrite takes it."""
    return MlpChange(solution.kept_idx, solution.weight, solution.bias)


def _plan_qk(unit: AttentionUnit, moments: object, cut: Cut) -> UnitPlan:
    assert isinstance(moments, LogitMoments)
    kept_idx = select_logit_energy(moments, kept_width(unit.d_qk, cut.attn))
    dropped = drop_qk(kept_idx, unit.d_qk)
    solved = compensate_qk(moments.q_gram, moments.k_gram, kept_idx, cut.ridge) if cut.compensate else dropped
    return UnitPlan(
        unit.qk_key, unit.key, "qk", unit.d_qk, kept_idx.shape[1], solved.condition_number,
        qk_change(solved), qk_change(dropped),
    )  # fmt: skip


def qk_change(solution: QkSolution) -> AttentionChange:
    """A solution as the rewrite takes it."""
    return AttentionChange(q_map=solution.q_map, k_map=solution.k_map)


def gather_changes(plans: tuple[UnitPlan, ...]) -> dict[str, MlpChange | AttentionChange]:
    """The changes by the key that the rewrite knows a unit by; an attention's pairs are joined into one change."""
    changes: dict[str, MlpChange | AttentionChange] = {}
    for plan in plans:
        known = changes.get(plan.unit_key)
        if isinstance(known, AttentionChange) and isinstance(plan.solved, AttentionChange):
            new = plan.solved
            changes[plan.unit_key] = AttentionChange(
                *(a if a is not None else b for a, b in (
                    (new.q_map, known.q_map), (new.k_map, known.k_map), (new.v_map, known.v_map),
                    (new.out_weight, known.out_weight), (new.out_bias, known.out_bias),
                ))
            )  # fmt: skip
        else:
            changes[plan.unit_key] = plan.solved
    return changes
