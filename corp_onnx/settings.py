"""What a person can choose, as values: they are stored in the pruned file and in the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from corp_onnx.errors import OptionError
from corp_onnx.search.best import BestSettings
from corp_onnx.search.plan import Cut

DEFAULT_AGREEMENT = 0.95
"""Without any budget: the smallest model that keeps 95 % of the dense model's first answers. Most of the rest are
images on which the dense model itself is unsure, so accuracy falls by much less."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a person gave to replace parts of the model's recipe; None keeps the recipe's own."""

    resize: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How small the model has to be: `value` of the dense model's MACs or parameters, or the agreement to keep."""

    kind: Literal["macs", "params", "agreement"]
    value: float

    def __post_init__(self) -> None:
        option = {"macs": "--macs", "params": "--params", "agreement": "--min-agreement"}[self.kind]
        if not 0 < self.value < 1:
            raise OptionError(f"{option} is a fraction and must lie between 0 and 1; found {self.value:g}.")


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Everything that decides the result, apart from the model and the images.

    Args:
        preset: `best`, or `paper`, the method of arXiv 2602.05243.
        cut: fractions removed of every unit. `paper` always uses it (50 % where None); `best` where it is given,
            with its own solvers and no search.
        budget: what `best` searches widths for where no cut is given; None is an agreement of 0.95.
        best: the ingredients of `best`.
        n_images: calibrate on this many, drawn at random with `seed`; None takes all.
        batch_size: images at a time; has no effect on the result beyond rounding.
        seed: of the draw, of the held-back split and of the probes.
        provider: where calibration and checks run: cpu, cuda, ...
        preprocessing: changes to the model's recipe.

    Raises:
        OptionError: options that contradict each other.
    """

    preset: Literal["best", "paper"] = "best"
    cut: Cut | None = None
    budget: Budget | None = None
    best: BestSettings = field(default_factory=BestSettings)
    n_images: int | None = None
    batch_size: int = 8
    seed: int = 0
    provider: str = "cpu"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"--seed must be 0 or more; found {self.seed}.")
        if self.budget is not None and self.preset == "paper":
            raise OptionError("the paper's method takes fractions: give --mlp and --attn, or leave out --preset paper.")
        if self.budget is not None and self.cut is not None:
            raise OptionError("--mlp and --attn fix the widths and a budget searches them: give one or the other.")
        if self.by_threshold and (self.preset == "paper" or self.cut is not None or self.budget is not None):
            raise OptionError(
                "--allocate amp takes widths from --amp-threshold alone: leave out --preset paper, --mlp, --attn, "
                "--macs, --params and --min-agreement, or use --allocate search."
            )

    @property
    def by_threshold(self) -> bool:
        """Whether every MLP gives what a threshold on the loss allows, instead of a budget or fractions."""
        return self.best.allocate == "amp"

    @property
    def trims(self) -> bool:
        """Whether tokens that nobody reads are left out: the paper's method has no such step."""
        return self.preset == "best" and self.best.trim

    @property
    def rank(self) -> str:
        """The order in which hidden channels go."""
        return self.best.rank if self.fractions is None or self.preset == "best" else self.fractions.rank

    @property
    def fractions(self) -> Cut | None:
        """The fractions removed, where they are fixed."""
        return self.cut or Cut() if self.preset == "paper" else self.cut

    @property
    def goal(self) -> Budget | None:
        """The budget, where widths are searched under one."""
        if self.fractions is not None or self.by_threshold:
            return None
        return self.budget or Budget("agreement", DEFAULT_AGREEMENT)

    @property
    def judges_by_agreement(self) -> bool:
        """Whether the held-back images decide the size of the model."""
        return self.goal is not None and self.goal.kind == "agreement"
