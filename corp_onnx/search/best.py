"""Moments + weights + a budget -> widths and solutions: the method beyond the paper (`--preset best`).

MLP   greedy OBS order, ridge compensation                     solve/obs.py, solve/mlp.py
QK    low-rank logits over all maps, keys centred by image     solve/qk.py
VO    low-rank values, output projection refitted over heads   solve/vo.py
widths by a Lagrangian search over aligned widths, the loss of unit u at width w taken as
    kappa_u * err_u(w),   kappa_u = probe_u / err_u(reference width),
where probe_u is the loss of the model with that unit alone pruned, and err_u its closed-form error curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from corp_onnx.blocks import AttentionUnit, Blocks, MlpUnit
from corp_onnx.calibrate.collect import Units
from corp_onnx.errors import OptionError
from corp_onnx.graph import Graph
from corp_onnx.inspect import describe_units
from corp_onnx.metrics import tally_loss
from corp_onnx.moments.values import ChannelMoments, LogitMoments, Moments
from corp_onnx.results import UnitFacts
from corp_onnx.rewrite import AttentionChange, apply_changes
from corp_onnx.search.evaluator import Evaluator
from corp_onnx.search.plan import UnitPlan, gather_changes, mlp_change, order_channels, qk_change
from corp_onnx.solve.mlp import compensate_mlp, drop_mlp
from corp_onnx.solve.obs import rank_obs
from corp_onnx.solve.qk import compensate_qk, drop_qk, low_rank_logits, select_logit_energy, trace_logit_curve
from corp_onnx.solve.qk_images import refine_logits
from corp_onnx.solve.ridge import DEFAULT_RIDGE
from corp_onnx.solve.select import trace_error_curve
from corp_onnx.solve.vo import compensate_vo, trace_value_curve

PROBE_FRACTION = 0.5
"""Width of a probe: deep enough that its KL stands above rounding, near the widths that budgets choose."""

DEFAULT_THRESHOLD = 0.003
"""KL in nats that one MLP may cost with `--allocate amp`; on DeiT-Tiny 0.0087 keeps 62 % of the MLPs and 78 % of the
answers, which is too little for a default."""

N_IMAGE_GRAMS = 64
"""For `--qk per-image`; 25 MB a block of twelve heads of 64."""


@dataclass(frozen=True, slots=True)
class BestSettings:
    """The ingredients, each of which can be switched off on its own.

    Args:
        ridge: lambda of MLP and VO compensation, relative to the mean diagonal.
        rank: order of the hidden channels: `obs`, the paper's `energy` or `magnitude`, AMP's `taylor` (gradients/).
        qk: `low-rank`, the same refined `per-image` (solve/qk_images.py), or the paper's kept dimensions with
            `sylvester` compensation.
        compensate: False cuts only, as an ablation; the refit would undo that and is left out.
        vo: prune values as well.
        align: widths are multiples of this (a unit may also stay whole).
        equal_heads: query/key and value widths of a block are the same, as fused attention kernels want.
        allocate: `search` widths under a budget; `uniform` removes the same fraction everywhere; `amp` takes from every
            MLP what a threshold allows, without a budget (amp.py).
        amp_threshold: the KL in nats by which one MLP may move the answers with `amp`; no effect otherwise.
        refit: solve output projections and second products again on the pruned stream (refit/).
        weigh_tokens: in the refit, count token positions by how much the answers depend on them (token_weights.py).
        favour_late: where a refit follows, an error of an early unit counts less in the search for widths, since every
            later unit mends part of it (widths.py); no effect without a refit.
        trim: leave out what the last block computes for tokens that no output reads (tokens/); no effect on answers.
    """

    ridge: float = DEFAULT_RIDGE
    rank: Literal["obs", "energy", "magnitude", "taylor"] = "obs"
    qk: Literal["low-rank", "per-image", "sylvester"] = "low-rank"
    compensate: bool = True
    vo: bool = True
    align: int = 8
    equal_heads: bool = False
    allocate: Literal["search", "uniform", "amp"] = "search"
    amp_threshold: float = DEFAULT_THRESHOLD
    refit: bool = True
    weigh_tokens: bool = True
    favour_late: bool = True
    trim: bool = True

    @property
    def n_image_grams(self) -> int:
        """How many images the moments keep query and key Grams of, one by one."""
        return N_IMAGE_GRAMS if self.qk == "per-image" else 0

    def __post_init__(self) -> None:
        if self.align < 1:
            raise OptionError(f"--align must be 1 or more; found {self.align}.")
        if self.allocate not in ("search", "uniform", "amp"):
            raise OptionError(f"--allocate must be search, uniform or amp; found {self.allocate}.")
        if not self.amp_threshold > 0:
            raise OptionError(f"--amp-threshold is a KL in nats and must be above 0; found {self.amp_threshold:g}.")


@dataclass(frozen=True, slots=True, eq=False)
class UnitChoice:
    """Every width of one unit: its closed-form error at 0..full, what a channel costs, and how to solve for a width."""

    key: str
    kind: Literal["mlp", "qk", "vo"]
    width: int
    error_curve: Float[np.ndarray, " full+1"]
    macs_per_width: float
    params_per_width: float
    solve: Callable[[int], UnitPlan]


def trace_choices(
    graph: Graph,
    blocks: Blocks,
    units: Units,
    moments: Moments,
    settings: BestSettings,
    importances: Mapping[str, np.ndarray] | None = None,
    unit_facts: Sequence[UnitFacts] = (),
) -> tuple[UnitChoice, ...]:
    """The error curve of every unit; the OBS order costs n^3 for an MLP, the rest is small.

    Args:
        importances: of every MLP's channels, by unit key; the rank `taylor` needs them and no other looks at them.
        unit_facts: what every unit costs, where that is not what it costs in the graph as it stands.
    """
    ranks = importances or {}
    facts = {u.key: u for u in unit_facts or describe_units(graph, blocks)}
    choices: list[UnitChoice] = []
    for unit in units.mlps:
        choices.append(_mlp_choice(graph, unit, moments[unit.key], settings, facts[unit.key], ranks.get(unit.key)))
    for unit in units.qk_pairs:
        choices.append(_qk_choice(unit, moments[unit.qk_key], settings, facts[unit.qk_key]))
    for unit in units.vo_pairs:
        choices.append(_vo_choice(graph, unit, moments[unit.vo_key], settings, facts[unit.vo_key]))
    return tuple(choices)


def _slopes(facts, width: int) -> tuple[float, float]:
    return facts.macs / width, facts.n_parameters / width


def _mlp_choice(graph: Graph, unit: MlpUnit, moments, settings: BestSettings, facts, importance) -> UnitChoice:
    assert isinstance(moments, ChannelMoments)
    weight = unit.down.read_weight(graph).astype(np.float64)
    stored = unit.down.read_bias(graph)
    bias = np.zeros(unit.down.d_out) if stored is None else stored.astype(np.float64)
    if settings.rank == "obs":
        order = rank_obs(moments, weight, settings.ridge)
    else:
        order = order_channels(moments, weight, settings.rank, importance)
        order = trace_error_curve(order, weight, moments.covariance, settings.ridge)
    assert order.error_curve is not None

    def solve(width: int) -> UnitPlan:
        kept_idx = order.kept_idx(width)
        dropped = drop_mlp(weight, bias, kept_idx)
        solved = compensate_mlp(weight, bias, moments, kept_idx, settings.ridge) if settings.compensate else dropped
        return UnitPlan(
            unit.key, unit.key, "mlp", unit.d_hidden, width, solved.condition_number,
            mlp_change(solved), mlp_change(dropped),
        )  # fmt: skip

    return UnitChoice(unit.key, "mlp", unit.d_hidden, order.error_curve, *_slopes(facts, unit.d_hidden), solve)


def _qk_choice(unit: AttentionUnit, moments, settings: BestSettings, facts) -> UnitChoice:
    assert isinstance(moments, LogitMoments)
    q_gram, k_gram = moments.q_gram, moments.k_centred_gram

    def solve(width: int) -> UnitPlan:
        kept_idx = select_logit_energy(moments, width)
        dropped = solution = drop_qk(kept_idx, unit.d_qk)
        if settings.compensate and settings.qk == "sylvester":
            solution = compensate_qk(q_gram, moments.k_gram, kept_idx, settings.ridge)
        elif settings.compensate:
            solution = low_rank_logits(q_gram, k_gram, width)
        if settings.compensate and settings.qk == "per-image":
            assert moments.image_q_gram is not None
            assert moments.image_k_gram is not None
            solution = refine_logits(solution, moments.image_q_gram, moments.image_k_gram)
        return UnitPlan(
            unit.qk_key, unit.key, "qk", unit.d_qk, width, solution.condition_number,
            qk_change(solution), qk_change(dropped),
        )  # fmt: skip

    return UnitChoice(
        unit.qk_key, "qk", unit.d_qk, trace_logit_curve(q_gram, k_gram), *_slopes(facts, unit.d_qk), solve
    )


def _vo_choice(graph: Graph, unit: AttentionUnit, moments, settings: BestSettings, facts) -> UnitChoice:
    assert isinstance(moments, ChannelMoments)
    assert unit.out is not None
    weight = unit.out.linear.read_weight(graph).astype(np.float64)
    stored = unit.out.linear.read_bias(graph)
    bias = np.zeros(len(weight)) if stored is None else stored.astype(np.float64)

    def solve(width: int) -> UnitPlan:
        solution = compensate_vo(weight, bias, moments, unit.n_heads, width, settings.ridge)
        solved = AttentionChange(v_map=solution.v_map, out_weight=solution.weight, out_bias=solution.bias)
        dropped = _drop_vo(weight, bias, moments, unit, width)
        return UnitPlan(
            unit.vo_key, unit.key, "vo", unit.d_v, width, solution.condition_number,
            solved if settings.compensate else dropped, dropped,
        )  # fmt: skip

    curve = trace_value_curve(weight, moments, unit.n_heads, settings.ridge)
    return UnitChoice(unit.vo_key, "vo", unit.d_v, curve, *_slopes(facts, unit.d_v), solve)


def _drop_vo(weight, bias, moments: ChannelMoments, unit: AttentionUnit, width: int) -> AttentionChange:
    """The plain cut: each head keeps its dimensions of most output energy."""
    energy = (moments.energy * np.square(weight).sum(axis=0)).reshape(unit.n_heads, -1)
    kept_idx = np.sort(np.argsort(-energy, axis=1, kind="stable")[:, :width], axis=1)
    columns = (kept_idx + np.arange(unit.n_heads)[:, None] * unit.d_v).reshape(-1)
    return AttentionChange(v_map=np.eye(unit.d_v)[kept_idx], out_weight=weight[:, columns], out_bias=bias)


def probe_choices(
    graph: Graph,
    blocks: Blocks,
    choices: Sequence[UnitChoice],
    evaluator: Evaluator,
    align: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """kappa of every unit: the loss of the model with that unit alone at the reference width, over its error there."""
    kappas: dict[str, float] = {}
    for done, choice in enumerate(choices, start=1):
        width = reference_width(choice, align)
        plan = choice.solve(width)
        tally = evaluator.evaluate(apply_changes(graph, blocks, gather_changes((plan,)), {}))
        error = float(choice.error_curve[width])
        kappas[choice.key] = tally_loss(tally) / error if error > 0 else 0.0
        if progress:
            progress("probe", done, len(choices))
    return kappas


def reference_width(choice: UnitChoice, align: int) -> int:
    """The aligned width nearest to the probe fraction, below the whole."""
    wanted = max(align, round(choice.width * PROBE_FRACTION / align) * align)
    return wanted if wanted < choice.width else max(1, choice.width // 2)


def solve_widths(choices: Sequence[UnitChoice], widths: dict[str, int]) -> tuple[UnitPlan, ...]:
    """The solutions of every unit that does not stay whole."""
    return tuple(c.solve(widths[c.key]) for c in choices if widths[c.key] < c.width)
