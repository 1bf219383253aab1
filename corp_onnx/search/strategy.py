"""Settings -> what changes in a model: the two presets, and the search for a budget.

    paper   the same fraction of every unit, ranked and compensated as in arXiv 2602.05243       plan.py
    best    OBS, low-rank logits and values, widths by allocation, refit on the pruned stream    best.py, refit/
            --allocate amp: MLPs only, each as far as a threshold on the loss allows              amp.py

A budget is a kept fraction of MACs or parameters, or an agreement: the smallest model whose top-1 answers agree with
the dense ones on at least that share of the held-back images. The search re-uses moments, curves and probes; a step
costs a rewrite and a run over the held-back images, and a refit where it has to be exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from corp_onnx.errors import OptionError
from corp_onnx.graph import count_parameters
from corp_onnx.graph.cost import count_macs
from corp_onnx.refit import refit_changes
from corp_onnx.refit.stream import StreamWalk, find_walk
from corp_onnx.refit.token_weights import weigh_stops
from corp_onnx.rewrite import apply_changes
from corp_onnx.search.amp import describe_widths, search_widths
from corp_onnx.search.best import (
    BestSettings,
    UnitChoice,
    probe_choices,
    solve_widths,
    trace_choices,
)
from corp_onnx.search.evaluator import Evaluator, draw_evaluator, prepare_evaluator
from corp_onnx.search.plan import Cut, gather_changes, kept_width, plan_paper
from corp_onnx.search.problem import Outcome, Situation
from corp_onnx.search.widths import (
    Allowance,
    CostKind,
    allocate_choices,
    favour_late,
    find_depths,
    require_narrower,
    uniform_widths,
)
from corp_onnx.settings import Budget, PruneSettings

PROBE_IMAGES = 64
"""Calibration images for the probes: their KL ranks units, which needs fewer images than measuring accuracy."""

N_SEARCH = 7
"""Bisections of the kept fraction by agreement of the one-shot solution: to less than one percent of the MACs."""

N_REFIT_SEARCH = 3
"""Refits that the search may spend; each costs about two calibrations."""


def follow_settings(situation: Situation, settings: PruneSettings) -> Outcome:
    """The strategy that a person's settings name."""
    if settings.preset == "paper":
        return follow_paper(situation, settings.fractions or Cut())
    if settings.fractions is not None:
        return follow_fractions(situation, settings.best, settings.fractions)
    if settings.by_threshold:
        return follow_threshold(situation, settings.best)
    assert settings.goal is not None
    return follow_best(situation, settings.best, settings.goal)


def follow_paper(situation: Situation, cut: Cut) -> Outcome:
    """The method of the paper."""
    s = situation
    plans = plan_paper(s.graph, s.units, s.moments, cut, s.importances)
    return Outcome(gather_changes(plans), plans)


def follow_fractions(situation: Situation, settings: BestSettings, cut: Cut) -> Outcome:
    """The solvers of `best` at the paper's widths: the same fraction of every MLP and of every query/key pair."""
    choices = trace_units(situation, settings)
    removed = {"mlp": cut.mlp, "qk": cut.attn, "vo": 0.0}
    widths = {c.key: kept_width(c.width, removed[c.kind]) for c in choices}
    return solve_fixed(situation, settings, choices, widths)


def follow_threshold(situation: Situation, settings: BestSettings) -> Outcome:
    """Every MLP as narrow as the threshold allows when it alone is pruned, then the refit; attention stays whole."""
    s = situation
    choices = trace_units(s, settings)
    evaluator = draw_probes(s)
    widths = search_widths(s.graph, s.blocks, choices, evaluator, settings, s.progress)
    note = describe_widths(choices, widths, settings.amp_threshold, evaluator.n_images)
    return replace(solve_fixed(s, settings, choices, widths), notes=(note,))


def solve_fixed(
    situation: Situation, settings: BestSettings, choices: tuple[UnitChoice, ...], widths: dict[str, int]
) -> Outcome:
    """The solutions at given widths, refitted where settings and graph allow it."""
    plans = solve_widths(choices, widths)
    search = BestSearch(situation, settings, choices, {}, find_walk(situation.blocks))
    return search.refit(Outcome(gather_changes(plans), plans))[0]


def trace_units(situation: Situation, settings: BestSettings) -> tuple[UnitChoice, ...]:
    """The error curve of every unit of a situation."""
    s = situation
    return trace_choices(s.graph, s.blocks, s.units, s.moments, settings, s.importances, s.unit_facts)


