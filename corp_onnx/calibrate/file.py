"""The calibration file: which images findings are of, where they lie and how they were divided, and the way back.

Enters images by their use, or a file; leaves the `Subject` that binds findings to model, images and recipe, a text that
says where the images lie, and from that the same images by the same use again. A file that several calibrations were
merged into has several sources.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx.calibrate.data import Calibration, name_source
from corp_onnx.errors import ImageError, InputError, OptionError
from corp_onnx.findings import Findings, Subject
from corp_onnx.graph import Model
from corp_onnx.images import Images, ImageSet, ImageSource, open_images
from corp_onnx.images.arrays import ArraySet, make_arrays
from corp_onnx.images.folder import Memory
from corp_onnx.images.open import is_files, reopen_files
from corp_onnx.images.places import place_to_keep
from corp_onnx.images.preprocessing import GUESSED, FoundRecipe
from corp_onnx.images.recipe import Recipe
from corp_onnx.images.source import FolderSource, JoinedSource
from corp_onnx.results import read_json
from corp_onnx.settings import Preprocessing, PruneSettings

AGAIN = "Name the place where they are now with --calib, or calibrate anew."

ANEW = "it is damaged, or of another version: calibrate anew."

IMAGES = "images"
"""Under which a calibration file says where its images lie."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where images lie, and what they are for.

    Attributes:
        path: of the folder or the file, absolute; images that were in memory have none.
        are_files: photographs below a folder; else rows of arrays.
        fitting, choosing, reporting: names below the folder, or numbers of rows.
        images: the hash of those that were fitted to.
        bad: files that gave no image, with the reason.
    """

    path: str
    are_files: bool
    fitting: tuple[str | int, ...]
    choosing: tuple[str | int, ...]
    reporting: tuple[str | int, ...]
    images: str
    bad: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """All images of a calibration file.

    Attributes:
        is_crossed: whether those that are fitted to choose as well (`Calibration.is_crossed`).
        origin: of the recipe.
    """

    sources: tuple[Source, ...]
    is_crossed: bool = False
    origin: str = ""

    def to_json(self) -> str:
        """As a calibration file keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Contents:
        """What `to_json` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            stored = json.loads(text)
            sources = tuple(Source(**{k: _freeze(value) for k, value in of.items()}) for of in stored.pop("sources"))
            return cls(sources, **stored)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"a calibration file does not say which images it is of ({error}); {ANEW}") from error


def describe_subject(model: Model, data: Calibration) -> Subject:
    """What findings on these images are of."""
    fitting = data.fitting
    recipe = fitting.recipe_json() if isinstance(fitting, ImageSet) else ""
    return Subject(model.sha256, fitting.data_hash(), recipe)


def describe_contents(source: ImageSource, data: Calibration) -> Contents:
    """Where the images lie, and what they are for."""
    fitting, choosing, reporting = (() if part is None else _name_images(part) for part in
                                    (data.fitting, data.choosing, data.reporting))  # fmt: skip
    place = place_to_keep(name_source(source))
    bad = tuple((skip.name, skip.reason) for skip in data.fitting.skipped)
    found = data.fitting.found if isinstance(data.fitting, ImageSet) else None
    of = Source(place, isinstance(data.fitting, ImageSet), fitting, choosing, reporting, data.fitting.data_hash(), bad)
    return Contents((of,), data.is_crossed, found.origin if found else "")


def reopen_calibration(
    findings: Findings, path: Path, model: Model, sources: Sequence[ImageSource], settings: PruneSettings
) -> Calibration:
    """The images of a calibration file by their use, as they were when it was made.

    Args:
        path: of the file, for errors.
        sources: where the images lie now, in the order of the file; none looks where they lay.

    Raises:
        InputError: the file is of another model.
        ImageError: the images are not where they were, or are others.
        OptionError: a promise, and no images were set apart that could choose.
    """
    contents = Contents.from_json(findings.about.get(IMAGES, ""))
    places = sources or [source.path for source in contents.sources]
    subject = _require_fitting(findings, contents, path, model, len(places), settings)
    opened = [
        _open_source(path, of, place, subject.recipe, contents.origin)
        for of, place in zip(contents.sources, places, strict=True)
    ]
    fitting, choosing, reporting = _find_uses(contents.sources)
    if settings.method.promises and not choosing and not contents.is_crossed:
        raise OptionError(
            f"{path}: all of its images that are not held back for the report were fitted to, and none is left to "
            "choose a size by a promise: give --macs or another budget, or calibrate without --no-choosing."
        )
    images = join_images(opened)
    if contents.is_crossed or not settings.method.promises:  # these do not choose, so they can report as well
        choosing, reporting = [], sorted([*choosing, *reporting])
    chosen = images.select(choosing) if choosing else None
    is_crossed = contents.is_crossed and settings.method.promises
    return Calibration(images.select(fitting), images.select(reporting), chosen, is_crossed)


def _require_fitting(
    findings: Findings, contents: Contents, path: Path, model: Model, n_places: int, settings: PruneSettings
) -> Subject:
    """What the file is of, where that goes with what was given."""
    subject = findings.subject
    assert subject is not None
    if subject.model != model.sha256:
        raise InputError(
            f"{path}: was made of another model (sha256 {subject.model[:12]}...) than {model.path} "
            f"({model.sha256[:12]}...); calibrate this one, or give that one."
        )
    if n_places != len(contents.sources):
        raise ImageError(
            f"{path}: was made from {len(contents.sources)} sets of images, and --calib names {n_places}; name all of "
            "them in the order in which they were merged, or none."
        )
    if settings.preprocessing != Preprocessing() or settings.n_images is not None:
        raise OptionError(
            f"{path}: says which images it is of and how they were prepared; leave out --images and every option of "
            "the preprocessing, or calibrate anew."
        )
    return subject


def join_contents(several: Sequence[Contents]) -> Contents:
    """Of several calibration files together.

    Raises:
        InputError: some images are in two of them.
    """
    sources = [source for contents in several for source in contents.sources]
    for i, source in enumerate(sources):
        twice = [other for other in sources[:i] if other.images == source.images or _overlap(source, other)]
        if twice:
            raise InputError(
                f"some images of {source.path or 'arrays in memory'} are in two of the calibrations; they would count "
                "twice. Merge calibrations of images that have none in common."
            )
    crossed = {contents.is_crossed for contents in several}
    can_choose = all(source.choosing for source in sources)
    return Contents(tuple(sources), not can_choose and True in crossed, several[0].origin)


def join_subjects(subjects: Sequence[Subject]) -> Subject:
    """What the findings of several calibrations together are of.

    Raises:
        InputError: they are of different models, or were prepared by different recipes.
    """
    for what in ("model", "recipe"):
        if len({getattr(subject, what) for subject in subjects}) > 1:
            raise InputError(
                f"calibrations of different {what}s can not be merged; make all of them of one model with one recipe."
            )
    return replace(subjects[0], images=hashlib.sha256("".join(s.images for s in subjects).encode()).hexdigest())


def join_images(several: Sequence[Images]) -> Images:
    """Several sets as one, in that order; of folders the names then begin at what they have in common.

    Raises:
        ImageError: photographs and arrays, or arrays of other names.
    """
    first, *others = several
    if not others:
        return first
    files = [images for images in several if isinstance(images, ImageSet)]
    if len(files) == len(several):
        return _join_files(files)
    arrays = [images for images in several if isinstance(images, ArraySet)]
    known = [set(images.arrays) for images in arrays]
    if len(arrays) < len(several) or any(names != known[0] for names in known):
        raise ImageError("photographs and arrays, or arrays of different names, make no one set of images.")
    joined = {name: np.concatenate([images.arrays[name][images.rows] for images in arrays]) for name in known[0]}
    return make_arrays(arrays[0].path, joined)


def _join_files(files: Sequence[ImageSet]) -> ImageSet:
    """Of folders the names begin at what they have in common; with shards among them, at their number."""
    roots = [images.source.root for images in files if isinstance(images.source, FolderSource)]
    if len(roots) == len(files):
        root = Path(os.path.commonpath(roots))
        source, starts = FolderSource(root), [own.relative_to(root).as_posix() for own in roots]
    else:
        root = Path("images in several places")
        source, starts = JoinedSource(tuple(f.source for f in files)), [str(i + 1) for i in range(len(files))]
    spelled = [{name: name if start == "." else f"{start}/{name}" for name in (*images.names, *_bad(images))}
               for start, images in zip(starts, files, strict=True)]  # fmt: skip
    names = tuple(known[name] for images, known in zip(files, spelled, strict=True) for name in images.names)
    bad = {known[name]: why for images, known in zip(files, spelled, strict=True)
           for name, why in _bad(images).items()}  # fmt: skip
    return replace(files[0], root=root, names=names, source=source, n_files=len(names), _memory=Memory(bad))


def _open_source(path: Path, of: Source, place: ImageSource, recipe: str, origin: str) -> Images:
    """All images of a source, in the order fitting, choosing, reporting."""
    listed = (*of.fitting, *of.choosing, *of.reporting)
    if not place:
        raise ImageError(f"{path}: was made from arrays in memory; give them again (--calib FILE, or `calib=`).")
    if of.are_files:
        if not is_files(place):
            raise ImageError(f"{path}: was made from photographs in {of.path}; --calib names arrays. {AGAIN}")
        assert isinstance(place, (ImageSet, Path, str))
        found = FoundRecipe(Recipe.from_json(recipe), origin, GUESSED in read_json(recipe))
        names = tuple(str(name) for name in listed)
        images: Images = reopen_files(place, names, found, dict(of.bad))
    else:
        images = open_images(place)
        if not isinstance(images, ArraySet) or images.n_images <= max(int(row) for row in listed):
            raise ImageError(f"{path}: was made from arrays in {of.path or 'memory'}, which are others now. {AGAIN}")
        images = images.select([int(row) for row in listed])
    try:
        same = images.select(range(len(of.fitting))).data_hash() == of.images
    except ImageError:
        same = False
    if not same:
        where = of.path if place == of.path else name_source(place)
        raise ImageError(f"{path}: the images in {where} are not those that it was made from. {AGAIN}")
    return images


def _find_uses(sources: Sequence[Source]) -> tuple[list[int], list[int], list[int]]:
    """Positions of the images that are for (fitting, choosing, reporting), in all sources one behind the other."""
    uses: tuple[list[int], list[int], list[int]] = ([], [], [])
    start = 0
    for source in sources:
        for use, names in zip(uses, (source.fitting, source.choosing, source.reporting), strict=True):
            use += range(start, start + len(names))
            start += len(names)
    return uses


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _overlap(a: Source, b: Source) -> bool:
    names = ({*x.fitting, *x.choosing, *x.reporting} for x in (a, b))
    return a.path == b.path and bool(set.intersection(*names))


def _bad(images: ImageSet) -> dict[str, str]:
    return {skip.name: skip.reason for skip in images.skipped}


def _name_images(images: Images) -> tuple[str | int, ...]:
    return tuple(images.names) if isinstance(images, ImageSet) else tuple(int(row) for row in images.rows)
