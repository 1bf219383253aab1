"""What `analyze` returns: numbers only, as what other verbs return (results.py)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from corp_onnx.results import Environment, ModelFacts, Result, Rows, SkipFacts, StageTime

StudyName = Literal["depth", "images", "seeds", "shift"]


@dataclass(frozen=True, slots=True)
class UnitAnalysis:
    """One unit: how many directions it uses, and what the answers lose with it alone cut.

    Of a unit with heads, `effective_rank` and `k95` are means over its heads.

    Attributes:
        width: the dimension: hidden channels of an MLP, dimensions of a head.
        effective_rank: exp of the entropy of the shares of its spectrum, in 1..width (solve/spectrum.py).
        rank_ratio: effective rank over width.
        k95: the fewest principal directions that hold 95 % of the energy.
        k95_ratio: k95 over width.
        activation_sparsity: share of the activations behind the nonlinearity, over images, tokens and channels, within
            `SPARSE` of their root mean square from zero; None of a unit with heads.
        probe_width: at which it alone was probed.
        probe_loss: what the answers lose there, before any refit: KL in nats of classes; 1 - cosine of embeddings,
            else squared relative error.
        spectrum: shares of the energy by direction, descending; a row a head, or one.
    """

    key: str
    kind: str
    block: int
    width: int
    n_heads: int | None
    effective_rank: float
    rank_ratio: float
    k95: float
    k95_ratio: float
    activation_sparsity: float | None
    probe_width: int
    probe_loss: float
    spectrum: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class DepthRow:
    """One block of a pruned model: the errors of its units by key alone, and of the stream behind it, accumulated.

    Relative errors, as in `UnitResult` and `HeldOut.stream_error`; `errors_without` are those of the cut alone.
    """

    block: int
    keys: tuple[str, ...]
    errors: tuple[float, ...]
    errors_without: tuple[float, ...]
    stream_error: float | None


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One pruned model of a study.

    Attributes:
        fitted: the images that it was calibrated on, in a word.
        judged: those that it is judged on.
        n_images: that it was calibrated on.
        seed: of their draw.
        loss: against the dense model on the images that judge; as `UnitAnalysis.probe_loss`.
        kept: mean share of the dense model's answers that stay, or how much alike they are.
    """

    fitted: str
    judged: str
    n_images: int
    seed: int
    loss: float
    kept: float


@dataclass(frozen=True, slots=True)
class Study:
    """The same cut under changing circumstances.

    Attributes:
        rows: a row a model; none in a study of depth.
        depth: a row a block; in a study of depth only.
        n_judged: images that judge, which no model of the study was calibrated on.
        kept_name: what `StudyRow.kept` is: agreement, or a similarity.
    """

    name: StudyName
    rows: tuple[StudyRow, ...] = ()
    depth: tuple[DepthRow, ...] = ()
    n_judged: int = 0
    kept_name: str = ""

    def spread(self, field: Literal["loss", "kept"]) -> tuple[float, float]:
        """(mean, standard deviation with n - 1) over the rows; 0 of one row."""
        values = [getattr(row, field) for row in self.rows]
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Analysis(Result):
    """What `analyze` returns.

    Attributes:
        units: kind by kind, in the order of the blocks.
        skipped: what looked like a unit and was not analysed.
        settings: of the run; `fraction` and `preset` are those of the studies.
        n_images: that the spectra and studies were calibrated on; others are held back to judge.
        command: what was typed.
    """

    verb: ClassVar[str] = "analyze"

    model: ModelFacts
    units: tuple[UnitAnalysis, ...]
    skipped: tuple[SkipFacts, ...]
    studies: tuple[Study, ...]
    settings: dict[str, Any]
    data_hash: str
    n_images: int
    n_probed: int
    n_held_out: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    stages: tuple[StageTime, ...]
    environment: Environment
    command: str = ""

    def of_kind(self, kind: str) -> tuple[UnitAnalysis, ...]:
        """The units of a kind, by block."""
        return tuple(unit for unit in self.units if unit.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that there are, in order."""
        return tuple(dict.fromkeys(unit.kind for unit in self.units))

    @property
    def summary(self) -> str:
        """Mean rank ratios by kind."""
        means = ((kind, statistics.fmean(u.rank_ratio for u in self.of_kind(kind))) for kind in self.kinds)
        return f"{self.model.path}: effective rank over dimension, " + ", ".join(f"{k} {m:.2f}" for k, m in means)

    @property
    def table(self) -> Rows:
        """One row a unit."""
        rows = [(u.key, str(u.width), f"{u.rank_ratio:.1%}", f"{u.k95_ratio:.1%}", f"{u.probe_loss:.4f}")
                for u in self.units]  # fmt: skip
        return [("unit", "dimension", "effective rank", "k95", "loss of a probe"), *rows]
