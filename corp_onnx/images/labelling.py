"""Images + what says their classes -> the class index of each of them, and one line that says how.

Enters names of image files, what a person gave (`LabelSource`), and what is known of a model: its class names and their
number. Leaves `Labels`. The model's own names count first; without them class folders are counted in sorted order, as
in torchvision's ImageFolder. That is right only when there is a folder for every class of the model: 456 folders of
ImageNet's 1000 classes would be counted 0..455, so they give no labels then, and say why.

A set of images is labelled when it is opened, as far as that can be known, and again for every model that judges it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from corp_onnx.errors import ImageError
from corp_onnx.images.label_files import read_labels
from corp_onnx.images.labels import (
    ClassNames,
    Labels,
    Matched,
    ModelClasses,
    Request,
    Truth,
    class_folder,
    find_contradiction,
    is_wordnet_id,
    match_names,
    name_some,
)
from corp_onnx.images.truth import label_by_truth

LabelSource = Path | str | Sequence[str] | Literal["folders"] | None
"""A labels file; class names in index order; `folders`: what the folders and the model say; or no labels."""


def ask_labels(
    root: Path, listed: Sequence[str], source: LabelSource, list_images: Callable[[], Sequence[str]]
) -> Request | None:
    """What labels are asked for, with the labels file read.

    Args:
        listed: all files below `root`.
        list_images: the images among them, sorted; called where their order counts.

    Raises:
        ImageError: the labels file can not be used.
    """
    if source is None:
        return None
    folders = tuple(sorted({folder for name in listed if (folder := class_folder(name)) is not None}))
    if isinstance(source, str) and source == "folders":
        return Request(root, None, folders)
    if not isinstance(source, (str, Path)):
        names = tuple((str(name),) for name in source)
        given = Path("the list given")
        return Request(root, ClassNames(names, given, f"{len(names)} names in index order, from {given}"), folders)
    found = read_labels(Path(source), listed)
    ordered = isinstance(found, Truth) and found.files is None
    return Request(root, found, folders, tuple(list_images()) if ordered else ())


def label_files(names: Sequence[str], request: Request | None, model: ModelClasses | None = None) -> Labels:
    """The class index of each file.

    Args:
        names: posix paths below the folder.
        model: whose classes are counted; None where none is known yet, which leaves open what only a model can say.

    Raises:
        ImageError: what the person gave does not fit the images or the model. Folders that do not fit give no labels
            and a note.
    """
    if request is None:
        return Labels()
    given = request.given
    if isinstance(given, Truth):
        return label_by_truth(names, request, given, model)
    if given is None:
        return replace(_label_by_folders(names, request, model), request=request)
    _require_fit(given, model)
    loose = [name for name in names if class_folder(name) is None]
    if loose:
        raise ImageError(
            f"{request.root}: {loose[0]} lies in no class folder, so {given.source.name} gives it no label."
        )
    return replace(_label_by_names(names, request, given), request=request)


def _require_fit(given: ClassNames, model: ModelClasses | None) -> None:
    """Raise where a file names another number of classes than the model has, or the model's in another order."""
    if model is None:
        return
    if model.n_classes not in (None, len(given)):
        raise ImageError(
            f"{given.source}: {len(given)} class names, and {model.path.name} has {model.n_classes} classes; give the "
            "labels file of the data set that the model was trained on."
        )
    if model.names is not None and (why := find_contradiction(given, model.names)):
        raise ImageError(f"{why}; leave the labels file out, or give it in the order of the model.")


def _label_by_names(names: Sequence[str], request: Request, given: ClassNames) -> Labels:
    """Class folders among the names of a file."""
    folders = [class_folder(name) or "" for name in names]
    found = _match_folders(folders, request, given)
    if found.ambiguous:
        folder, classes = next(iter(found.ambiguous.items()))
        raise ImageError(
            f"{request.root}: folder {folder} could be class {' or '.join(map(str, classes[:2]))} of {given.source}; "
            "rename it as a name that only one class has."
        )
    if found.unknown:
        raise ImageError(
            f"{request.root}: folder {name_some(sorted(found.unknown))} is not among the {len(given)} classes of "
            f"{given.source}; give the labels file of this dataset."
        )
    indices = tuple(found.index[folder] for folder in folders)
    return Labels(indices, len(given), given.source, meaning=f"{given.meaning}{_spell_how(found.how)}")


def _match_folders(used: Sequence[str], request: Request, classes: ClassNames) -> Matched:
    """The classes of the folders in use; the others show from what numbers count, or hold something else."""
    found = match_names(request.folders, classes)
    if set(used) - set(found.index):
        return match_names(used, classes)
    return Matched(found.index, (), {}, found.how)


def _spell_how(how: str) -> str:
    return f"; class folders{how}" if how else ""


def _label_by_folders(names: Sequence[str], request: Request, model: ModelClasses | None) -> Labels:
    """What the folders say alone: by the names of the model, or in sorted order."""
    loose = [name for name in names if class_folder(name) is None]
    if loose:
        return Labels(note=f"{loose[0]} lies in no class folder of {request.root}")
    folders = [class_folder(name) or "" for name in names]
    own = None if model is None else model.names
    if own is not None and model is not None and model.n_classes in (None, len(own)):
        found = _match_folders(folders, request, own)
        if not set(folders) - set(found.index):
            meaning = f"class folders among {own.meaning}{found.how}"
            return Labels(tuple(found.index[f] for f in folders), len(own), meaning=meaning)
        if found.index or found.ambiguous:
            odd = name_some([*found.unknown, *found.ambiguous])
            return Labels(note=f"class folder {odd} of {request.root} is not one of {own.meaning}, and others are")
        if not all(map(is_wordnet_id, request.folders)):
            return Labels(
                note=f"no class folder of {request.root} ({name_some(request.folders)}) is one of {own.meaning} "
                f"({name_some(own.titles)}); rename them, or give a labels file"
            )
    index = {name: i for i, name in enumerate(request.folders)}
    n_classes = len(index)
    if model is not None and model.n_classes not in (None, n_classes):
        return Labels(
            n_classes=n_classes,
            note=f"{request.root} has {n_classes} class folders and {model.path.name} has {model.n_classes} classes, "
            "so folder order is not class order; give a labels file that names every class",
        )
    meaning = f"{n_classes} class folders in sorted order"
    numbers = [int(name) if name.isascii() and name.isdecimal() else -1 for name in request.folders]
    if min(numbers) >= 0 and numbers != sorted(numbers):
        meaning += f" ({', '.join(request.folders[:3])}, ..., as torchvision's ImageFolder counts them)"
    if all(map(is_wordnet_id, request.folders)):
        meaning = f"{n_classes} WordNet ids, the class folders, in sorted order"
    return Labels(tuple(index[f] for f in folders), n_classes, meaning=meaning)
