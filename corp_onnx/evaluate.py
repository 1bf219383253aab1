"""How good a model still is: models + images -> top-1, top-5, agreement, KL, error of logits, in one pass.

Enters paths of ONNX files and a set of images; leaves an `Evaluation`. All models see the same images in the same
order, and every file is decoded once however many models and recipes there are.

The *first* output of a model is compared, because exporters put the logits first: a distilled DeiT with two heads is
judged by its class head. Two-dimensional outputs [n, classes] are taken as logits. Any other shape (features, tokens)
has no top-1, agreement or KL, only the relative error. Nothing tells embeddings [n, d] from logits: for those, read the
relative error and leave the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images import Images, open_images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Batch, Skipped
from corp_onnx.images.recipe import METADATA_KEY, Recipe, find_recipe
from corp_onnx.metrics import Tally, binomial_error
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.results import Result, Rows
from corp_onnx.run.feeds import fixed_batch
from corp_onnx.run.runner import Runner, open_runner


@dataclass(frozen=True, slots=True)
class Score:
    """One model on the images; a share lies in 0..1 and has its binomial standard error, None is 'not defined'.

    Attributes:
        model: path of the file.
        n_images: images counted.
        recipe: how they were preprocessed; None for arrays.
        top1: share of images whose label is the first answer.
        top5: share of images whose label is among the first five.
        agreement: share of images on which the model's first answer is the reference's.
        kl: mean KL(softmax of the reference || softmax of the model), nats.
        logit_error: |z - z_ref| / |z_ref| over all images and outputs.
    """

    model: str
    n_images: int
    recipe: Recipe | None
    top1: float | None = None
    top1_error: float | None = None
    top5: float | None = None
    top5_error: float | None = None
    agreement: float | None = None
    agreement_error: float | None = None
    kl: float | None = None
    logit_error: float | None = None

    @property
    def figures(self) -> list[str]:
        """Those that are defined, with their names."""
        shares = (("top-1", self.top1), ("top-5", self.top5), ("agreement", self.agreement))
        found = [f"{name} {value:.1%}" for name, value in shares if value is not None]
        found += [] if self.kl is None else [f"KL {self.kl:.4f}"]
        return found + ([] if self.logit_error is None else [f"output off by {self.logit_error:.1%}"])


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
        note: why there is no top-1 although labels were asked for; empty otherwise.
    """

    scores: tuple[Score, ...]
    baseline: Score | None
    n_images: int
    skipped: tuple[Skipped, ...]
    data_hash: str
    provider: str
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
    tallies = [Tally() for _ in runners]
    n_done, note = 0, ""
    with run.enter("evaluate", images.n_images) as count:
        for batches in _stream(images, batch_size, recipes):
            note = _add_batches(runners, tallies, batches, images, bool(first)) or note
            n_done += len(batches[0])
            count(len(batches[0]))
    scores = {r.path: _score(r, t, c) for r, t, c in zip(runners, tallies, recipes, strict=True)}
    return Evaluation(
        scores=tuple(scores[path] for path in paths),
        baseline=scores[first[0]] if first else None,
        n_images=n_done,
        skipped=images.skipped,
        data_hash=images.data_hash(),
        provider=runners[0].session.provider,
        note=note,
    )


def _add_batches(
    runners: Sequence[Runner], tallies: Sequence[Tally], batches: Sequence[Batch], images: Images, has_reference: bool
) -> str:
    """Run every model on its batch and count; the first model is the reference. Gives why labels went unused."""
    reference: np.ndarray | None = None
    note = ""
    for runner, tally, batch in zip(runners, tallies, batches, strict=True):
        outputs = runner.run(batch)
        labels, why = _usable_labels(images, batch, outputs, runner.path)
        note = note or why
        if reference is not None and outputs.shape != reference.shape:
            raise ModelError(
                f"{runner.path}: its first output has shape {list(outputs.shape)} and that of the reference "
                f"{runners[0].path} has {list(reference.shape)}; only models with the same answer can be compared."
            )
        tally.add(outputs, labels, reference)
        if has_reference and reference is None:
            reference = outputs
    return note


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


def _score(runner: Runner, tally: Tally, recipe: Recipe | None) -> Score:
    """The running sums of a model as shares and means."""
    n = tally.n_samples
    shares = {name: count / n for name, count in (("top1", tally.n_top1), ("top5", tally.n_top5)) if count is not None}
    errors = {f"{name}_error": binomial_error(share, n) for name, share in shares.items()}
    return Score(
        str(runner.path), n, recipe, **shares, **errors,
        agreement=tally.agreement, agreement_error=tally.agreement_error, kl=tally.kl,
        logit_error=tally.relative_error(),
    )  # fmt: skip
