"""Class folders: which class index the images of a sub-folder have.

Enters the names of the files below a folder; leaves the index of each. The order of classes is the sorted order of
their names, as in torchvision's ImageFolder, and the names come from a labels file or, without one, from the folders
themselves. That second way is right only when there is a folder for every class of the model: 456 folders of ImageNet's
1000 classes would be counted 0..455. So the number of classes is kept, and `evaluate` compares it with the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Literal

from corp_onnx.errors import ImageError
from corp_onnx.images.regular import read_text

LABELS_KEY = "corp_onnx.labels"
"""Where an ONNX file keeps its class names: a JSON list, the position is the class index."""

LabelSource = Path | Literal["folders"] | None
"""A labels file; the folders themselves where that is possible; or no labels."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The class index of every file.

    Attributes:
        indices: one for each file, or None where there are no labels.
        n_classes: how many classes the indices count over.
        source: the labels file, or None where folder names gave the order.
        note: why there are no labels although they were asked for; empty otherwise.
    """

    indices: tuple[int, ...] | None = None
    n_classes: int | None = None
    source: Path | None = None
    note: str = ""


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names of a labels file (one a line) in sorted order: the position is the class index.

    Raises:
        ImageError: the file is missing, not text, empty, or names a class twice.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ImageError(f"{path}: the labels file can not be read ({reason}).") from error
    names = sorted(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise ImageError(f"{path}: the labels file is empty; expected one class name a line.")
    twice = sorted({a for a, b in pairwise(names) if a == b})
    if twice:
        raise ImageError(f"{path}: the labels file names a class twice: {', '.join(twice[:3])}.")
    return tuple(names)


def label_files(root: Path, chosen: Sequence[str], listed: Sequence[str], source: LabelSource) -> Labels:
    """The class index of each chosen file.

    Args:
        root: the folder, for the texts of errors.
        chosen: posix paths below `root` to label.
        listed: all files below `root`; with `source` 'folders' their first components are the classes.
        source: see `LabelSource`. 'folders' gives no labels, and a note, where a file lies in no sub-folder; a labels
            file makes that an error.

    Raises:
        ImageError: the labels file can not be used, or the images lie in folders that it does not name.
    """
    if source is None:
        return Labels()
    loose = [name for name in chosen if _class_folder(name) is None]
    if source == "folders":
        if loose:
            return Labels(note=f"{loose[0]} lies in no class folder of {root}")
        names = tuple(sorted({folder for name in listed if (folder := _class_folder(name)) is not None}))
    else:
        names = read_class_names(Path(source))
        if loose:
            raise ImageError(f"{root}: {loose[0]} lies in no class folder, so {Path(source).name} gives it no label.")
    index = {name: i for i, name in enumerate(names)}
    folders = [_class_folder(name) or "" for name in chosen]
    unknown = sorted({folder for folder in folders if folder not in index})
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ImageError(
            f"{root}: folder {', '.join(unknown[:3])}{more} is not among the {len(names)} classes of {source}; "
            "give the labels file of this dataset."
        )
    return Labels(tuple(index[f] for f in folders), len(names), None if source == "folders" else Path(source))


def _class_folder(name: str) -> str | None:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else None