def draw_probes(situation: Situation) -> Evaluator:
    """The calibration images that probes are asked of, with the dense model's answers."""
    s = situation
    return draw_evaluator(
        s.graph.model, s.calibration, PROBE_IMAGES, s.seed, batch_size=s.batch_size, provider=s.provider
    )


@dataclass(slots=True, eq=False)
class BestSearch:
    """The curves and probes of one model, and the solutions that a budget asks of them."""

    situation: Situation
    settings: BestSettings
    choices: tuple[UnitChoice, ...]
    kappas: dict[str, float]
    walk: StreamWalk
    _judge: Evaluator | None = field(default=None)
    _weights: dict[str, np.ndarray] | None = field(default=None)

    @property
    def refits(self) -> bool:
        """Whether settings and graph allow a refit."""
        return self.settings.refit and self.settings.compensate and bool(self.walk.stops)

    def widths(self, kind: CostKind, value: float, *, before_refit: bool = False) -> dict[str, int]:
        """The width of every unit under a budget; another where a refit will follow."""
        graph, cost = self.situation.graph, self.situation.cost
        if kind == "macs":
            allowance = Allowance(kind, value, count_macs(graph).total, cost.total)
        else:
            allowance = Allowance(kind, value, count_parameters(graph), count_parameters(graph))
        if self.settings.allocate == "search":
            kappas = self.kappas
            if before_refit and self.refits and self.settings.favour_late:
                kappas = favour_late(kappas, find_depths(self.situation.blocks))
            return allocate_choices(self.choices, kappas, self.settings, allowance)
        return uniform_widths(self.choices, self.settings, allowance)

    def one_shot(self, kind: CostKind, value: float) -> tuple[Outcome, onnx.ModelProto]:
        """The solution of a budget before any refit, and the graph it makes."""
        outcome = self._solve(self.widths(kind, value), value)
        return outcome, apply_changes(self.situation.graph, self.situation.blocks, outcome.changes, {})

    def refitted(self, kind: CostKind, value: float) -> tuple[Outcome, onnx.ModelProto]:
        """The solution of a budget with every last product solved again on the pruned stream."""
        return self.refit(self._solve(self.widths(kind, value, before_refit=True), value))

    def _solve(self, widths: dict[str, int], value: float) -> Outcome:
        plans = solve_widths(self.choices, widths)
        return Outcome(gather_changes(plans), plans, value)

    def refit(self, outcome: Outcome) -> tuple[Outcome, onnx.ModelProto]:
        """A one-shot solution with every last product solved again, where settings and graph allow it."""
        s = self.situation
        proto = apply_changes(s.graph, s.blocks, outcome.changes, {})
        if not self.refits or not outcome.plans:
            return outcome, proto
        changes = refit_changes(
            s.graph, self.walk, outcome.changes, proto, s.calibration, self._token_weights(),
            batch_size=s.batch_size, provider=s.provider, progress=s.progress,
        )  # fmt: skip
        return replace(outcome, changes=changes), apply_changes(s.graph, s.blocks, changes, {})

    @property
    def judge(self) -> Evaluator:
        """The held-back images with the dense model's answers; computed when first asked."""
        s = self.situation
        if self._judge is None:
            self._judge = prepare_evaluator(s.graph.model, s.held_out, batch_size=s.batch_size, provider=s.provider)
        return self._judge

    def _token_weights(self) -> dict[str, np.ndarray]:
        """Computed by the first refit, the same for all; none where tokens are to count alike."""
        s = self.situation
        if not self.settings.weigh_tokens:
            return {}
        if self._weights is None:
            self._weights = weigh_stops(s.graph, self.walk, s.calibration, batch_size=s.batch_size, provider=s.provider)
        return self._weights

    def agreement(self, proto: onnx.ModelProto) -> float:
        """Share of the held-back images with the dense model's first answer.

        Raises:
            OptionError: the model's first output is not logits.
        """
        s = self.situation
        tally = self.judge.evaluate(proto)
        if tally.n_agree is None:
            raise OptionError(
                f"--min-agreement needs answers to compare, and the output '{s.graph.outputs[0]}' of this model is not "
                "[images, classes]. Give --macs or --params."
            )
        return tally.n_agree / tally.n_samples


def prepare_search(situation: Situation, settings: BestSettings) -> BestSearch:
    """Error curves of every unit and, for allocation, one probe each."""
    s = situation
    choices = trace_units(s, settings)
    require_narrower(choices, settings.align)
    kappas: dict[str, float] = {}
    if settings.allocate == "search":
        kappas = probe_choices(s.graph, s.blocks, choices, draw_probes(s), settings.align, s.progress)
    return BestSearch(situation, settings, choices, kappas, find_walk(s.blocks))


