"""What a sweep makes: budgets by preset, or fractions by target, variant and rank -> settings of `prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from corp_onnx.errors import OptionError
from corp_onnx.options import OF_IMAGES, OF_RUN, choose_settings
from corp_onnx.settings import METHODS, PAPER, Budget, PruneSettings

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
TARGETS: dict[str, tuple[str, ...]] = {"mlp": ("mlp",), "attn": ("attn",), "both": ("mlp", "attn")}
"""What a fraction is removed from, by the options of `prune`."""

VARIANTS = {"compensated": True, "plain": False}
RANKS = ("energy", "magnitude", "weighted")
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """Which models a sweep makes, and what it measures of them.

    Args:
        budgets: shares of the MACs that are kept; none where there are `fractions`.
        presets: methods side by side. `paper` takes the same fraction of everything that fits the budget.
        fractions: removed in place of budgets, by the paper's method.
        targets: that they are removed from: mlp, attn (queries and keys), both.
        variants: compensated, or plain: cut only.
        ranks: of hidden channels; where only attention is cut they make no difference, and the first is taken.
        precisions: fp32, and int8 (dynamic) behind it.
        bench: measure how fast every point is, in turns with the dense model.
        batch: images at a time for that.
        keep: keep the model files.

    Raises:
        OptionError: a name that is not known or a number out of range.
    """

    budgets: tuple[float, ...] = ()
    presets: tuple[str, ...] = ("best",)
    fractions: tuple[float, ...] = ()
    targets: tuple[str, ...] = ("both",)
    variants: tuple[str, ...] = ("compensated",)
    ranks: tuple[str, ...] = ("energy",)
    precisions: tuple[str, ...] = ("fp32",)
    bench: bool = False
    batch: int = 1
    keep: bool = False

    def __post_init__(self) -> None:
        if self.budgets and self.fractions:
            raise OptionError("--budgets and --fractions both say the sizes: give one of them.")
        if not (self.budgets or self.fractions):
            object.__setattr__(self, "budgets", BUDGETS)
        known = {"presets": METHODS, "targets": TARGETS, "variants": VARIANTS, "ranks": RANKS, "precisions": PRECISIONS}
        for name, allowed in known.items():
            found = getattr(self, name)
            unknown = [word for word in found if word not in allowed]
            if unknown or not found:
                flag = "precision" if name == "precisions" else name
                raise OptionError(f"--{flag} takes {', '.join(allowed)}; found {', '.join(unknown) or 'none'}.")
        for name in ("budgets", "fractions"):
            for value in getattr(self, name):
                if not 0 < value < 1:
                    raise OptionError(f"--{name} lie between 0 and 1; found {value:g}.")


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A model that is to be made: see `SweepPoint`."""

    name: str
    series: str
    kind: str
    asked: float
    settings: PruneSettings


def plan_points(sweep: SweepSettings, options: Mapping[str, Any]) -> tuple[PlannedPoint, ...]:
    """Curve by curve.

    Args:
        options: of `prune`, by name, but sizes and `preset`.
    """
    if sweep.fractions:
        return _plan_fractions(sweep, options)
    points = [
        PlannedPoint(f"{preset}-{budget:g}", preset, "macs", budget, _choose(preset, budget, options))
        for preset in sweep.presets for budget in sweep.budgets
    ]  # fmt: skip
    return tuple(points)


def _choose(preset: str, budget: float, options: Mapping[str, Any]) -> PruneSettings:
    """The options of the method are those of `best`; the paper's stands as it is."""
    if preset != "paper":
        return choose_settings(preset=preset, macs=budget, **options)
    own = {name: value for name, value in options.items() if name in (*OF_RUN, *OF_IMAGES)}
    settings = choose_settings(macs=budget, **own)
    return replace(settings, method=replace(PAPER, widths=Budget("macs", budget, "uniform")))


def _plan_fractions(sweep: SweepSettings, options: Mapping[str, Any]) -> tuple[PlannedPoint, ...]:
    points: list[PlannedPoint] = []
    for target, variant, rank in _list_curves(sweep):
        for fraction in sweep.fractions:
            sizes = dict.fromkeys(TARGETS[target], fraction)
            chosen = {**options, **sizes, "rank": rank, "compensate": VARIANTS[variant]}
            settings = choose_settings(preset="paper", **chosen)
            series = f"{target}-{variant}-{rank}"
            points.append(PlannedPoint(f"{series}-{fraction:g}", series, "removed", fraction, settings))
    return tuple(points)


def _list_curves(sweep: SweepSettings) -> list[tuple[str, str, str]]:
    """(target, variant, rank), each pair of curves that would be the same once."""
    return [
        (target, variant, rank)
        for target in sweep.targets
        for variant in sweep.variants
        for rank in (sweep.ranks[:1] if target == "attn" else sweep.ranks)
    ]
