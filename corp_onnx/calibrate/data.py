"""Images for calibration: opened, split by their use, and described for the report.

Enters a path and a model; leaves disjoint `Images`: those that weights are fitted to, those that choose a size, and
those that the report speaks of, which neither fit nor choose. The recipe is the model's own with a person's changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

HELD_OUT_FRACTION = 0.2
MAX_HELD_OUT = 128
"""Images that only report: a fifth, and no more than prove a share of 0.95 with 97 % of them."""

MAX_PROMISED = 256
"""The same where a promise is asked for, and as many again that choose."""

FEW = 160
"""Below this many, none are set apart to choose: those that fit choose as well, in folds (search/folds.py)."""

FEW_HELD_OUT = 0.25
"""Images that only report then: an interval of a dozen is wide."""

FEW_JUDGING = 100
"""Below this many images that report a warning says so: a share of 0.95 is then off by 4 points and more."""

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


def open_calibration(model: Model, path: Path, settings: PruneSettings) -> Calibration:
    """Images by their use; those held back are known to be readable."""
    if settings.n_images is not None and settings.n_images < MIN_IMAGES:
        raise OptionError(f"--images must be at least {MIN_IMAGES}, one of them held back; found {settings.n_images}.")
    images = open_images(
        path, change_recipe(model.metadata, next(iter(input_dims(model).values())), settings.preprocessing, path),
        limit=settings.n_images, seed=settings.seed, minimum=MIN_IMAGES,
    )  # fmt: skip
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
        damaged = {s.name for s in images.skipped}  # all that were held back for one use: draw others
        sound = [i for i, name in enumerate(images.names) if name not in damaged]
        if len(sound) < MIN_IMAGES:
            counted = f"{len(sound)} readable image{'' if len(sound) == 1 else 's'}"
            raise ImageError(f"{path}: {counted}, and at least {MIN_IMAGES} needed; {describe_skipped(images.skipped)}")
        images = images.select(sound)


def split_calibration(images: Images, settings: PruneSettings) -> Calibration:
    """Images by their use, drawn by the seed."""
    n, seed = images.n_images, settings.seed
    if not settings.method.promises:
        return Calibration(*split_holdout(images, min(HELD_OUT_FRACTION, MAX_HELD_OUT / n), seed))
    if n < FEW:
        return Calibration(*split_holdout(images, FEW_HELD_OUT, seed), is_crossed=True)
    fraction = min(HELD_OUT_FRACTION, MAX_PROMISED / n)
    fitting, held_back = split_holdout(images, 2 * fraction, seed)
    choosing, reporting = split_holdout(held_back, 0.5, seed)
    return Calibration(fitting, reporting, choosing)


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


def describe_data(path: Path, data: Calibration, moments: Moments, settings: PruneSettings) -> CalibrationData:
    """What the moments were made from."""
    calibration = data.fitting
    recipe = json.loads(calibration.recipe.to_json()) if isinstance(calibration, ImageSet) else None
    return CalibrationData(
        path=str(path),
        data_hash=calibration.data_hash(),
        n_images=calibration.n_images,
        n_choosing=0 if data.choosing is None else data.choosing.n_images,
        n_held_out=data.reporting.n_images,
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


def warn_of_data(units: Sequence[Unit], moments: Moments, data: Calibration) -> tuple[str, ...]:
    """What a person should know about the data, one sentence each."""
    found: list[str] = []
    calibration, n_reporting = data.fitting, data.reporting.n_images
    if calibration.skipped:
        found.append(describe_skipped(calibration.skipped))
    if calibration.n_images < FEW_IMAGES:
        found.append(f"only {calibration.n_images} calibration images; a few hundred give a better model.")
    if n_reporting < FEW_JUDGING:
        found.append(
            f"only {n_reporting} images, held back from the others, say how good the model still is; "
            f"{math.ceil(FEW_JUDGING / HELD_OUT_FRACTION)} images in all would leave {FEW_JUDGING}."
        )
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
