"""Images for calibration: opened, split by their use, and described for the report.

Enters images, wherever they are, and a model; leaves disjoint `Images`: those that weights are fitted to, those that
choose a size, and those that the report speaks of, which neither fit nor choose. The recipe is the model's own with a
person's changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corp_onnx.errors import ImageError, OptionError
from corp_onnx.graph import Model, input_dims
from corp_onnx.images import Images, ImageSet, ImageSource, open_images, split_holdout
from corp_onnx.images.arrays import ArraySet
from corp_onnx.images.batch import Skipped
from corp_onnx.images.memory import IN_MEMORY
from corp_onnx.images.open import find_sound, is_files
from corp_onnx.images.places import find_url
from corp_onnx.images.preprocessing import choose_recipe, refuse_changes
from corp_onnx.images.variety import describe_monotony
from corp_onnx.metrics.intervals import FEW_TO_JUDGE, images_needed
from corp_onnx.moments import Moments
from corp_onnx.results import CalibrationData
from corp_onnx.settings import Budget, Method, Preprocessing, PruneSettings
from corp_onnx.units import Unit

MIN_IMAGES = 2
"""One to calibrate on and one to hold back; a useful run has hundreds."""

FEW_IMAGES = 32
"""Below this many calibration images a warning says so."""

HELD_OUT_FRACTION = 0.2
MAX_HELD_OUT = 128
"""Images that only report: a fifth, and no more than both models need to answer in a few seconds."""

MAX_PROMISED = 256
"""The same where a promise is asked for, and as many again that choose; more where it takes more to prove it."""

FEW = 160
"""Below this many, none are set apart to choose: those that fit choose as well, in folds (search/folds.py)."""

MIN_PROMISED = 6
"""Two folds of two images, and two that report."""

FEW_HELD_OUT = 0.25
"""Images that only report then: an interval of a dozen is wide."""

KEPT_SHARE = 8
"""Of what a person allows in memory, an eighth for decoded photographs."""

N_NAMED = 3
"""Files without an image that a warning names."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Images by their use; no image has two.

    Attributes:
        fitting: for moments, probes and the refit.
        choosing: which size is taken; None where nothing is chosen, or where those that fit choose as well.
        reporting: what the report speaks of.
        is_crossed: whether `fitting` chooses as well, in folds.
    """

    fitting: Images
    reporting: Images
    choosing: Images | None = None
    is_crossed: bool = False

    @property
    def judging(self) -> Images:
        """What solutions are compared on."""
        return self.choosing or self.reporting


def open_calibration(model: Model, source: ImageSource, settings: PruneSettings) -> Calibration:
    """Images by their use; those held back are known to be readable."""
    if settings.n_images is not None and settings.n_images < MIN_IMAGES:
        raise OptionError(f"--images must be at least {MIN_IMAGES}, one of them held back; found {settings.n_images}.")
    images = open_for_model(
        model, source, settings.preprocessing, limit=settings.n_images, seed=settings.seed, minimum=MIN_IMAGES
    )
    if settings.memory_bytes is not None and isinstance(images, ImageSet):
        images.keep_less(settings.memory_bytes // KEPT_SHARE)
    while True:
        found = split_calibration(images, settings)
        held_back = [part for part in (found.choosing, found.reporting) if part is not None]
        try:
            for part in held_back:
                for _ in part.batches(settings.batch_size):
                    pass
            return found
        except ImageError:
            if not isinstance(images, ImageSet) or all(part.n_images > 0 for part in held_back):
                raise
        sound = find_sound(images)  # all that were held back for one use are damaged: draw others
        if len(sound) < MIN_IMAGES:
            counted = f"{name_source(source)}: {len(sound)} readable image{'' if len(sound) == 1 else 's'}"
            raise ImageError(f"{counted}, and at least {MIN_IMAGES} needed; {describe_skipped(images.skipped)}")
        images = images.select(sound)


def split_calibration(images: Images, settings: PruneSettings) -> Calibration:
    """Images by their use, drawn by the seed."""
    n, seed = images.n_images, settings.seed
    if not settings.method.promises:
        return Calibration(*split_holdout(images, min(HELD_OUT_FRACTION, MAX_HELD_OUT / n), seed))
    if n < MIN_PROMISED:
        raise ImageError(
            f"{n} images can neither choose a size nor say what it is worth: at least {MIN_PROMISED} are needed, a few "
            "hundred are better. Give more, or --macs F."
        )
    if n < FEW:
        return Calibration(*split_holdout(images, FEW_HELD_OUT, seed), is_crossed=True)
    fraction = min(HELD_OUT_FRACTION, max(MAX_PROMISED, _proving(settings.method)) / n)
    fitting, held_back = split_holdout(images, 2 * fraction, seed)
    choosing, reporting = split_holdout(held_back, 0.5, seed)
    return Calibration(fitting, reporting, choosing)


def _proving(method: Method) -> int:
    """Images that prove an agreement that is asked for, where half of what it allows to be lost is."""
    wanted = method.widths.value if isinstance(method.widths, Budget) and method.widths.kind == "agreement" else 0.0
    return images_needed(wanted, (1 + wanted) / 2) or 0


def open_for_model(
    model: Model, source: ImageSource, changes: Preprocessing, *, limit: int | None, seed: int, minimum: int
) -> Images:
    """Images as a model takes them: with its recipe and a person's changes where they are photographs.

    Args:
        source: as for `open_images`. A set that was opened with a recipe keeps it, unless there are changes.

    Raises:
        OptionError: changes for arrays.
        ModelError: the images are photographs and the model takes none.
    """
    dims = input_dims(model)
    if is_files(source):
        keeps = isinstance(source, ImageSet) and source.is_prepared and changes == Preprocessing()
        found = None if keeps else choose_recipe(model.path, model.metadata, next(iter(dims.values())), changes)
        if isinstance(source, ImageSet) and found is not None:
            source = replace(source, recipe=found.recipe, found=found)
        return open_images(source, found, limit=limit, seed=seed, minimum=minimum)
    ranks = {name: len(shape) for name, shape in dims.items()}
    images = open_images(source, limit=limit, seed=seed, minimum=minimum, ranks=ranks)
    if isinstance(images, ArraySet):
        refuse_changes(changes, images.path)
    return images


def name_source(source: ImageSource) -> str:
    """What texts and reports call images: their path, or that they were in memory."""
    if isinstance(source, ImageSet):
        return str(source.root)
    if isinstance(source, ArraySet):
        return str(source.path)
    return find_url(source) or str(source) if isinstance(source, (str, Path)) else str(IN_MEMORY)


def describe_data(source: ImageSource, data: Calibration, moments: Moments, settings: PruneSettings) -> CalibrationData:
    """What the moments were made from."""
    calibration = data.fitting
    recipe = json.loads(calibration.recipe_json()) if isinstance(calibration, ImageSet) else None
    return CalibrationData(
        path=name_source(source),
        data_hash=calibration.data_hash(),
        n_images=calibration.n_images,
        n_choosing=0 if data.choosing is None else data.choosing.n_images,
        n_held_out=data.reporting.n_images,
        n_tokens=int(max(m.n_tokens for _, m in moments.entries)),
        seed=settings.seed,
        recipe=recipe,
        recipe_origin=describe_origin(calibration),
        skipped=tuple((s.name, s.reason) for s in calibration.skipped),
    )


def describe_origin(images: Images) -> str | None:
    """Where the recipe of the images comes from; None for arrays, which have none."""
    if isinstance(images, ArraySet):
        return None
    return "given with the images" if images.found is None else images.found.origin


def warn_of_recipe(images: Images | None) -> list[str]:
    """That the preprocessing is a guess, where it is one."""
    found = images.found if isinstance(images, ImageSet) else None
    return [found.advise()] if found is not None and found.guessed else []


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """How many files gave no image, and the first of them with their reasons."""
    names = ", ".join(f"{s.name} ({s.reason})" for s in skipped[:N_NAMED])
    more = f" and {len(skipped) - N_NAMED} more" if len(skipped) > N_NAMED else ""
    return f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} gave no image and were left out: {names}{more}."


def warn_of_images(data: Calibration) -> tuple[str, ...]:
    """What a person should know of the images before any work, one sentence each."""
    found: list[str] = []
    calibration, n_reporting = data.fitting, data.reporting.n_images
    if calibration.n_images < FEW_IMAGES:
        found.append(f"only {calibration.n_images} calibration images; a few hundred give a better model.")
    if n_reporting < FEW_TO_JUDGE:
        found.append(
            f"only {n_reporting} image{'s' if n_reporting > 1 else ''}, held back from the others, "
            f"{'say' if n_reporting > 1 else 'says'} how good the model still is; "
            f"{math.ceil(FEW_TO_JUDGE / HELD_OUT_FRACTION)} images in all would leave {FEW_TO_JUDGE}."
        )
    monotony = describe_monotony(calibration)
    if monotony:
        found.append(monotony)
    return (*found, *warn_of_recipe(calibration))


def warn_of_moments(units: Sequence[Unit], moments: Moments, images: Images) -> tuple[str, ...]:
    """What a person should know of the images when all of them were seen."""
    found = [describe_skipped(images.skipped)] if images.skipped else []
    short = [unit for unit in units if moments[str(unit.key)].n_tokens < unit.n_regressors]
    if short:
        n_tokens = int(moments[str(short[0].key)].n_tokens)
        found.append(
            f"{n_tokens} tokens for up to {max(u.n_regressors for u in short)} channels in {len(short)} units: the "
            "ridge still solves them, and more images would give better weights."
        )
    return tuple(found)
