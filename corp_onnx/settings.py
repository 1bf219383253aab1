"""What a person can choose, as values: they are stored in the pruned file and in the report.

A `Method` is one value: unit kinds x rank x solver x width rule x refit x token steps. `BEST` and `PAPER` are two
constants of it. A field that an option of the command line sets carries its help in its metadata (`option`), so that
the command line is derived from what is here (cli/options.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from corp_onnx.errors import OptionError
from corp_onnx.memory import read_size
from corp_onnx.targets import TARGETS, Target, TargetName

DEFAULT_RIDGE = 1e-3
"""Relative to mean(diag C). The largest eigenvalue of C is at most n * mean(diag C), so this bounds the condition
number by n / 1e-3, about 3e6 at n = 3072; float32 batch Grams leave a relative noise near 1e-7 on that eigenvalue, and
this is the smallest power of ten that stays above it. The paper does not state its value."""

DEFAULT_AGREEMENT = 0.9
"""Without any budget: the smallest model of which held-back images prove that it keeps 90 % of the dense model's first
answers; of a hundred, 96 have to stay for that. Most of the rest are images on which the dense model itself is unsure,
so accuracy falls by much less."""

DEFAULT_SIMILARITY = 0.95
"""The same of answers that are no classes: the mean cosine of embeddings, the correlation of maps, R2 of numbers."""

CONFIDENCE = 0.95
"""Of every interval: the share of repetitions in which it holds the truth."""

DEFAULT_THRESHOLD = 0.003
"""KL in nats that one MLP may cost with `Threshold`; on DeiT-Tiny 0.0087 keeps 62 % of the MLPs and 78 % of the
answers, which is too little for a default."""

Rank = Literal["obs", "energy", "magnitude", "weighted", "taylor"]
QkSolver = Literal["low-rank", "sylvester"]
MergeRule = Literal["search", "constant", "none"]
TokenMetricKind = Literal["learnt", "keys"]
CostKind = Literal["macs", "params", "time"]
TaskChoice = Literal["auto", "classify", "embed", "dense", "regress"]


def option(
    default: Any, text: str, *, flag: str = "", off: str = "", metavar: str = "", minimum: int | None = None
) -> Any:
    """A field that a command-line option sets.

    Args:
        text: its help.
        flag: its name, where that is not the field's with dashes.
        off: the only spelling of a field that can just be switched off.
        minimum: of a whole number.
    """
    metadata = {"help": text, "flag": flag, "off": off, "metavar": metavar, "minimum": minimum}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a person gave to replace the model's recipe, or parts of it; None keeps the recipe's own."""

    resize: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: str | None = None
    fill: tuple[int, ...] | None = None
    preprocessor: str | None = None
    """Path of a Hugging Face preprocessor_config.json, timm's config.json or a recipe of ours."""

    def __post_init__(self) -> None:
        if self.preprocessor is not None:
            object.__setattr__(self, "preprocessor", str(self.preprocessor))  # settings are stored as JSON


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
            raise OptionError(f"a budget is of {_listed(tuple(names))}; found {self.kind}.")
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
            raise OptionError(f"--rank must be {_listed(get_args(Rank))}; found {self.rank}.")
        if self.qk not in get_args(QkSolver):
            raise OptionError(f"--qk must be {_listed(get_args(QkSolver))}; found {self.qk}.")
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise OptionError(f"--ridge must be a number above 0; found {self.ridge:g}.")
        if self.target not in TARGETS:
            raise OptionError(f"--target must be {_listed(get_args(TargetName))}; found {self.target}.")
        if self.align < 1:
            raise OptionError(f"--align must be 1 or more; found {self.align}.")
        if self.tokens_per_image is not None and self.tokens_per_image < 1:
            raise OptionError(f"--tokens-per-image must be 1 or more; found {self.tokens_per_image}.")
        if self.merge not in get_args(MergeRule):
            raise OptionError(f"--merge must be {_listed(get_args(MergeRule))}; found {self.merge}.")
        if self.merge_metric not in get_args(TokenMetricKind):
            known = _listed(get_args(TokenMetricKind))
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


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Everything that decides the result, apart from the model and the images.

    Args:
        method: how it is pruned.
        n_images: calibrate on this many, drawn at random with `seed`; None takes all.
        batch_size: images at a time; has no effect on the result beyond rounding.
        seed: of the draw, of the held-back split and of the probes.
        at_batch: images at a time for which a budget of time is measured; None is one, or what the model takes.
        at_threads: threads for that; None is every core.
        times: path of a table of how long widths take (latency/table.py): read, or written where it is missing.
        calibration: path of a calibration file (calibrate/file.py), which brings its images and its findings.
        cache: folder in which such files are kept and found; has no effect on the result.
        memory: what the run may take, as in `2GiB`; has no effect on the result beyond rounding.
        provider: where calibration and checks run: cpu, cuda, ...
        task: what the outputs are that are judged (metrics/task.py); `auto` looks.
        outputs: the outputs that losses and promises are about; none named are the first that can be compared.
        confidence: of every interval. A promise is its lower end.
        preprocessing: changes to the model's recipe.

    Raises:
        OptionError: a number out of range.
    """

    method: Method = BEST
    n_images: int | None = option(
        None, "Calibrate on N images drawn at random.  [default: all]", flag="images", metavar="N", minimum=1
    )
    batch_size: int = option(8, "Images at a time; memory grows with it.", flag="batch", metavar="N", minimum=1)
    seed: int = option(0, "Of the draw and of the held-back images.", metavar="N", minimum=0)
    provider: str = option("cpu", "ONNX Runtime provider for calibration and checks: cpu, cuda, ...", metavar="NAME")
    task: TaskChoice = option(
        "auto",
        "What the outputs are: classes, an embedding, a map, other numbers. It decides what is measured and promised.",
    )
    outputs: tuple[str, ...] = option(
        (), "Outputs that are judged, separated by commas.  [default: the first with a row an image]", flag="judge",
        metavar="NAMES",
    )  # fmt: skip
    confidence: float = option(CONFIDENCE, "Of every interval; a promise is its lower end.", metavar="C")
    at_batch: int | None = option(
        None, "Images at a time for which --speedup and --latency are measured.  [default: 1]", metavar="N", minimum=1
    )
    at_threads: int | None = option(
        None, "Threads with which they are measured.  [default: every core]", metavar="N", minimum=1
    )
    times: str | None = option(
        None, "Table of how long widths take, for --speedup and --latency: read where the file is there, of another "
        "machine as well, else measured and written.  [default: measured, not kept]", metavar="FILE",
    )  # fmt: skip
    calibration: str | None = option(
        None, "What `corp-onnx calibrate` kept: nothing that is in it is done again, and it says where the images are.",
        metavar="FILE",
    )  # fmt: skip
    cache: str | None = option(
        None, "Keep such files here by themselves, and find them again for the same model and images.  [default: off]",
        metavar="DIR",
    )  # fmt: skip
    memory: str | None = option(
        None, "Keep to this much memory, as in 2GiB: fewer images at a time, intermediate results in a file.  "
        "[default: what is free]", metavar="SIZE",
    )  # fmt: skip
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise OptionError(f"--seed must be 0 or more; found {self.seed}.")
        if self.memory is not None:
            object.__setattr__(self, "memory", str(self.memory))
            read_size(self.memory, "--memory")
        for name in ("times", "calibration", "cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))  # settings are stored as JSON
        if self.calibration is not None and self.cache is not None:
            raise OptionError("--calibration names the file and --cache looks for one; give one of them.")
        for flag, value in (("--at-batch", self.at_batch), ("--at-threads", self.at_threads)):
            if value is not None and value < 1:
                raise OptionError(f"{flag} must be 1 or more; found {value}.")
        timed = {"--at-batch": self.at_batch, "--at-threads": self.at_threads, "--times": self.times}
        named = [flag for flag, value in timed.items() if value is not None]
        if named and not self.method.is_timed:
            raise OptionError(f"{named[0]} goes with --speedup or --latency; give one of them, or leave it out.")
        require_task(self.task, self.confidence)

    @property
    def memory_bytes(self) -> int | None:
        """What the run may take; None where nobody said."""
        return None if self.memory is None else read_size(self.memory, "--memory")


def require_task(task: str, confidence: float) -> None:
    """Refuse what is no task, and what is no share."""
    if task not in get_args(TaskChoice):
        raise OptionError(f"--task must be {_listed(get_args(TaskChoice))}; found {task}.")
    if not 0 < confidence < 1:
        raise OptionError(f"--confidence is a share and must lie between 0 and 1; found {confidence:g}.")


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
