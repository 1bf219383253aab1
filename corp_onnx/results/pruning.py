"""What `prune` returns and writes as its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from corp_onnx.results.base import Result, Rows
from corp_onnx.results.facts import ModelFacts, SkipFacts
from corp_onnx.results.running import Environment, StageTime
from corp_onnx.results.scores import CheckResult, HeldOut


@dataclass(frozen=True, slots=True)
class UnitResult:
    """One pruned unit.

    Errors are relative, sqrt(E|y' - y|^2 / E|y - E y|^2), of the unit's own output on held-back images with the dense
    model's activations as its input: an MLP's output, a query/key pair's logits (each row centred: softmax does not
    see its mean), a value/output pair's projection. They are those before the refit, which trades
    some of them for errors that came in from before. `error_without` is that of the same width without compensation.
    """

    key: str
    kind: str
    block: int
    width_before: int
    width_after: int
    error: float
    error_without: float
    condition_number: float


@dataclass(frozen=True, slots=True)
class UnitWidth:
    """One unit that could have been pruned, whether it was or not.

    Attributes:
        width_after: 0 where the whole unit went with others of its site.
        probe_width: the width at which it alone was tried, before widths were searched; None where nothing was.
        probe_loss: how far that moved the answers, in the loss that the search minimises: mean KL in nats of classes,
            1 - cosine of embeddings, squared relative error else.
    """

    key: str
    kind: str
    block: int
    width_before: int
    width_after: int
    probe_width: int | None = None
    probe_loss: float | None = None


@dataclass(frozen=True, slots=True)
class TriedSize:
    """A size that a search for a promise tried.

    Attributes:
        macs: share of the dense model's MACs that it was to keep.
        value: what it kept of the answers, as the promise counts it, on the images that choose.
        low: the lower end of that; the value itself where there is none.
        refitted: whether last products were solved again.
    """

    macs: float
    value: float
    low: float
    refitted: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A first answer: the class, what the model calls it (empty where it has no names), and its probability."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A held-back image on which pruned and dense model are far apart.

    Attributes:
        image: its file below the calibration folder, or its number among the arrays.
        distance: KL in nats of classes, else 1 - what a promise counts (cosine, correlation, R2).
        dense, pruned: first answers; None where answers are no classes, one an image.
        thumbnail: the picture as a small JPEG in a data URI; empty where none was asked for.
    """

    image: str
    distance: float
    dense: Answer | None = None
    pruned: Answer | None = None
    thumbnail: str = ""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Tokens that merge behind the attention of one block: how many there are of an image before and behind it."""

    block: int
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """What the moments were made from: `n_images` of it; others chose the size, and others again were held back.

    `recipe_origin` says who gave the recipe, as in `from the model's metadata`.
    """

    path: str
    data_hash: str
    n_images: int
    n_choosing: int
    n_held_out: int
    n_tokens: int
    seed: int
    recipe: dict[str, Any] | None
    skipped: tuple[tuple[str, str], ...]
    recipe_origin: str | None = None


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """What a budget of time came to; ratios are how many times as fast as the dense model, taken round by round.

    Attributes:
        asked: times as fast, or seconds of a batch, by `kind`: speedup or latency.
        expected: by the table of times.
        measured: the median of the written file beside the dense one; None where the table is of another machine.
        q1, q3: between which the middle half of the rounds lies.
        dense_seconds, seconds: medians of a batch.
        threads: None is every core.
        place: where the table is from.
    """

    asked: float
    kind: str
    expected: float
    provider: str
    batch: int
    threads: int | None
    place: str
    measured: float | None = None
    q1: float | None = None
    q3: float | None = None
    dense_seconds: float | None = None
    seconds: float | None = None
    rounds: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class PruneResult(Result):
    """What `prune` returns and writes as its report.

    `n_units_found` counts the recognised units of the kinds that were to be pruned, whether they can be or not;
    `left_whole` are those that the search gave their full width. `network` are all units that could be pruned,
    `disagreements` the images on which dense and pruned are farthest apart, `command` what was typed.
    """

    verb: ClassVar[str] = "prune"
    dense: ModelFacts
    pruned: ModelFacts
    settings: dict[str, Any]
    calibration: CalibrationData
    units: tuple[UnitResult, ...]
    n_units_found: int
    left_whole: tuple[str, ...]
    skipped: tuple[SkipFacts, ...]
    merges: tuple[MergeResult, ...]
    held_out: HeldOut
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageTime, ...]
    peak_memory_bytes: int | None
    expected_memory_bytes: int
    environment: Environment
    report_path: str
    speed: SpeedResult | None = None
    network: tuple[UnitWidth, ...] = ()
    tried: tuple[TriedSize, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    command: str = ""

    @property
    def kept_macs(self) -> float:
        """Share of the dense model's."""
        return self.pruned.macs / self.dense.macs

    @property
    def kept_parameters(self) -> float:
        """Share of the dense model's."""
        return self.pruned.n_parameters / self.dense.n_parameters

    @property
    def summary(self) -> str:
        """The new file, its size, and what it is worth."""
        return (
            f"{self.pruned.path}: {self.kept_macs:.1%} of the MACs, {self.kept_parameters:.1%} of the parameters; "
            f"{_describe_held(self.held_out)}"
        )

    @property
    def table(self) -> Rows:
        """Dense beside pruned."""
        before, after = self.dense, self.pruned
        return [
            ("", "dense", "pruned", "kept"),
            ("file", before.path, after.path, f"{after.n_bytes / before.n_bytes:.1%}"),
            ("MACs", f"{before.macs / 1e9:.4f} G", f"{after.macs / 1e9:.4f} G", f"{self.kept_macs:.1%}"),
            ("parameters", f"{before.n_parameters:,}", f"{after.n_parameters:,}", f"{self.kept_parameters:.1%}"),
            ("answers", "", _describe_held(self.held_out), ""),
        ]


def _describe_held(held: HeldOut) -> str:
    kept = held.promise
    value = f"{kept.value:.1%}" if kept.metric == "agreement" else f"{kept.value:.3f}"
    return f"{kept.metric} {value} on {held.n_images} images"
