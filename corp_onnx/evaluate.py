"""How good a model still is: models + images -> top-1, top-5, agreement, KL, error of logits, in one pass.

Enters paths of ONNX files and a set of images; leaves an `Evaluation`. All models see the same images in the same
order, and every file is decoded once however many models and recipes there are.

Every output that has a row an image is compared, as what it is (metrics/task.py): classes by agreement and KL,
embeddings by cosine and neighbours, maps by overlap. Labels are those of the first output that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from corp_onnx.checks.chance import LabelWatch
from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images import Images, ImageSet, ImageSource, open_images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Batch, Skipped
from corp_onnx.images.labelling import LabelSource
from corp_onnx.images.open import is_stored
from corp_onnx.images.recipe import Recipe
from corp_onnx.metrics import Judgement
from corp_onnx.metrics.classes import compare_right
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.results import Metric, OutputScore, Result, Rows
from corp_onnx.run.feeds import fixed_batch
from corp_onnx.run.outputs import Outputs, find_outputs
from corp_onnx.run.runner import Runner, open_runner
from corp_onnx.run.views import View, prepare_views, require_labels, stream_views
from corp_onnx.settings import CONFIDENCE, Preprocessing, TaskChoice


@dataclass(frozen=True, slots=True)
class Score:
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

    def find(self, name: str) -> Metric | None:
        """A metric of the first output that is judged."""
        return next((output.find(name) for output in self.outputs if output.is_judged), None)

    @property
    def top1(self) -> float | None:
        """Share of images whose label is the first answer."""
        return self._value("top1")

    @property
    def top5(self) -> float | None:
        """Share of images whose label is among the first five."""
        return self._value("top5")

    @property
    def agreement(self) -> float | None:
        """Share of images on which the model's first answer is the reference's; None where answers are no classes."""
        return self._value("agreement")

    @property
    def kl(self) -> float | None:
        """Mean KL(softmax of the reference || softmax of the model), nats; None as for agreement."""
        return self._value("kl")

    @property
    def relative_error(self) -> float | None:
        """|z - z_ref| / |z_ref| over all images."""
        return self._value("relative_error")

    def _value(self, name: str) -> float | None:
        found = self.find(name)
        return None if found is None else found.value

    @property
    def figures(self) -> list[str]:
        """Those that are defined, with their names."""
        shares = (("top-1", self.top1), ("top-5", self.top5), ("agreement", self.agreement))
        found = [f"{name} {value:.1%}" for name, value in shares if value is not None]
        found += [] if self.kl is None else [f"KL {self.kl:.4f}"]
        return found + ([] if self.relative_error is None else [f"output off by {self.relative_error:.1%}"])


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
        labels: what the class labels are and how they were found; empty where there are none.
        preprocessing: where the recipe of each model comes from, in the order of `scores`; empty for arrays.
        warnings: what a person should know, one sentence each.
    """

    scores: tuple[Score, ...]
    baseline: Score | None
    n_images: int
    skipped: tuple[Skipped, ...]
    data_hash: str
    provider: str
    confidence: float = CONFIDENCE
    note: str = ""
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


