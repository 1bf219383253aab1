"""How good a model still is: models + images -> top-1, top-5, agreement, KL, error of logits, in one pass.

Enters paths of ONNX files and a set of images; leaves an `Evaluation`. All models see the same images in the same
order, and every file is decoded once however many models and recipes there are.

Every output that has a row an image is compared, as what it is (metrics/task.py): classes by agreement and KL,
embeddings by cosine and neighbours, maps by overlap. Labels are those of the first output that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images import Images, open_images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Batch, Skipped
from corp_onnx.images.recipe import METADATA_KEY, Recipe, find_recipe
from corp_onnx.metrics import Judgement
from corp_onnx.metrics.classes import compare_right
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.results import Metric, OutputScore, Result, Rows
from corp_onnx.run.feeds import fixed_batch
from corp_onnx.run.outputs import Outputs, find_outputs
from corp_onnx.run.runner import Runner, open_runner
from corp_onnx.settings import CONFIDENCE, TaskChoice


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
    """

    scores: tuple[Score, ...]
    baseline: Score | None
    n_images: int
    skipped: tuple[Skipped, ...]
    data_hash: str
    provider: str
    confidence: float = CONFIDENCE
    note: str = ""

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
    images: Images | Path | str,
    *,
    reference: Path | str | None = None,
    recipe: Recipe | None = None,
    task: TaskChoice = "auto",
    outputs: Sequence[str] = (),
    confidence: float = CONFIDENCE,
    batch_size: int = 32,
    provider: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy of every model, and its distance from the reference, on the same images.

    Args:
        models: ONNX files; they may be quantised or of fixed batch.
        images: what `open_images` gave; its labels are used where it has them. Its own recipe is not. Or the path of
            a folder, whose class folders are the labels, or of arrays.
        reference: the model that the others are compared with; it may be one of `models`.
        recipe: preprocessing for every model. None: the one in a model's metadata, else the one that all other models
            of the same input size carry, else timm's for the input size.
        task: what the outputs are that are judged; `auto` looks.
        outputs: the outputs of the first model that are judged; none are the first that can be.
        confidence: of every interval.
        batch_size: images at a time; changes nothing but speed and memory.
        provider: as in `open_session`.
        threads: as in `open_session`.
        progress: told how far the run is.

    Raises:
        OptionError: no model, or a number out of range.
        ModelError: a file can not be loaded or run, or its output has another shape than the reference's.
        ImageError: too few readable images, or labels or arrays that do not fit a model.
        NonFiniteError: a model answers NaN or Inf.
    """
    if not models:
        raise OptionError("nothing to evaluate: give at least one model.")
    if isinstance(images, (str, Path)):
        images = open_images(images, labels="folders")
    paths = [Path(model) for model in models]
    first = [] if reference is None else [Path(reference)]
    run = follow(progress)
    run.plan([Phase("evaluate", images.n_images * len(dict.fromkeys(first + paths)))])
    runners = [open_runner(path, provider=provider, threads=threads) for path in dict.fromkeys(first + paths)]
    recipes = [None] * len(runners) if isinstance(images, ArraySet) else _choose_recipes(runners, recipe)
    step = max(fixed_batch(runner.inputs) or 1 for runner in runners)
    batch_size = math.ceil(batch_size / step) * step  # a fixed batch is filled up only once, at the end
    contest: _Contest | None = None
    n_done, note = 0, ""
    with run.enter("evaluate", images.n_images) as count:
        for batches in _stream(images, batch_size, recipes):
            if contest is None:
                contest = _open_contest(runners, batches, bool(first), task, outputs)
            note = contest.add(batches, images) or note
            n_done += len(batches[0])
            count(len(batches[0]))
    assert contest is not None  # a set of images is never empty
    scores = {r.path: contest.score(i, recipes[i], confidence) for i, r in enumerate(runners)}
    return Evaluation(
        scores=tuple(scores[path] for path in paths),
        baseline=scores[first[0]] if first else None,
        n_images=n_done,
        skipped=images.skipped,
        data_hash=images.data_hash(),
        provider=runners[0].session.provider,
        confidence=confidence,
        note=note,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Contest:
    """Models over the same images, and what is counted of each.

    Attributes:
        runners: the reference first, where there is one.
        names: of every model, its name for each of the first model's outputs that are compared.
        judgements: one a model; its tasks go by the first model's names.
        has_reference: whether the others are compared with the first.
    """

    runners: Sequence[Runner]
    names: tuple[Mapping[str, str], ...]
    judgements: tuple[Judgement, ...]
    has_reference: bool

    def add(self, batches: Sequence[Batch], images: Images) -> str:
        """Run every model on its batch and count. Gives why labels went unused, or nothing."""
        reference: dict[str, np.ndarray] | None = None
        note = ""
        for runner, names, judgement, batch in zip(self.runners, self.names, self.judgements, batches, strict=True):
            found = runner.run(batch, list(names.values()))
            answers = {name: found[own] for name, own in names.items()}
            labels, why = _usable_labels(images, batch, answers[judgement.first.task.output], runner.path)
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
    return _Contest(runners, tuple(names), judgements, has_reference)


def _match_names(outputs: Outputs, runner: Runner) -> dict[str, str]:
    """A model's name for every output of another: the same, else that of the same place."""
    own = runner.session.outputs
    wanted = [task.output for task in outputs.tasks]
    if all(name in own for name in outputs.judged):
        return {name: name for name in wanted if name in own}
    return dict(zip(wanted, own, strict=False))


