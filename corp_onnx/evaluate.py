"""How good a model still is: models + images -> top-1, top-5, agreement, KL, error of logits, in one pass.

Enters paths of ONNX files and a set of images; leaves an `Evaluation`. All models see the same images in the same
order, and every file is decoded once however many models and recipes there are.

The *first* output of a model is compared, because exporters put the logits first: a distilled DeiT with two heads is
judged by its class head. Two-dimensional outputs [n, classes] are taken as logits. Any other shape (features, tokens)
has no top-1, agreement or KL, only the relative error. Nothing tells embeddings [n, d] from logits: for those, read the
relative error and leave the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from corp_onnx.metrics import Tally, binomial_error
from corp_onnx.run.feeds import fixed_batch
from corp_onnx.run.runner import Runner, open_runner
from corp_onnx.run.views import View, prepare_views, require_labels, stream_views
from corp_onnx.settings import Preprocessing

SCHEMA = 1


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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All models on the same images.

    Attributes:
        scores: one for each model, in the order given.
        baseline: the reference's own score, without agreement, KL and error.
        n_images: images counted.
        skipped: files that gave no image.
        data_hash: identity of the images, see `ImageSet.data_hash`.
        provider: where ONNX Runtime ran.
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
    note: str = ""
    labels: str = ""
    preprocessing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The evaluation as JSON, schema 1; keys are the attributes."""
        return json.dumps({"schema": SCHEMA} | asdict(self))


def evaluate_models(
    models: Sequence[Path | str],
    images: ImageSource,
    *,
    reference: Path | str | None = None,
    labels: LabelSource = None,
    preprocessing: Preprocessing | None = None,
    recipe: Recipe | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    provider: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
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
        limit: take this many images, drawn at random.
        seed: of that draw.
        batch_size: images at a time; changes nothing but speed and memory.
        provider: as in `open_session`.
        threads: as in `open_session`.
        progress: called with (images done, images in all) after each batch.

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
    opening = partial(open_runner, provider=provider, threads=threads)
    opened = {} if is_stored(images) else {first_path: opening(first_path) for first_path in (first or paths)[:1]}
    ranks = {i.name: len(i.shape) for runner in opened.values() for i in runner.inputs}
    images = open_images(images, limit=limit, seed=seed, labels=_ask(images, labels), ranks=ranks)
    if not first:
        require_labels(images)
    runners = [opened.get(path) or opening(path) for path in dict.fromkeys(first + paths)]
    views = prepare_views(images, runners, recipe, preprocessing or Preprocessing())
    if not first and isinstance(images, ImageSet) and all(view.labels.indices is None for view in views):
        raise OptionError(f"nothing to measure without --reference: no top-1, because {views[0].labels.note}.")
    step = max(fixed_batch(runner.inputs) or 1 for runner in runners)
    batch_size = math.ceil(batch_size / step) * step  # a fixed batch is filled up only once, at the end
    tallies = [Tally() for _ in runners]
    watches = [LabelWatch() for _ in runners]
    n_done, note = 0, ""
    for batches in stream_views(images, views, batch_size):
        note = _add_batches(runners, tallies, batches, images, bool(first), watches) or note
        n_done += len(batches[0])
        if progress is not None:
            progress(n_done, images.n_images)
    scores = {r.path: _score(r, t, v.recipe) for r, t, v in zip(runners, tallies, views, strict=True)}
    origins = {view.runner.path: view.found.origin for view in views if view.found is not None}
    return Evaluation(
        scores=tuple(scores[path] for path in paths),
        baseline=scores[first[0]] if first else None,
        n_images=n_done,
        skipped=images.skipped,
        data_hash=images.data_hash(),
        provider=runners[0].session.provider,
        note=next((f"no top-1 and top-5: {view.labels.note}" for view in views if view.labels.note), note),
        labels=next((view.labels.meaning for view in views if view.labels.meaning), ""),
        preprocessing=tuple(origins[path] for path in paths if path in origins),
        warnings=_warn(views, watches),
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


def _add_batches(
    runners: Sequence[Runner],
    tallies: Sequence[Tally],
    batches: Sequence[Batch],
    images: Images,
    has_reference: bool,
    watches: Sequence[LabelWatch],
) -> str:
    """Run every model on its batch and count; the first model is the reference. Gives why labels went unused."""
    reference: np.ndarray | None = None
    note = ""
    for runner, tally, batch, watch in zip(runners, tallies, batches, watches, strict=True):
        outputs = runner.run(batch)
        labels, why = _usable_labels(images, batch, outputs, runner.path)
        note = note or why
        if reference is not None and outputs.shape != reference.shape:
            raise ModelError(
                f"{runner.path}: its first output has shape {list(outputs.shape)} and that of the reference "
                f"{runners[0].path} has {list(reference.shape)}; only models with the same answer can be compared."
            )
        tally.add(outputs, labels, reference)
        watch.add(outputs, labels)
        if has_reference and reference is None:
            reference = outputs
    return note


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