def follow_best(situation: Situation, settings: BestSettings, budget: Budget) -> Outcome:
    """The best solution under a budget."""
    search = prepare_search(situation, settings)
    notes = ()
    if settings.refit and not search.walk.stops:
        notes = (f"no refit on the pruned stream: {search.walk.reason or 'no residual addition was found'}.",)
    if budget.kind != "agreement":
        outcome, _ = search.refitted(budget.kind, budget.value)
    else:
        outcome = search_agreement(search, budget.value)
    return Outcome(outcome.changes, outcome.plans, outcome.kept_fraction, (*notes, *outcome.notes))


def search_agreement(search: BestSearch, wanted: float) -> Outcome:
    """The smallest kept fraction of the MACs found whose agreement on the held-back images is at least `wanted`.

    First by bisection without refit; then, where there is a refit, by up to N_REFIT_SEARCH solutions with it below
    that, guided by what the refit gained: the smallest that still agrees is taken.

    Raises:
        OptionError: no smaller model agrees that much.
    """
    low, high = smallest_fraction(search), whole_fraction(search)
    curve = {high: 1.0}
    for _ in range(N_SEARCH):
        middle = (low + high) / 2
        curve[middle] = search.agreement(search.one_shot("macs", middle)[1])
        low, high = (low, middle) if curve[middle] >= wanted else (middle, high)
    if not search.refits:
        if high == 1.0:
            raise OptionError(_nothing_found(search, wanted))
        outcome = search.one_shot("macs", high)[0]
        return Outcome(outcome.changes, outcome.plans, high, (_found(search, high, curve[high]),))
    return _search_refitted(search, wanted, curve, high)


def _search_refitted(search: BestSearch, wanted: float, curve: dict[float, float], start: float) -> Outcome:
    """Try refitted solutions from where one-shot agreement ends, going down while they agree, up when they do not."""
    fractions = np.array(sorted(curve))
    agreements = np.maximum.accumulate([curve[f] for f in fractions])
    below, above = smallest_fraction(search), whole_fraction(search)
    best: tuple[Outcome, float] | None = None
    trial = min(start, above - FIRST_STEP)
    for _ in range(N_REFIT_SEARCH):
        outcome, proto = search.refitted("macs", trial)
        found = search.agreement(proto)
        if found >= wanted:
            best, above = (outcome, found), trial
        else:
            below = trial
        gain = found - float(np.interp(trial, fractions, agreements))
        aim = float(np.interp(wanted - gain, agreements, fractions))
        trial = aim if below < aim < above else (below + above) / 2
        if above - below < MIN_STEP:
            break
    if best is None and whole_fraction(search) == 1.0:
        raise OptionError(_nothing_found(search, wanted))
    outcome, agreement = best or (Outcome({}, (), whole_fraction(search)), 1.0)
    assert outcome.kept_fraction is not None
    return Outcome(
        outcome.changes, outcome.plans, outcome.kept_fraction, (_found(search, outcome.kept_fraction, agreement),)
    )


FIRST_STEP = 0.02
"""Of the MACs, below the whole model: where the search with refits begins if one-shot agreement ends above."""

MIN_STEP = 0.005
"""Of the MACs; a finer search is below what alignment to 8 can follow."""


def smallest_fraction(search: BestSearch) -> float:
    """The kept fraction of the MACs with every unit at its smallest aligned width, and a little above for rounding."""
    align = search.settings.align
    saved = sum(c.macs_per_width * (c.width - min(align, c.width)) for c in search.choices)
    return whole_fraction(search) - saved / count_macs(search.situation.graph).total + 1e-9


def whole_fraction(search: BestSearch) -> float:
    """The kept fraction of the MACs with every unit at full width: below 1 where tokens are left out."""
    return search.situation.cost.total / count_macs(search.situation.graph).total


def _found(search: BestSearch, fraction: float, agreement: float) -> str:
    n = search.judge.n_images
    return f"{fraction:.1%} of the MACs keep {agreement:.1%} of the answers on {n} held-back images."


def _nothing_found(search: BestSearch, wanted: float) -> str:
    n = search.judge.n_images
    return (
        f"--min-agreement {wanted:g}: no smaller model agrees that much with the dense one on {n} held-back images. "
        "Ask for less, give more calibration images, or give --macs."
    )
