"""How good a model still is: models + images -> top-1, top-5, agreement, KL, error of logits, in one pass.

Enters paths of ONNX files and a set of images; leaves an `Evaluation`. All models see the same images in the same
order, and every file is decoded once however many models and recipes there are.

Every output that has a row an image is compared, as what it is (metrics/task.py): classes by agreement and KL,
embeddings by cosine and neighbours, maps by overlap. Labels are those of the first output that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from corp_onnx.checks.chance import LabelWatch
from corp_onnx.errors import OptionError
from corp_onnx.evaluate.contest import open_contest
from corp_onnx.evaluate.scores import Evaluation
from corp_onnx.images import Images, ImageSet, ImageSource, open_images
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.labelling import LabelSource
from corp_onnx.images.open import is_stored
from corp_onnx.images.recipe import Recipe
from corp_onnx.metrics.intervals import FEW_TO_JUDGE
from corp_onnx.progress import Phase, Progress, follow
from corp_onnx.run.feeds import fixed_batch
from corp_onnx.run.runner import open_runner
from corp_onnx.run.views import View, prepare_views, require_labels, stream_views
from corp_onnx.settings import CONFIDENCE, Preprocessing, TaskChoice, require_task


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
    require_task(task, confidence)
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
    views = prepare_views(
        images, runners, recipe, preprocessing or Preprocessing(), task=task, named=outputs, has_reference=bool(first)
    )
    early = _warn_early(views, images)
    run.warn(early)
    _require_measure(views, images, is_compared=len(runners) > 1 and bool(first))
    step = max(fixed_batch(runner.inputs) or 1 for runner in runners)
    batch_size = math.ceil(batch_size / step) * step  # a fixed batch is filled up only once, at the end
    contest = open_contest(views, has_reference=bool(first))
    n_done, note = 0, ""
    with run.enter("evaluate", images.n_images) as count:
        for batches in stream_views(images, views, batch_size):
            note = contest.add(batches, images) or note
            n_done += len(batches[0])
            count(len(batches[0]))
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
        notes=tuple(dict.fromkeys(line for v in (views[:1] if first else views) for line in v.outputs.describe())),
        preprocessing=tuple(origins[path] for path in paths if path in origins),
        warnings=(*early, *_warn_of_order(views, contest.watches)),
    )


def _ask(images: ImageSource, labels: LabelSource) -> LabelSource:
    """The labels to open images with: where nothing is given, what folders say, or what was asked for before."""
    is_opened = isinstance(images, (ImageSet, ArraySet))
    return "folders" if labels is None and not is_opened else labels


def _require_measure(views: Sequence[View], images: Images, *, is_compared: bool) -> None:
    """Refuse a run that has neither labels nor another model to compare with, and would be a table of dashes."""
    has_labels = isinstance(images, ArraySet) and images.all_labels is not None
    labelled = [view for view in views if has_labels or view.labels.indices is not None]
    judged = [view.outputs.judged_tasks[0] for view in labelled]
    if is_compared or any(task.task == "classify" and task.n_classes is not None for task in judged):
        return
    notes = [view.labels.note for view in views if view.labels.note] or ["there are no labels"]
    why = judged[0].describe().removesuffix(".") if judged else notes[0]
    raise OptionError(f"nothing to measure without another model as --reference: no top-1, because {why}.")


def _warn_early(views: Sequence[View], images: Images) -> tuple[str, ...]:
    """Too few images, or no fair draw of them, and guessed preprocessing, once."""
    n_images, note = images.n_images, images.note if isinstance(images, ImageSet) else ""
    counted = "one image says" if n_images == 1 else f"{n_images} images say"
    few = f"only {counted} how good the models are, and intervals are wide; {FEW_TO_JUDGE} or more help."
    guesses = (view.found.advise() for view in views if view.found is not None)
    return tuple(text for text in dict.fromkeys((few if n_images < FEW_TO_JUDGE else "", note, *guesses)) if text)


def _warn_of_order(views: Sequence[View], watches: Sequence[LabelWatch]) -> tuple[str, ...]:
    """Labels that look as if they were in another order, for the models that show it."""
    orders = (watch.describe_order(view.runner.path) for view, watch in zip(views, watches, strict=True))
    return tuple(text for text in orders if text)
