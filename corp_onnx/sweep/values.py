"""What `sweep` returns and keeps in sweep.json: a row a model, as what other verbs return (results.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.results import Environment, Metric, Result, Rows
from corp_onnx.settings import DEFAULT_AGREEMENT, DEFAULT_SIMILARITY

COLUMNS = ("name", "series", "asked", "precision", "images", "metric", "value", "low", "high")
"""Of the tidy table."""


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One model: how it was made, what it costs, and what it keeps.

    Attributes:
        name: of its files.
        series: the curve that it is on: a preset, or target, variant and rank.
        kind: of what `asked` is: `macs` kept, or the fraction `removed`; `dense` of the model itself.
        precision: fp32, or int8 behind it.
        kept_macs, kept_parameters, kept_bytes: shares of the dense model's; None where there is no model.
        kept: agreement or similarity with the dense model on held-back images, which chose nothing.
        held_out: all figures of the output that is judged, on the same.
        scores: the same on the images that were given besides; top-1 where they are labelled.
        speedup: over the dense model, measured in turns, with its quartiles.
        seconds: that it took to make and measure it.
        file: where it lies; empty where it was not kept.
        problem: why there is no such model, in a sentence; else empty.
        key: of everything that it was made from: it is not made again.
    """

    name: str
    series: str
    kind: str
    asked: float
    precision: str
    kept_macs: float | None = None
    kept_parameters: float | None = None
    kept_bytes: float | None = None
    kept: Metric | None = None
    held_out: tuple[Metric, ...] = ()
    scores: tuple[Metric, ...] = ()
    speedup: Metric | None = None
    seconds: float = 0.0
    file: str = ""
    problem: str = ""
    key: str = ""

    @property
    def cost(self) -> float | None:
        """What it costs beside the dense model: time where that was measured, else MACs."""
        return self.kept_macs if self.speedup is None else 1 / self.speedup.value

    def rows(self) -> list[tuple[Any, ...]]:
        """Of the tidy table: one a metric."""
        costs = {"kept_macs": self.kept_macs, "kept_parameters": self.kept_parameters, "kept_bytes": self.kept_bytes}
        facts = [Metric(name, value) for name, value in costs.items() if value is not None]
        facts += [self.speedup] if self.speedup else []
        head = (self.name, self.series, self.asked, self.precision)
        sets = (("", facts), ("held out", self.held_out), ("given", self.scores))
        return [(*head, images, m.name, m.value, m.low, m.high) for images, found in sets for m in found]


@dataclass(frozen=True, slots=True, repr=False)
class Sweep(Result):
    """What `sweep` returns.

    Attributes:
        model: path of the dense file.
        points: the dense model first, then curve by curve, each from the largest to the smallest.
        settings: of the run.
        images: path of the images that were given to judge; empty where none were.
        n_held_out: images that `kept` is of.
        seconds: of this run, which made `n_made` of the points.
        command: what was typed.
    """

    verb: ClassVar[str] = "sweep"

    model: str
    model_sha256: str
    points: tuple[SweepPoint, ...]
    settings: dict[str, Any]
    images: str
    n_images: int
    n_held_out: int
    confidence: float
    n_made: int
    seconds: float
    warnings: tuple[str, ...]
    environment: Environment
    command: str = ""

    @property
    def pareto(self) -> tuple[str, ...]:
        """Names of the points that no other beats: of no higher cost, and keeping as much or more on held-back images.

        Only those of one precision are compared by MACs.
        """
        found = [p for p in self.points if p.cost is not None and p.kept is not None]
        return tuple(p.name for p in found if not any(_beats(other, p) for other in found))

    @property
    def recommended(self) -> SweepPoint | None:
        """The cheapest point whose interval stays above what `prune` promises without a budget, if any does."""
        able = [p for p in self.points if p.name in self.pareto and p.kept is not None and _is_safe(p.kept)]
        return min(able, key=lambda p: p.cost or 1.0, default=None)

    @property
    def advice(self) -> str:
        """The recommendation in a sentence."""
        point = self.recommended
        n = self.n_held_out
        if point is None or point.kept is None:
            return (
                f"no point keeps {DEFAULT_AGREEMENT:.0%} of the answers (or a similarity of {DEFAULT_SIMILARITY}) by "
                f"the lower end of its interval on {n} held-back images: give more images, or budgets nearer to 1."
            )
        cost = f"{point.kept_macs:.0%} of the MACs" if point.kept_macs is not None else "its cost"
        faster = f", {point.speedup.value:.2f} times as fast" if point.speedup else ""
        kept = f"{name_metric(point.kept.name)} {write_value(point.kept.name, point.kept.value)}"
        return (
            f"recommended: {point.name}, with {cost}{faster}: {kept} on {n} held-back images, and by the lower end of "
            f"its interval ({write_value(point.kept.name, point.kept.low or 0.0)}) the cheapest that is safe."
        )

    @property
    def summary(self) -> str:
        """How many, and which is recommended."""
        made = [p for p in self.points if not p.problem and p.kind != "dense"]
        return f"{self.model}: {len(made)} sizes, {len(self.pareto)} that no other beats; {self.advice}"

    @property
    def table(self) -> Rows:
        """One row a point."""
        rows = [
            (p.name, "-" if p.kept_macs is None else f"{p.kept_macs:.1%}",
             "-" if p.kept is None else write_value(p.kept.name, p.kept.value), "*" if p.name in self.pareto else "")
            for p in self.points
        ]  # fmt: skip
        return [("point", "MACs", "kept", "Pareto"), *rows]


def _is_safe(kept: Metric) -> bool:
    wanted = DEFAULT_AGREEMENT if kept.name == "agreement" else DEFAULT_SIMILARITY
    return kept.low is not None and kept.low >= wanted


def _beats(one: SweepPoint, other: SweepPoint) -> bool:
    """Whether it costs no more, keeps no less, and one of the two is better."""
    assert one.cost is not None
    assert other.cost is not None
    assert one.kept is not None
    assert other.kept is not None
    comparable = one.precision == other.precision or (one.speedup is not None and other.speedup is not None)
    no_worse = one.cost <= other.cost and one.kept.value >= other.kept.value
    return comparable and no_worse and (one.cost < other.cost or one.kept.value > other.kept.value)


def sort_points(points: Iterable[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The dense model, then curve by curve as they come, from the largest model to the smallest."""
    points = tuple(points)
    curves = list(dict.fromkeys(point.series for point in points))

    def place(point: SweepPoint) -> tuple[bool, int, float]:
        return (
            point.kind != "dense",
            curves.index(point.series),
            point.asked if point.kind == "removed" else -point.asked,
        )

    return tuple(sorted(points, key=place))


def read_points(stored: Mapping[str, Any]) -> tuple[SweepPoint, ...]:
    """The points of a sweep.json.

    Raises:
        KeyError, TypeError: it is none, or of another version.
    """
    return tuple(_read_point(point) for point in stored["points"])


def _read_point(stored: Mapping[str, Any]) -> SweepPoint:
    single = {k: None if stored[k] is None else Metric(**stored[k]) for k in ("kept", "speedup")}
    several = {k: _read_metrics(stored[k]) for k in ("held_out", "scores")}
    return SweepPoint(**{**stored, **single, **several})


def _read_metrics(stored: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    return tuple(Metric(**metric) for metric in stored)
