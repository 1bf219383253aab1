"""Photographs in, batches out: everything that a verb takes for images, opened in one place.

Enters a path (a folder, an image, shards, a .npy or .npz file), arrays, or an iterable of arrays; leaves an `ImageSet`
or an `ArraySet`. Both answer to `n_images`, `skipped`, `batches`, `select` and `data_hash`.

What is an image is decided by opening it. A file that is no image, or is damaged, is named and counted in `skipped`
and the run goes on, until too few are left. Damage shows only when a file is decoded, so `skipped` grows during the
first pass over the set; later passes leave those files out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import ImageError, OptionError
from corp_onnx.images.arrays import ArraySet, is_array_file, label_arrays, open_arrays
from corp_onnx.images.decode import choose_images, list_files
from corp_onnx.images.folder import ImageSet, Memory, require_images
from corp_onnx.images.labelling import LabelSource, ask_labels, label_files
from corp_onnx.images.labels import Labels, Request
from corp_onnx.images.memory import gather_arrays
from corp_onnx.images.places import find_url, is_pattern
from corp_onnx.images.preprocessing import FoundRecipe
from corp_onnx.images.recipe import Recipe
from corp_onnx.images.shards import find_shards, open_shards
from corp_onnx.images.source import FolderSource, ShardSource, Source, take_names

Images: TypeAlias = ImageSet | ArraySet
"""What every stage that needs data takes."""

ImageSource: TypeAlias = Path | str | Images | np.ndarray | Mapping[str, Any] | Iterable[Any]
"""What every verb that needs data takes."""


def is_stored(source: ImageSource) -> bool:
    """Whether images are opened without knowing a model: all but an iterable, whose items may be samples or batches."""
    return isinstance(source, (str, Path, ImageSet, ArraySet, np.ndarray, Mapping))


def is_files(source: ImageSource) -> bool:
    """Whether images are photographs, which a recipe prepares, and not arrays, which are prepared already."""
    if isinstance(source, (str, Path)):
        return not Path(source).is_file() or not is_array_file(Path(source))
    return isinstance(source, ImageSet)


def open_images(
    source: ImageSource,
    recipe: Recipe | FoundRecipe | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    minimum: int = 1,
    labels: LabelSource = None,
    ranks: Mapping[str, int] | None = None,
) -> Images:
    """Images from wherever they are.

    Args:
        source: a folder (searched recursively), an image file, shards of images (Parquet or tar files: one, a folder
            of them, a pattern, a URL), a .npy or .npz file; or what such a file holds: an array
            [n, ...], or a mapping of one array for each input of a model, `labels` among them where there are any; or
            an iterable of such arrays or mappings, or of pairs (array, labels), of single samples or of batches
            (`memory.gather_arrays` says which), read once and kept in memory; or what this function gave. Hidden
            folders are not entered; hidden files are named in `skipped`.
        recipe: what `batches` does to every image; None is timm's for 224 x 224. Has no effect on arrays, which are
            preprocessed already, nor on images that were opened before.
        limit: take this many, drawn at random without replacement; the order stays sorted. Files drawn that are no
            images are replaced by further draws, damaged ones are not.
        seed: of that draw; has no effect without `limit`.
        minimum: fewer readable images than this are an error.
        labels: a file of class names or labels, class names in index order, 'folders', or None
            (`labelling.LabelSource`). Arrays carry their own, or take whole numbers, one for each sample.
        ranks: axes of every input of the model, the batch among them: what tells a sample of an iterable from a batch.

    Raises:
        ImageError: nothing there, no image, too few, or labels that do not fit.
        OptionError: limit or minimum out of range.
    """
    if minimum < 1 or (limit is not None and limit < minimum):
        raise OptionError(f"expected 1 <= minimum <= limit, found minimum {minimum} and limit {limit}.")
    if isinstance(source, ImageSet):
        return _open_again(source, limit, seed, minimum, labels)
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_file() or not is_array_file(path):
            return _open_files(path, recipe, limit, seed, minimum, labels)
        arrays = open_arrays(path)
    else:
        arrays = source if isinstance(source, ArraySet) else gather_arrays(source, ranks or {})
    arrays = label_arrays(arrays, labels)
    require_images(arrays.path, arrays.n_images, minimum, arrays.n_images, ())
    return arrays if limit is None else arrays.select(np.sort(_shuffle(arrays.n_images, seed)[:limit]))


def _open_files(
    path: Path, recipe: Recipe | FoundRecipe | None, limit: int | None, seed: int, minimum: int, labels: LabelSource
) -> ImageSet:
    root, listed = (path, []) if find_url(path) or is_pattern(path) else list_files(path)
    places = find_shards(path, listed)
    if places:
        return _open_shards(path, places, recipe, limit, seed, minimum, labels)
    order = listed if limit is None else [listed[i] for i in _shuffle(len(listed), seed)]
    chosen, bad = choose_images(root, order, limit)
    if path.is_file() and not chosen:
        raise ImageError(
            f"{path}: {bad[path.name]}; expected a folder of images, an image, shards, a .npy or a .npz file."
        )
    images = _make_set(root, tuple(chosen), FolderSource(root), recipe, minimum, len(listed), bad)
    require_images(path, len(chosen), minimum, len(listed), images.skipped)
    request = ask_labels(root, listed, labels, lambda: choose_images(root, listed, None)[0])
    return replace(images, labels=label_files(chosen, request))


def _open_shards(
    path: Path, places: Sequence[str], recipe: Recipe | FoundRecipe | None, limit: int | None, seed: int, minimum: int,
    labels: LabelSource,
) -> ImageSet:  # fmt: skip
    """As `_open_files`; whether what was drawn are images shows when they are decoded."""
    found = open_shards(path, places, limit)
    total = len(found.names)
    drawn = np.arange(total) if limit is None else np.sort(_shuffle(total, seed)[:limit])
    names = take_names(found.names, drawn)
    images = _make_set(find_url(path) or path, names, found.source, recipe, minimum, total, found.bad)
    require_images(path, len(names), minimum, total, images.skipped)
    return replace(images, labels=_label_shards(images, labels), note=found.note)


def _make_set(
    root: Path | str, names: Sequence[str], source: Source, recipe: Recipe | FoundRecipe | None, minimum: int,
    n_files: int, bad: dict[str, str],
) -> ImageSet:  # fmt: skip
    found = recipe if isinstance(recipe, FoundRecipe) else None
    recipe = recipe.recipe if isinstance(recipe, FoundRecipe) else recipe
    return ImageSet(
        root, names, source, recipe or Recipe(), Labels(), minimum, n_files, found, recipe is not None,
        _memory=Memory(bad),
    )  # fmt: skip


def _label_shards(images: ImageSet, labels: LabelSource) -> Labels:
    """The labels beside images in shards, or what a file says of them; shards are no class folders."""
    root = Path(images.root)
    if not isinstance(labels, str) or labels != "folders":
        return label_files(images.names, ask_labels(root, images.names, labels, lambda: images.names))
    truth = images.source.read_truth(images.names)
    if truth is None:
        return Labels(note=f"no label beside every image of {images.root}")
    return label_files(images.names, Request(root, truth, ()))


def _open_again(images: ImageSet, limit: int | None, seed: int, minimum: int, labels: LabelSource) -> ImageSet:
    """Images that were opened before, with a draw or other labels."""
    require_images(images.root, images.n_images, minimum, images.n_files, images.skipped)
    if labels is not None and isinstance(images.source, ShardSource):
        images = replace(images, labels=_label_shards(images, labels))
    elif labels is not None:
        request = ask_labels(Path(images.root), images.names, labels, lambda: images.names)
        images = replace(images, labels=label_files(images.names, request))
    total = len(images.names)
    return images if limit is None else images.select(np.sort(_shuffle(total, seed)[:limit]))


def reopen_files(
    place: ImageSet | Path | str, names: Sequence[str], found: FoundRecipe, bad: Mapping[str, str]
) -> ImageSet:
    """Images of an earlier run, by what they were called in it.

    Args:
        place: the folder or the shards where they lie now.
        names: as of `ImageSet`, in any order.
        bad: what that run found to give no image.

    Raises:
        ImageError: no shards there, or an image is not in them. Files that are missing show when they are read.
    """
    if isinstance(place, ImageSet):
        root, source = place.root, place.source
    else:
        root = find_url(place) or Path(place)
        listed = [] if isinstance(root, str) or is_pattern(root) or not root.is_dir() else list_files(root)[1]
        places = find_shards(place, listed)
        source = open_shards(place, places, None).source if places else FolderSource(Path(place))
    kept = source.find(names) if isinstance(source, ShardSource) else tuple(names)
    return replace(_make_set(root, kept, source, found, 1, len(names), dict(bad)), is_prepared=False)


def split_holdout(images: Images, fraction: float, seed: int = 0) -> tuple[Images, Images]:
    """(the rest, a random `fraction` held back): disjoint, together the whole, the same for the same seed.

    Raises:
        OptionError: the fraction is not between 0 and 1.
        ImageError: fewer than two images.
    """
    if not 0 < fraction < 1:
        raise OptionError(f"the fraction held back must lie between 0 and 1, found {fraction}.")
    total = len(images.names) if isinstance(images, ImageSet) else images.n_images
    if total < 2:
        raise ImageError("one image can not be split into two sets; give more images.")
    n_held = min(max(round(fraction * total), 1), total - 1)
    order = _shuffle(total, seed)
    return images.select(np.sort(order[n_held:])), images.select(np.sort(order[:n_held]))


def spread_images(images: Images, n: int) -> Images:
    """Up to n of the images that are known to be sound, evenly over the set: the first ones are often of one class."""
    sound = find_sound(images)
    places = np.unique(np.linspace(0, len(sound) - 1, min(n, len(sound))).astype(np.int64))
    return images.select(sound[places])


def find_sound(images: Images) -> Int[np.ndarray, " n"]:
    """Positions, as `select` takes them, of the images that are not known to be damaged."""
    if isinstance(images, ArraySet):
        return np.arange(images.n_images)
    bad = {skip.name for skip in images.skipped}
    if not bad:
        return np.arange(len(images.names))
    return np.array([i for i, name in enumerate(images.names) if name not in bad], np.int64)


def _shuffle(n: int, seed: int) -> Int[np.ndarray, " n"]:
    return np.random.default_rng(seed).permutation(n)
