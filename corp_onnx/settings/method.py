"""How a model is pruned: unit kinds x rank x solver x width rule x refit x token steps, as one value.

`BEST` and `PAPER` are two constants of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from corp_onnx.errors import OptionError
from corp_onnx.settings.option import list_names, option
from corp_onnx.settings.widths import Budget, Fractions, Threshold, WidthRule
from corp_onnx.targets import TARGETS, Target, TargetName

DEFAULT_RIDGE = 1e-3
"""Relative to mean(diag C). The largest eigenvalue of C is at most n * mean(diag C), so this bounds the condition
number by n / 1e-3, about 3e6 at n = 3072; float32 batch Grams leave a relative noise near 1e-7 on that eigenvalue, and
this is the smallest power of ten that stays above it. The paper does not state its value."""

Rank = Literal["obs", "energy", "magnitude", "weighted", "taylor"]
QkSolver = Literal["low-rank", "sylvester"]
MergeRule = Literal["search", "constant", "none"]
TokenMetricKind = Literal["learnt", "keys"]


@dataclass(frozen=True, slots=True)
class Method:
    """How a model is pruned.

    Args:
        units: kinds of units that may become narrower (`corp_onnx.units.KINDS`).
        rank: order of the hidden channels: `obs`, the paper's `energy` or `magnitude`, the authors' code's `weighted`,
            AMP's `taylor` (gradients/).
        qk: `low-rank`, or the paper's kept dimensions with `sylvester` compensation.
        ridge: lambda of the compensation, relative to the mean diagonal.
        compensate: False cuts only, as an ablation; the refit would undo that and is left out.
        widths: the rule by which widths are found.
        align: widths are multiples of this (a unit may also stay whole).
        remove: the search may also give width 0, where a constant can stand for the unit.
        equal_heads: query/key and value widths of a block are the same, as fused attention kernels want.
        target: the runtime that the model is for (targets.py).
        refit: solve output projections and second products again on the pruned stream (refit/).
        weigh_tokens: in the refit, count token positions by how much the answers depend on them (token_weights.py).
        favour_late: where a refit follows, an error of an early unit counts less in the search for widths, since every
            later unit mends part of it (search/widths.py); no effect without a refit.
        merge: how many similar tokens merge in which block (tokens/merge.py): `search`ed together with the widths, the
            same number in every block (`constant`), or `none`. Only under a budget of MACs or a promise whose widths
            are searched: parameters are the same with fewer tokens.
        merge_blocks: the blocks that tokens may merge in; none named are all.
        merge_metric: how tokens are compared: what `learnt` directions and importance say, or ToMe's mean of the
            `keys`.
        trim: leave out what the last block computes for tokens that no output reads (tokens/); no effect on answers.
        tokens_per_image: moments of channels are taken over so many tokens of every image, drawn at random
            (calibrate/draw.py); None is all of them.

    Raises:
        OptionError: a number out of range, or a name that is not known.
    """

    units: tuple[str, ...] = option(
        ("mlp", "qk", "vo"), "Kinds of units that may become narrower, separated by commas", metavar="KINDS"
    )
    rank: Rank = option(
        "obs",
        "Hidden channels that go first: of least loss after compensation, least energy, smallest weights, least energy "
        "between the norms of both weights, least |activation x gradient| of the answer's entropy (taylor: needs "
        "corp-onnx[taylor]).",
    )
    qk: QkSolver = option("low-rank", "How queries and keys are pruned: any maps, or the paper's kept dimensions.")
    ridge: float = option(DEFAULT_RIDGE, "Ridge of the compensation, relative to the mean diagonal.", metavar="L")
    compensate: bool = option(True, "Only cut, as an ablation.", off="--no-compensation")
    widths: WidthRule = field(default_factory=Budget)
    align: int = option(8, "Searched widths are multiples of N.", metavar="N", minimum=1)
    remove: bool = option(
        False,
        "Let the search also remove whole MLPs and, with heads among the units, attentions: what stays is their mean.",
    )
    equal_heads: bool = option(False, "Same width for queries, keys and values of a block.")
    target: TargetName = option(
        "generic",
        "Runtime that the model is for: which widths the search may give, and how the same is written; every file runs "
        "everywhere.",
    )
    refit: bool = option(True, "Solve every last product again on the pruned residual stream.")
    weigh_tokens: bool = option(True, "In the refit, count token positions by how much the answers depend on them.")
    favour_late: bool = option(
        True,
        "Before a refit, let errors of early blocks count less in the search for widths: later blocks mend part of "
        "them.",
    )
    merge: MergeRule = option(
        "search",
        "Merge similar tokens, behind the attention of some blocks: searched together with the widths, the same number "
        "in every block, or none.",
    )
    merge_blocks: tuple[int, ...] = option((), "Blocks that tokens may merge in, counted from 0.", metavar="B,...")
    merge_metric: TokenMetricKind = option(
        "learnt", "How tokens are compared: by learnt directions and importance, or ToMe's mean of the keys."
    )
    trim: bool = option(True, "Leave out what the last block computes for tokens that no output reads.")
    tokens_per_image: int | None = option(
        None, "Take the sums over N tokens of every image, drawn at random: faster.  [default: all]", metavar="N",
        minimum=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.rank not in get_args(Rank):
            raise OptionError(f"--rank must be {list_names(get_args(Rank))}; found {self.rank}.")
        if self.qk not in get_args(QkSolver):
            raise OptionError(f"--qk must be {list_names(get_args(QkSolver))}; found {self.qk}.")
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise OptionError(f"--ridge must be a number above 0; found {self.ridge:g}.")
        if self.target not in TARGETS:
            raise OptionError(f"--target must be {list_names(get_args(TargetName))}; found {self.target}.")
        if self.align < 1:
            raise OptionError(f"--align must be 1 or more; found {self.align}.")
        if self.tokens_per_image is not None and self.tokens_per_image < 1:
            raise OptionError(f"--tokens-per-image must be 1 or more; found {self.tokens_per_image}.")
        if self.merge not in get_args(MergeRule):
            raise OptionError(f"--merge must be {list_names(get_args(MergeRule))}; found {self.merge}.")
        if self.merge_metric not in get_args(TokenMetricKind):
            known = list_names(get_args(TokenMetricKind))
            raise OptionError(f"--merge-metric must be {known}; found {self.merge_metric}.")
        searched = self.searches_widths
        if self.equal_heads and not searched:
            raise OptionError("--equal-heads goes with widths that are searched under a budget; leave it out.")
        if self.for_target.equal_heads and self.cuts_heads and not (searched and {"qk", "vo"} <= {*self.units}):
            raise OptionError(
                f"--target {self.target} wants queries, keys and values of one width, which a search under a budget "
                "gives that may cut both: give --macs or another budget, and both of qk and vo or none among --units."
            )
        if self.remove and not (searched or isinstance(self.widths, Threshold)):
            raise OptionError(
                "--remove goes with widths that are searched, under a budget or a threshold; leave it out."
            )

    @property
    def sampling(self) -> dict[str, int]:
        """Which tokens the moments are of, where that is not all: what is made of them is made of these."""
        return {} if self.tokens_per_image is None else {"tokens_per_image": self.tokens_per_image}

    @property
    def refits(self) -> bool:
        """Whether last products are solved again: not where the cut alone is wanted."""
        return self.refit and self.compensate

    @property
    def has_budget(self) -> bool:
        """Whether the size of the model is given, and widths follow from it."""
        return isinstance(self.widths, Budget)

    @property
    def searches_widths(self) -> bool:
        """Whether a budget is shared out by a search."""
        return isinstance(self.widths, Budget) and self.widths.allocate == "search"

    @property
    def for_target(self) -> Target:
        """What that runtime wants."""
        return TARGETS[self.target]

    @property
    def cuts_heads(self) -> bool:
        """Whether queries, keys or values may become narrower."""
        return bool({"qk", "vo"} & {*self.units})

    @property
    def ties_heads(self) -> bool:
        """Whether queries, keys and values of a block have one width."""
        return self.equal_heads or self.for_target.equal_heads

    @property
    def merges(self) -> bool:
        """Whether tokens may merge."""
        counts_parameters = isinstance(self.widths, Budget) and self.widths.kind == "params"
        return self.merge != "none" and self.searches_widths and not counts_parameters

    @property
    def promises(self) -> bool:
        """Whether held-back images decide the size of the model."""
        return isinstance(self.widths, Budget) and self.widths.is_promise

    @property
    def is_timed(self) -> bool:
        """Whether the size of the model follows from the clock."""
        return isinstance(self.widths, Budget) and self.widths.is_time


BEST = Method()
"""Docs: docs/method.md."""

PAPER = Method(
    units=("mlp", "qk"), rank="energy", qk="sylvester", widths=Fractions(0.5, 0.5), refit=False, merge="none",
    trim=False,
)  # fmt: skip
"""arXiv 2602.05243 as it stands."""

METHODS = {"best": BEST, "paper": PAPER}
"""By the name of the preset."""
