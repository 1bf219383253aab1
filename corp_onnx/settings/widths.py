"""The rules by which widths are found: a budget, fractions, or what each unit may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from corp_onnx.errors import OptionError
from corp_onnx.settings.option import list_names

DEFAULT_AGREEMENT = 0.9
"""Without any budget: the smallest model of which held-back images prove that it keeps 90 % of the dense model's first
answers; of a hundred, 96 have to stay for that. Most of the rest are images on which the dense model itself is unsure,
so accuracy falls by much less."""

DEFAULT_SIMILARITY = 0.95
"""The same of answers that are no classes: the mean cosine of embeddings, the correlation of maps, R2 of numbers."""

DEFAULT_THRESHOLD = 0.003
"""KL in nats that one MLP may cost with `Threshold`; on DeiT-Tiny 0.0087 keeps 62 % of the MLPs and 78 % of the
answers, which is too little for a default."""

CostKind = Literal["macs", "params", "time"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Widths under one budget: how small the model has to be.

    Args:
        kind: what is counted: MACs, parameters, how many times as fast (`speedup`), seconds of a batch (`latency`), the
            share of the dense model's first answers (`agreement`), or how much alike its other answers are
            (`similarity`). `promise` is one of the last two, whichever fits the model's outputs, at its default.
        value: the fraction to keep, the speed-up or the seconds; of a promise, what held-back images prove.
        allocate: `search` widths for the least loss, or `uniform`: the same fraction of every unit.
    """

    kind: Literal["promise", "macs", "params", "speedup", "latency", "agreement", "similarity"] = "promise"
    value: float = DEFAULT_AGREEMENT
    allocate: Literal["search", "uniform"] = "search"

    def __post_init__(self) -> None:
        names = {"macs": "--macs", "params": "--params", "agreement": "--min-agreement"}
        names |= {"speedup": "--speedup", "latency": "--latency"}
        names |= {"similarity": "--min-similarity", "promise": "a promise"}
        if self.kind not in names:
            raise OptionError(f"a budget is of {list_names(tuple(names))}; found {self.kind}.")
        if self.allocate not in ("search", "uniform"):
            raise OptionError(f"--allocate must be search or uniform; found {self.allocate}.")
        name = names[self.kind]
        if self.kind == "speedup" and not 1 < self.value < math.inf:
            raise OptionError(f"{name} is how many times as fast and must be above 1; found {self.value:g}.")
        if self.kind == "latency" and not 0 < self.value < math.inf:
            raise OptionError(f"{name} is a time, as in 12ms, and must be above 0; found {self.value:g} s.")
        if not self.is_time and not 0 < self.value < 1:
            raise OptionError(f"{name} is a fraction and must lie between 0 and 1; found {self.value:g}.")

    @property
    def is_promise(self) -> bool:
        """Whether held-back images decide."""
        return self.kind in ("promise", "agreement", "similarity")

    @property
    def is_time(self) -> bool:
        """Whether it is of the clock."""
        return self.kind in ("speedup", "latency")

    @property
    def cost_kind(self) -> CostKind:
        """What is paid with: a promise is looked for along the MACs."""
        return "time" if self.is_time else "params" if self.kind == "params" else "macs"

    def kept_share(self, dense_seconds: float) -> float:
        """The share of the dense model's cost that may stay.

        Args:
            dense_seconds: what a batch takes it, for a latency.
        """
        if self.kind == "latency":
            return self.value / dense_seconds
        return 1 / self.value if self.kind == "speedup" else self.value

    def settle(self, is_classes: bool) -> Budget:
        """The same with a promise that fits the model's outputs, where nobody said which.

        Args:
            is_classes: whether what is judged answers with classes.
        """
        if self.kind != "promise":
            return self
        kind, value = ("agreement", DEFAULT_AGREEMENT) if is_classes else ("similarity", DEFAULT_SIMILARITY)
        return Budget(kind, value, self.allocate)


@dataclass(frozen=True, slots=True)
class Fractions:
    """Widths by a fraction removed, in [0, 1), the same for every unit of a kind; other kinds stay whole.

    Args:
        mlp: of the hidden channels of every MLP.
        attn: of every query/key head.
    """

    mlp: float = 0.0
    attn: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0 <= value < 1:
                raise OptionError(f"--{f.name} is the fraction removed and must lie in [0, 1); found {value:g}.")


@dataclass(frozen=True, slots=True)
class Threshold:
    """Widths by what each unit may cost: the smallest at which it alone moves the answers by a KL of at most this.

    AMP's rule (search/amp.py); no budget.
    """

    kl: float = DEFAULT_THRESHOLD

    def __post_init__(self) -> None:
        if not self.kl > 0:
            raise OptionError(f"--amp-threshold is a KL in nats and must be above 0; found {self.kl:g}.")


WidthRule = Budget | Fractions | Threshold
