"""How several models look at the same images: each through its own recipe, and with labels counted in its own order.

Enters images and opened models; leaves a `View` for each model, and batches for all of them side by side. Every file is
decoded once, however many recipes there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images import Images, ImageSet
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Batch
from corp_onnx.images.label_files import read_model_names
from corp_onnx.images.labelling import label_files
from corp_onnx.images.labels import Labels, ModelClasses, find_contradiction
from corp_onnx.images.open import spread_images
from corp_onnx.images.preprocessing import FoundRecipe, choose_recipe, refuse_changes
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.run.outputs import LOOKED_AT, Outputs, find_outputs
from corp_onnx.run.runner import Runner
from corp_onnx.settings import Preprocessing, TaskChoice


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One model and what it sees.

    Attributes:
        found: how images are prepared for it, and who says so; None for arrays.
        outputs: what of it can be compared.
        labels: the classes of the images in the order of its answers.
    """

    runner: Runner
    found: FoundRecipe | None
    outputs: Outputs
    labels: Labels

    @property
    def recipe(self) -> Recipe | None:
        """The preprocessing alone."""
        return None if self.found is None else self.found.recipe


def require_labels(images: Images) -> None:
    """Raise where nothing says what is on the images and no model could.

    Raises:
        OptionError: no labels.
    """
    if isinstance(images, ArraySet):
        if images.all_labels is None:
            raise OptionError(
                f"{images.path}: no array called labels, no --labels and no --reference: nothing to measure. Give "
                "one of them."
            )
        return
    labels = images.labels
    if labels.indices is None and (labels.request is None or labels.request.given is None):
        why = f" ({labels.note})" if labels.note else ""
        raise OptionError(
            f"{images.root}: no class folders{why}, no --labels and no --reference: nothing to measure. "
            "Give one of them."
        )


def prepare_views(
    images: Images,
    runners: Sequence[Runner],
    recipe: Recipe | None,
    changes: Preprocessing,
    *,
    task: TaskChoice = "auto",
    named: Sequence[str] = (),
    has_reference: bool = False,
) -> list[View]:
    """What each model sees.

    Args:
        recipe: for every model; None finds it as `choose_recipe` does. A guess gives way to the recipe that all other
            models of the same input size have.
        changes: to the recipe of the first model; it is then that of all.
        task: what a person says of the outputs that are judged.
        named: these outputs, of every model or, with a reference, of the first.
        has_reference: whether the others are compared with the first.

    Raises:
        OptionError: preprocessing for arrays, or an output that is not there or can not be what a person says.
        ModelError: a model takes no images, or its metadata is broken.
        ImageError: labels do not fit the images or a model, or two models name their classes in different orders.
    """
    recipes: Sequence[FoundRecipe | None] = [None] * len(runners)
    if isinstance(images, ArraySet):
        refuse_changes(changes, images.path)
    else:
        recipes = _choose_recipes(runners, recipe, changes)
    outputs = [
        _look(runner, images, found, task, () if place and has_reference else named)
        for place, (runner, found) in enumerate(zip(runners, recipes, strict=True))
    ]
    if isinstance(images, ArraySet):
        labels = [Labels()] * len(runners)
        outputs = [own.with_labels() if _has_fitting_labels(images, own) else own for own in outputs]
    elif images.labels.request is None:
        labels = [images.labels] * len(runners)
    else:
        request = images.labels.request
        classes = _lend_names([_describe_classes(*pair) for pair in zip(runners, outputs, strict=True)])
        labels = [label_files(images.names, request, model) for model in classes]
        pairs = zip(outputs, labels, strict=True)
        outputs = [own if found.indices is None else own.with_labels() for own, found in pairs]
    return [View(*row) for row in zip(runners, recipes, outputs, labels, strict=True)]