def evaluate_models(
    models: Sequence[Path | str],
    images: ImageSource,
    *,
    reference: Path | str | None = None,
    labels: LabelSource = None,
    preprocessing: Preprocessing | None = None,
    recipe: Recipe | None = None,
    task: TaskChoice = "auto",
    outputs: Sequence[str] = (),
    confidence: float = CONFIDENCE,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    provider: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy of every model, and its distance from the reference, on the same images.

    Args:
        models: ONNX files; they may be quantised or of fixed batch.
        images: a path, arrays or an iterable of arrays (`open_images` says which), or what `open_images` gave: its
            labels are used where it has them, its own recipe is not.
        reference: the model that the others are compared with; it may be one of `models`.
        labels: a labels file, or class names in index order (`images/labelling.py`); for arrays the class index of
            each sample. None: the names that a model carries and the class folders, or what the images bring.
        preprocessing: changes to the recipe of the reference, or of the first model; it is then that of all.
        recipe: preprocessing for every model. None: the one in a model's metadata, or of a file beside it; a model
            with neither takes the one that all other models of the same input size have, else timm's for ImageNet.
        task: what the outputs are that are judged; `auto` looks.
        outputs: the outputs of the first model that are judged; none are the first that can be.
        confidence: of every interval.
        limit: take this many images, drawn at random.
        seed: of that draw.
        batch_size: images at a time; changes nothing but speed and memory.
        provider: as in `open_session`.
        threads: as in `open_session`.
        progress: told how far the run is.

    Raises:
        OptionError: no model, a number out of range, or neither labels nor a reference, so nothing to measure.
        ModelError: a file can not be loaded or run, or its output has another shape than the reference's.
        ImageError: too few readable images, or labels or arrays that do not fit a model.
        NonFiniteError: a model answers NaN or Inf.
    """
    if not models:
        raise OptionError("nothing to evaluate: give at least one model.")
    paths = [Path(model) for model in models]
    first = [] if reference is None else [Path(reference)]
    run = follow(progress)
    opening = partial(open_runner, provider=provider, threads=threads)
    opened = {} if is_stored(images) else {first_path: opening(first_path) for first_path in (first or paths)[:1]}
    ranks = {i.name: len(i.shape) for runner in opened.values() for i in runner.inputs}
    images = open_images(images, limit=limit, seed=seed, labels=_ask(images, labels), ranks=ranks)
    if not first:
        require_labels(images)
    run.plan([Phase("evaluate", images.n_images * len(dict.fromkeys(first + paths)))])
    runners = [opened.get(path) or opening(path) for path in dict.fromkeys(first + paths)]
    views = prepare_views(images, runners, recipe, preprocessing or Preprocessing())
    if not first and isinstance(images, ImageSet) and all(view.labels.indices is None for view in views):
        raise OptionError(f"nothing to measure without --reference: no top-1, because {views[0].labels.note}.")
    step = max(fixed_batch(runner.inputs) or 1 for runner in runners)
    batch_size = math.ceil(batch_size / step) * step  # a fixed batch is filled up only once, at the end
    contest: _Contest | None = None
    n_done, note = 0, ""
    with run.enter("evaluate", images.n_images) as count:
        for batches in stream_views(images, views, batch_size):
            if contest is None:
                contest = _open_contest(runners, batches, bool(first), task, outputs)
            note = contest.add(batches, images) or note
            n_done += len(batches[0])
            count(len(batches[0]))
    assert contest is not None  # a set of images is never empty
    scores = {v.runner.path: contest.score(i, v.recipe, confidence) for i, v in enumerate(views)}
    origins = {view.runner.path: view.found.origin for view in views if view.found is not None}
    return Evaluation(
        scores=tuple(scores[path] for path in paths),
        baseline=scores[first[0]] if first else None,
        n_images=n_done,
        skipped=images.skipped,
        data_hash=images.data_hash(),
        provider=runners[0].session.provider,
        confidence=confidence,
        note=next((f"no top-1 and top-5: {view.labels.note}" for view in views if view.labels.note), note),
        labels=next((view.labels.meaning for view in views if view.labels.meaning), ""),
        preprocessing=tuple(origins[path] for path in paths if path in origins),
        warnings=_warn(views, contest.watches),
    )


def _ask(images: ImageSource, labels: LabelSource) -> LabelSource:
    """The labels to open images with: where nothing is given, what folders say, or what was asked for before."""
    is_opened = isinstance(images, (ImageSet, ArraySet))
    return "folders" if labels is None and not is_opened else labels


def _warn(views: Sequence[View], watches: Sequence[LabelWatch]) -> tuple[str, ...]:
    """Guessed preprocessing, once; labels that look as if they were in another order, for the models that show it."""
    guesses = (view.found.advise() for view in views if view.found is not None)
    orders = (watch.describe_order(view.runner.path) for view, watch in zip(views, watches, strict=True))
    return tuple(text for text in dict.fromkeys((*guesses, *orders)) if text)


@dataclass(frozen=True, slots=True, eq=False)
class _Contest:
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
            judged = answers[judgement.first.task.output]
            labels, why = _usable_labels(images, batch, judged, runner.path)
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


def _open_contest(
    runners: Sequence[Runner], batches: Sequence[Batch], has_reference: bool, task: TaskChoice, named: Sequence[str]
) -> _Contest:
    """What is compared, by the answers to the first batch: with a reference, what its outputs are."""
    found: list[Outputs] = []
    for place, (runner, batch) in enumerate(zip(runners, batches, strict=True)):
        if place == 0 or not has_reference:
            found.append(find_outputs(runner.session, runner.session.split(batch), task=task, named=named))
    shown = found * len(runners) if has_reference else found
    names = [_match_names(outputs, runner) for outputs, runner in zip(shown, runners, strict=True)]
    judgements = tuple(
        Judgement([task for task in outputs.tasks if task.output in own], outputs.judged)
        for outputs, own in zip(shown, names, strict=True)
    )
    return _Contest(runners, tuple(names), judgements, has_reference, tuple(LabelWatch() for _ in runners))


def _match_names(outputs: Outputs, runner: Runner) -> dict[str, str]:
    """A model's name for every output of another: the same, else that of the same place."""
    own = runner.session.outputs
    wanted = [task.output for task in outputs.tasks]
    if all(name in own for name in outputs.judged):
        return {name: name for name in wanted if name in own}
    return dict(zip(wanted, own, strict=False))


def _usable_labels(
    images: Images, batch: Batch, outputs: np.ndarray, path: Path
) -> tuple[Int64[np.ndarray, " n"] | None, str]:
    """(labels to count with, or None; why they were asked for and can not be used, or empty)."""
    if batch.labels is None:
        return None, ""
    if outputs.ndim != 2:
        return None, f"no top-1 and top-5: the output of {path.name} has shape {list(outputs.shape)}, not [n, classes]"
    n_classes = outputs.shape[1]
    if isinstance(images, ArraySet) and (batch.labels.min() < 0 or batch.labels.max() >= n_classes):
        raise ImageError(f"{images.path}: a label lies outside 0..{n_classes - 1}, the classes of {path.name}.")
    return batch.labels, ""
