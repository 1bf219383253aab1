"""Images for calibration: opened, split into those for the moments and those held back, and described for the report.

Enters a path and a model; leaves two disjoint `Images`. The recipe is the model's own with a person's changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from corp_onnx.errors import ImageError, OptionError
from corp_onnx.graph import Model, input_dims
from corp_onnx.images import Images, ImageSet, open_images, split_holdout
from corp_onnx.images.arrays import is_array_file
from corp_onnx.images.batch import Skipped
from corp_onnx.images.recipe import Recipe, find_recipe, make_recipe
from corp_onnx.images.variety import describe_monotony
from corp_onnx.moments import Moments
from corp_onnx.results import CalibrationData
from corp_onnx.settings import Preprocessing, PruneSettings
from corp_onnx.units import Unit

MIN_IMAGES = 2
"""One to calibrate on and one to hold back; a useful run has hundreds."""

FEW_IMAGES = 32
"""Below this many calibration images a warning says so."""

HELD_OUT_FRACTION = 0.125
MAX_HELD_OUT = 64
"""Images held back from the moments to measure on: an eighth, and no more than give a standard error of 4 %."""

JUDGE_FRACTION = 0.25
MAX_JUDGE = 256
"""The same where the held-back images decide the size of the model (`--min-agreement`): more of them, since a share
of 0.9 measured on 64 images is off by 4 points."""

N_NAMED = 3
"""Files without an image that a warning names."""


def open_calibration(model: Model, path: Path, settings: PruneSettings) -> tuple[Images, Images]:
    """(images for the moments, images held back); those held back are known to be readable."""
    if settings.n_images is not None and settings.n_images < MIN_IMAGES:
        raise OptionError(f"--images must be at least {MIN_IMAGES}, one of them held back; found {settings.n_images}.")
    images = open_images(
        path, change_recipe(model.metadata, next(iter(input_dims(model).values())), settings.preprocessing, path),
        limit=settings.n_images, seed=settings.seed, minimum=MIN_IMAGES,
    )  # fmt: skip
    while True:
        fraction = held_out_fraction(images.n_images, settings)
        calibration, held_out = split_holdout(images, fraction, settings.seed)
        try:
            for _ in held_out.batches(settings.batch_size):
                pass
            return calibration, held_out
        except ImageError:
            if not isinstance(images, ImageSet) or held_out.n_images > 0:
                raise
        damaged = {s.name for s in images.skipped}  # all that were held back: draw others
        sound = [i for i, name in enumerate(images.names) if name not in damaged]
        if len(sound) < MIN_IMAGES:
            counted = f"{len(sound)} readable image{'' if len(sound) == 1 else 's'}"
            raise ImageError(f"{path}: {counted}, and at least {MIN_IMAGES} needed; {describe_skipped(images.skipped)}")
        images = images.select(sound)


def held_out_fraction(n_images: int, settings: PruneSettings) -> float:
    """The share of the images that is held back."""
    if settings.method.judges_by_agreement:
        return min(JUDGE_FRACTION, MAX_JUDGE / n_images)
    return min(HELD_OUT_FRACTION, MAX_HELD_OUT / n_images)


def change_recipe(
    metadata: Mapping[str, str], shape: Sequence[int | str | None], changes: Preprocessing, data: Path
) -> Recipe | None:
    """The recipe of a model with a person's changes; None where the data is arrays and nothing is preprocessed.

    Args:
        metadata: the model's metadata properties.
        shape: of its image input.

    Raises:
        OptionError: changes for arrays.
        ModelError: the model takes no images.
    """
    if data.is_file() and is_array_file(data):
        given = [f"--{name.replace('_', '-')}" for name, value in asdict(changes).items() if value is not None]
        if given:
            raise OptionError(f"{data}: holds arrays, which are not preprocessed; leave out {', '.join(given)}.")
        return None
    base = find_recipe(metadata, shape)
    return make_recipe(base.size, base=base, channels=base.channels, **asdict(changes))


def describe_data(
    path: Path, calibration: Images, held_out: Images, moments: Moments, settings: PruneSettings
) -> CalibrationData:
    """What the moments were made from."""
    recipe = json.loads(calibration.recipe.to_json()) if isinstance(calibration, ImageSet) else None
    return CalibrationData(
        path=str(path),
        data_hash=calibration.data_hash(),
        n_images=calibration.n_images,
        n_held_out=held_out.n_images,
        n_tokens=int(max(m.n_tokens for _, m in moments.entries)),
        seed=settings.seed,
        recipe=recipe,
        skipped=tuple((s.name, s.reason) for s in calibration.skipped),
    )


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """How many files gave no image, and the first of them with their reasons."""
    names = ", ".join(f"{s.name} ({s.reason})" for s in skipped[:N_NAMED])
    more = f" and {len(skipped) - N_NAMED} more" if len(skipped) > N_NAMED else ""
    return f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} gave no image and were left out: {names}{more}."


def warn_of_data(units: Sequence[Unit], moments: Moments, calibration: Images) -> tuple[str, ...]:
    """What a person should know about the data, one sentence each."""
    found: list[str] = []
    if calibration.skipped:
        found.append(describe_skipped(calibration.skipped))
    if calibration.n_images < FEW_IMAGES:
        found.append(f"only {calibration.n_images} calibration images; a few hundred give a better model.")
    monotony = describe_monotony(calibration)
    if monotony:
        found.append(monotony)
    short = [unit for unit in units if moments[str(unit.key)].n_tokens < unit.n_regressors]
    if short:
        n_tokens = int(moments[str(short[0].key)].n_tokens)
        found.append(
            f"{n_tokens} tokens for up to {max(u.n_regressors for u in short)} channels in {len(short)} units: the "
            "ridge still solves them, and more images would give better weights."
        )
    return tuple(found)