def _look(runner: Runner, images: Images, found: FoundRecipe | None, task: TaskChoice, named: Sequence[str]) -> Outputs:
    """What a model's outputs are, by a few images from all over the set."""
    if isinstance(images, ImageSet) and found is not None:
        images = replace(images, recipe=found.recipe)
    some = spread_images(images, LOOKED_AT)
    try:
        return find_outputs(runner.session, runner.session.stream(some, LOOKED_AT), task=task, named=named)
    except ImageError:
        if some.n_images:
            raise
        seen = runner.session.stream(images, LOOKED_AT)  # all of those are damaged
        return find_outputs(runner.session, seen, task=task, named=named)


def _has_fitting_labels(images: ArraySet, outputs: Outputs) -> bool:
    """Whether the labels of arrays can be classes of what is judged."""
    labels, n_classes = images.all_labels, outputs.judged_tasks[0].n_classes
    return labels is not None and n_classes is not None and labels.min() >= 0 and labels.max() < n_classes


def stream_views(images: Images, views: Sequence[View], batch_size: int) -> Iterator[tuple[Batch, ...]]:
    """One batch for each model at a time, labelled for it; models with the same recipe share the pixels."""
    if isinstance(images, ArraySet):
        yield from ((batch,) * len(views) for batch in images.batches(batch_size))
        return
    distinct = list(dict.fromkeys(view.recipe for view in views if view.recipe is not None))
    classes = [
        None if view.labels.indices is None else dict(zip(images.names, view.labels.indices, strict=True))
        for view in views
    ]
    for batches in images.batches_by_recipe(batch_size, distinct):
        of_recipe = dict(zip(distinct, batches, strict=True))
        own = [of_recipe[view.recipe] for view in views if view.recipe is not None]
        yield tuple(
            replace(batch, labels=None if index is None else np.array([index[n] for n in batch.names], np.int64))
            for batch, index in zip(own, classes, strict=True)
        )


def _choose_recipes(runners: Sequence[Runner], given: Recipe | None, changes: Preprocessing) -> list[FoundRecipe]:
    """The recipe of each model, as `evaluate_models` says under `recipe` and `preprocessing`."""
    if given is not None:
        return [FoundRecipe(given, "as given")] * len(runners)
    if changes != Preprocessing():
        return [_find_recipe(runners[0], changes)] * len(runners)
    owns = [_find_recipe(runner, changes) for runner in runners]
    # a pruned file carries its recipe and the dense one it came from may not: the same pixels must go to both
    sure = list({own.recipe: own for own in owns if not own.guessed}.values())
    carried = sure or list({o.recipe: o for o, r in zip(owns, runners, strict=True)
                            if METADATA_KEY in r.session.metadata}.values())  # fmt: skip
    chosen: list[FoundRecipe] = []
    for own in owns:
        other = carried[0].recipe if len(carried) == 1 else own.recipe
        fits = own.guessed and (other.size, other.channels) == (own.recipe.size, own.recipe.channels)
        chosen.append(carried[0] if fits and len(carried) == 1 else own)
    return chosen


def _find_recipe(runner: Runner, changes: Preprocessing) -> FoundRecipe:
    try:
        return choose_recipe(runner.path, runner.session.metadata, runner.inputs[0].shape, changes)
    except ModelError as error:
        raise ModelError(f"{runner.path}: {error}") from error


def _describe_classes(runner: Runner, outputs: Outputs) -> ModelClasses:
    """How many classes a model has, and their names where it carries as many."""
    names, n_classes = read_model_names(runner.path, runner.session.metadata), outputs.judged_tasks[0].n_classes
    return ModelClasses(runner.path, n_classes, names if names and len(names) == n_classes else None)


def _lend_names(classes: Sequence[ModelClasses]) -> list[ModelClasses]:
    """Models without names of their classes take those of another with as many: a pruned file and its source.

    Raises:
        ImageError: two models have the same names in different orders, so that their answers mean different things.
    """
    named = [model for model in classes if model.names is not None]
    for one, other in pairwise(named):
        assert one.names is not None
        assert other.names is not None
        if why := find_contradiction(one.names, other.names):
            raise ImageError(f"{why}; evaluate each of them by itself.")
    lenders = {model.n_classes: model.names for model in reversed(named)}
    return [model if model.names else replace(model, names=lenders.get(model.n_classes)) for model in classes]
