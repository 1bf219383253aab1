"""What is said of models that were evaluated: `Score` of one, `Evaluation` of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from corp_onnx.images.batch import Skipped
from corp_onnx.images.recipe import Recipe
from corp_onnx.metrics.names import name_metric, write_value
from corp_onnx.results import Judged, Metric, OutputScore, Result, Rows
from corp_onnx.settings import CONFIDENCE

FIGURES = ("top1", "top5", "agreement", "kl", "cosine", "correlation", "r2", "relative_error")
"""Those of one line."""


@dataclass(frozen=True, slots=True)
class Score(Judged):
    """One model on the images; every figure with its interval, and those against the reference where there is one.

    Attributes:
        model: path of the file.
        n_images: images counted.
        recipe: how they were preprocessed; None for arrays.
        outputs: of every output, in the model's order.
        difference: the model's top-1 less the reference's, of the same images.
    """

    model: str
    n_images: int
    recipe: Recipe | None
    outputs: tuple[OutputScore, ...] = ()
    difference: Metric | None = None

    @property
    def figures(self) -> list[str]:
        """Those that are defined, with their names."""
        found = [(name, self.value(name)) for name in FIGURES]
        return [f"{name_metric(name)} {write_value(name, value)}" for name, value in found if value is not None]


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation(Result):
    """All models on the same images.

    Attributes:
        scores: one for each model, in the order given.
        baseline: the reference's own score, without agreement, KL and error.
        n_images: images counted.
        skipped: files that gave no image.
        data_hash: identity of the images, see `ImageSet.data_hash`.
        provider: where ONNX Runtime ran.
        confidence: of every interval.
        note: why there is no top-1 although labels were asked for; empty otherwise.
        notes: what the outputs are taken for, one sentence each, and which are not compared.
        labels: what the class labels are and how they were found; empty where there are none.
        preprocessing: where the recipe of each model comes from, in the order of `scores`; empty for arrays.
        warnings: what a person should know, one sentence each.
    """

    verb: ClassVar[str] = "evaluate"
    scores: tuple[Score, ...]
    baseline: Score | None
    n_images: int
    skipped: tuple[Skipped, ...]
    data_hash: str
    provider: str
    confidence: float = CONFIDENCE
    note: str = ""
    notes: tuple[str, ...] = ()
    labels: str = ""
    preprocessing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The models and their first figure."""
        each = ", ".join(" ".join([score.model, *score.figures[:1]]) for score in self.scores)
        return f"{each}; {self.n_images} images"

    @property
    def table(self) -> Rows:
        """One row a model."""
        return [("model", "figures"), *((score.model, ", ".join(score.figures) or "-") for score in self.scores)]
