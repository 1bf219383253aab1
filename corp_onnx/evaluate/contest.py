"""Models over the same images, batch by batch: each is run, and counted by itself and against the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from corp_onnx.checks.chance import LabelWatch
from corp_onnx.errors import ImageError, ModelError
from corp_onnx.evaluate.scores import Score
from corp_onnx.images import Images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Batch
from corp_onnx.images.recipe import Recipe
from corp_onnx.metrics import Judgement, OutputTask
from corp_onnx.metrics.classes import compare_right
from corp_onnx.run.outputs import Outputs
from corp_onnx.run.runner import Runner
from corp_onnx.run.views import View


@dataclass(frozen=True, slots=True, eq=False)
class Contest:
    """Models over the same images, and what is counted of each.

    Attributes:
        runners: the reference first, where there is one.
        names: of every model, its name for each of the first model's outputs that are compared.
        judgements: one a model; its tasks go by the first model's names.
        has_reference: whether the others are compared with the first.
        watches: of the labels of every model.
    """

    runners: Sequence[Runner]
    names: tuple[Mapping[str, str], ...]
    judgements: tuple[Judgement, ...]
    has_reference: bool
    watches: tuple[LabelWatch, ...]

    def add(self, batches: Sequence[Batch], images: Images) -> str:
        """Run every model on its batch and count. Gives why labels went unused, or nothing."""
        reference: dict[str, np.ndarray] | None = None
        note = ""
        rows = zip(self.runners, self.names, self.judgements, self.watches, batches, strict=True)
        for runner, names, judgement, watch, batch in rows:
            found = runner.run(batch, list(names.values()))
            answers = {name: found[own] for name, own in names.items()}
            task = judgement.first.task
            judged = answers[task.output]
            labels, why = _usable_labels(images, batch, judged, task, runner.path)
            watch.add(judged, labels)
            note = note or why
            if reference is not None:
                self._require_shapes(runner, answers, reference)
            judgement.add(answers, reference, labels)
            if self.has_reference and reference is None:
                reference = answers
        return note

    def _require_shapes(
        self, runner: Runner, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
    ) -> None:
        for name, array in found.items():
            if array.shape != expected[name].shape:
                raise ModelError(
                    f"{runner.path}: its output '{name}' has shape {list(array.shape)} and that of the reference "
                    f"{self.runners[0].path} has {list(expected[name].shape)}; only models with the same answer can be "
                    "compared."
                )

    def score(self, place: int, recipe: Recipe | None, confidence: float) -> Score:
        """What was counted of one model."""
        judgement = self.judgements[place]
        difference = None
        if self.has_reference and place > 0:
            difference = compare_right(judgement.first, self.judgements[0].first, confidence)
        scores = judgement.scores(confidence)
        return Score(str(self.runners[place].path), judgement.n_samples, recipe, scores, difference)


def open_contest(views: Sequence[View], *, has_reference: bool) -> Contest:
    """What is compared: with a reference, what the outputs of that are.

    Raises:
        ModelError: a model has no output for one that is judged.
    """
    shown = [views[0].outputs if has_reference else view.outputs for view in views]
    names = [_match_names(outputs, view) for outputs, view in zip(shown, views, strict=True)]
    judgements = tuple(
        Judgement([task for task in outputs.tasks if task.output in own], outputs.judged)
        for outputs, own in zip(shown, names, strict=True)
    )
    runners = tuple(view.runner for view in views)
    return Contest(runners, tuple(names), judgements, has_reference, tuple(LabelWatch() for _ in views))


def _match_names(outputs: Outputs, view: View) -> dict[str, str]:
    """A model's name for every output of another: the same; else what it is judged by for what that is judged by."""
    own = [task.output for task in view.outputs.tasks]
    if all(name in own for name in outputs.judged):
        return {task.output: task.output for task in outputs.tasks if task.output in own}
    if len(view.outputs.judged) < len(outputs.judged):
        missing = ", ".join(name for name in outputs.judged if name not in own)
        raise ModelError(f"{view.runner.path}: has no output {missing} to compare; it has {', '.join(own)}.")
    return dict(zip(outputs.judged, view.outputs.judged, strict=False))


def _usable_labels(
    images: Images, batch: Batch, outputs: np.ndarray, task: OutputTask, path: Path
) -> tuple[Int64[np.ndarray, " n"] | None, str]:
    """(labels to count with, or None; why they were asked for and can not be used, or empty)."""
    if batch.labels is None:
        return None, ""
    if task.task != "classify":
        return None, f"no top-1 and top-5: {task.describe().removesuffix('.')}"
    if outputs.ndim != 2:
        return None, f"no top-1 and top-5: the output of {path.name} has shape {list(outputs.shape)}, not [n, classes]"
    n_classes = outputs.shape[1]
    if isinstance(images, ArraySet) and (batch.labels.min() < 0 or batch.labels.max() >= n_classes):
        raise ImageError(f"{images.path}: a label lies outside 0..{n_classes - 1}, the classes of {path.name}.")
    return batch.labels, ""