def _choose_recipes(runners: Sequence[Runner], given: Recipe | None) -> list[Recipe | None]:
    """The recipe of each model, as `evaluate_models` says under `recipe`."""
    if given is not None:
        return [given] * len(runners)
    metadata = [runner.session.metadata for runner in runners]
    owns: list[Recipe] = []
    for runner, properties in zip(runners, metadata, strict=True):
        try:
            owns.append(find_recipe(properties, runner.inputs[0].shape))
        except ModelError as error:
            raise ModelError(f"{runner.path}: {error}") from error
    carried = {own for own, properties in zip(owns, metadata, strict=True) if METADATA_KEY in properties}
    chosen: list[Recipe | None] = []
    for own, properties in zip(owns, metadata, strict=True):
        # a pruned file carries its recipe and the dense one it came from may not: the same pixels must go to both
        if METADATA_KEY not in properties and len(carried) == 1:
            other = next(iter(carried))
            own = other if (other.size, other.channels) == (own.size, own.channels) else own
        chosen.append(own)
    return chosen


def _stream(images: Images, batch_size: int, recipes: Sequence[Recipe | None]) -> Iterator[tuple[Batch, ...]]:
    """One batch for each model at a time; models with the same recipe share it."""
    if isinstance(images, ArraySet):
        yield from ((batch,) * len(recipes) for batch in images.batches(batch_size))
        return
    distinct = list(dict.fromkeys(recipe for recipe in recipes if recipe is not None))
    for batches in images.batches_by_recipe(batch_size, distinct):
        of_recipe = dict(zip(distinct, batches, strict=True))
        yield tuple(of_recipe[recipe] for recipe in recipes if recipe is not None)


def _usable_labels(
    images: Images, batch: Batch, outputs: np.ndarray, path: Path
) -> tuple[Int64[np.ndarray, " n"] | None, str]:
    """(labels to count with, or None; why they were asked for and can not be used, or empty)."""
    note = "" if isinstance(images, ArraySet) else images.labels.note
    if batch.labels is None:
        return None, f"no top-1 and top-5: {note}" if note else ""
    if outputs.ndim != 2:
        return None, f"no top-1 and top-5: the output of {path.name} has shape {list(outputs.shape)}, not [n, classes]"
    n_classes = outputs.shape[1]
    if isinstance(images, ArraySet):
        if batch.labels.min() < 0 or batch.labels.max() >= n_classes:
            raise ImageError(f"{images.path}: a label lies outside 0..{n_classes - 1}, the classes of {path.name}.")
    elif images.labels.n_classes != n_classes and images.labels.source is not None:
        raise ImageError(
            f"{images.labels.source}: {images.labels.n_classes} class names, and {path.name} has {n_classes} classes; "
            "give the labels file of the data set that the model was trained on."
        )
    elif images.labels.n_classes != n_classes:
        return None, (
            f"no top-1 and top-5: {images.root} has {images.labels.n_classes} class folders and {path.name} has "
            f"{n_classes} classes, so folder order is not class order; give a labels file that names every class"
        )
    return batch.labels, ""
