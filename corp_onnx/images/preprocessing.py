"""Where the recipe of a model comes from: what a person gives, the model, a file beside it, or a guess.

Enters a model's path, metadata and input shape, and a person's `Preprocessing`; leaves a `FoundRecipe`, which knows its
origin, because pixels of another recipe than the training's cost points that no other figure shows. In this order:

    --preprocessor FILE        Hugging Face's, timm's or our own JSON
    the model's metadata       `corp_onnx.preprocessing`
    a file beside the model    preprocessor_config.json or timm's config.json, in its folder or the one above `onnx/`
    a guess                    timm's recipe for ImageNet at the input's size

A pruned file keeps the recipe that it was pruned with, and with it whether that was a guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.images.processors import is_preprocessor, parse_preprocessor, read_preprocessor
from corp_onnx.images.recipe import METADATA_KEY, Recipe, default_recipe, find_recipe, make_recipe
from corp_onnx.images.regular import read_text
from corp_onnx.results import read_json
from corp_onnx.settings import Preprocessing

BESIDE = ("preprocessor_config.json", "processor_config.json", "config.json")
"""Files that say how images are prepared, the surest first; config.json only where it is timm's."""

EXPORT_FOLDER = "onnx"
"""A download from Hugging Face has its ONNX files in this folder, and the configuration above it."""

GUESSED = "guessed"
"""The key in a stored recipe that says so."""

SURE = ("mean", "std")
"""What has to be given by options, with the size before the crop, for a guess to be none."""


@dataclass(frozen=True, slots=True)
class FoundRecipe:
    """A recipe and where it comes from.

    Attributes:
        origin: `from the model's metadata`, `guessed (ImageNet, 224)`, ...: what is said behind "preprocessing:".
        guessed: whether nobody has said it.
    """

    recipe: Recipe
    origin: str
    guessed: bool = False

    def to_json(self) -> str:
        """The recipe as it is stored in a model, with a mark where it is a guess."""
        stored = json.loads(self.recipe.to_json())
        return json.dumps(stored | ({GUESSED: True} if self.guessed else {}))

    def advise(self) -> str:
        """A warning for a guess, empty otherwise."""
        if not self.guessed:
            return ""
        return (
            f"preprocessing: {self.origin}; give --preprocessor FILE (preprocessor_config.json, timm's config.json), "
            "or --mean, --std and --crop-pct, where the model was trained on other pixels."
        )


def choose_recipe(
    path: Path, metadata: Mapping[str, str], shape: Sequence[int | str | None], changes: Preprocessing
) -> FoundRecipe:
    """The recipe of a model with a person's changes.

    Args:
        path: of the model.
        metadata: its metadata properties.
        shape: of its image input.

    Raises:
        ModelError: the model takes no images, or its metadata holds a broken recipe.
        ImageError: the file that is given can not be read, or prepares images of another size.
        OptionError: a change that makes no recipe.
    """
    if changes.preprocessor is not None:
        given = Path(changes.preprocessor)
        found = FoundRecipe(_fit(given, read_preprocessor(given), shape), f"from {given}")
    else:
        found = find_own_recipe(path, metadata, shape)
    given_options = {name: v for name, v in asdict(changes).items() if v is not None and name != "preprocessor"}
    if not given_options:
        return found
    recipe = make_recipe(found.recipe.size, base=found.recipe, channels=found.recipe.channels, **given_options)
    named = ", ".join(spell_options(given_options))
    sized = changes.resize is not None or changes.crop_pct is not None or changes.fit is not None
    if sized and all(name in given_options for name in SURE):
        return FoundRecipe(recipe, f"given by {named}")
    return replace(found, recipe=recipe, origin=f"{found.origin}, changed by {named}")


def find_own_recipe(path: Path, metadata: Mapping[str, str], shape: Sequence[int | str | None]) -> FoundRecipe:
    """The recipe that the model carries, or a file beside it says, or a guess.

    Raises:
        ModelError: the metadata holds a broken recipe, or the input is not an image [n, 1 or 3, h, w].
    """
    recipe = find_recipe(metadata, shape)
    if METADATA_KEY in metadata and not _was_guessed(metadata):
        return FoundRecipe(recipe, "from the model's metadata")
    beside, why = _look_beside(path, shape)
    if beside is not None:
        return beside
    if METADATA_KEY in metadata:
        return FoundRecipe(recipe, f"guessed ({_spell_guess(recipe)}) when the model was pruned{why}", guessed=True)
    return FoundRecipe(recipe, f"guessed ({_spell_guess(recipe)}){why}", guessed=True)


def spell_options(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Fields of `Preprocessing` as options of the command line."""
    return [f"--{name.replace('_', '-')}" for name in names]


def refuse_changes(changes: Preprocessing, what: object) -> None:
    """Raise where preprocessing is given for arrays, which are not preprocessed."""
    given = spell_options([name for name, value in asdict(changes).items() if value is not None])
    if given:
        raise OptionError(f"{what}: holds arrays, which are not preprocessed; leave out {', '.join(given)}.")


def _was_guessed(metadata: Mapping[str, str]) -> bool:
    stored = read_json(metadata[METADATA_KEY])
    return bool(stored.get(GUESSED))


def _spell_guess(recipe: Recipe) -> str:
    height, width = recipe.size
    size = str(height) if height == width else f"{height} x {width}"
    return f"ImageNet, {size}" if recipe == default_recipe(recipe.size, recipe.channels) else f"in part, {size}"


def _look_beside(path: Path, shape: Sequence[int | str | None]) -> tuple[FoundRecipe | None, str]:
    """(the recipe of a file beside the model, or None; why a file that is there was not used)."""
    folders = [path.parent, *([path.parent.parent] if path.absolute().parent.name == EXPORT_FOLDER else [])]
    for file in (folder / name for folder in folders for name in BESIDE):
        try:
            stored = read_json(read_text(file))
        except (OSError, ValueError):
            continue
        if not isinstance(stored, dict) or not is_preprocessor(stored):
            continue
        try:
            recipe = _fit(file, parse_preprocessor(stored), shape)
        except (ImageError, ModelError, OptionError, TypeError, ValueError, KeyError, OverflowError) as error:
            return None, f", {file.name} beside it is of no use: {str(error).removeprefix(f'{file}: ').rstrip('.')}"
        return FoundRecipe(recipe, f"from {file}, beside the model"), ""
    return None, ""


def _fit(file: Path, recipe: Recipe, shape: Sequence[int | str | None]) -> Recipe:
    """The recipe of a file, where it prepares what the input takes.

    Raises:
        ModelError: the input takes no images.
        ImageError: it takes another size or number of channels.
    """
    find_recipe({}, shape)  # refuses what is no image
    axes = [axis if isinstance(axis, int) and axis > 0 else None for axis in shape]
    found = (len(recipe.mean), *recipe.size)
    if any(want not in (None, have) for want, have in zip(axes[1:], found, strict=True)):
        wanted = " x ".join("any" if axis is None else str(axis) for axis in axes[1:])
        raise ImageError(
            f"{file}: prepares {' x '.join(map(str, found))} and the model takes {wanted} (channels, height, width); "
            "give the file of this model."
        )
    return recipe
