"""What a file says of single images -> their class indices: a table of file and label, or a number a line.

Enters a `Truth`, the images, and what is known of a model; leaves `Labels`. Whether numbers count from 0 or from 1 is
found from them and from the number of classes, and where it does not show nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from corp_onnx.errors import ImageError
from corp_onnx.images.labels import (
    Labels,
    ModelClasses,
    Request,
    Truth,
    count_base,
    find_contradiction,
    match_names,
    name_some,
)

ILSVRC_CLASSES = 1000
ILSVRC_NAME = "ILSVRC2012_val_"
DEVKIT_START = ("490", "361", "171", "822", "297")
"""How ILSVRC2012_validation_ground_truth.txt of the devkit begins. Its ids are in an order of their own; in the sorted
order of the synsets, which models answer in, the same images are 65, 970, 230, 809 and 516."""


def label_by_truth(names: Sequence[str], request: Request, truth: Truth, model: ModelClasses | None) -> Labels:
    """Labels of single images, from a table or in the order of the file names."""
    own = None if model is None else model.names
    if truth.classes is not None and own is not None and (why := find_contradiction(truth.classes, own)):
        raise ImageError(f"{why}; give labels in the order of the model.")
    values = _find_by_order(names, request, truth) if truth.files is None else _find_in_table(names, request, truth)
    n_classes = None if model is None else model.n_classes
    what = (
        f"{len(truth.values)} {'lines of file and label' if truth.files else 'indices in the order of the file names'}"
    )
    index, meaning = _read_values(truth, model)
    if index is None:
        return Labels(source=truth.source, note=f"{truth.source}: {meaning}", request=request)
    indices = tuple(index[value] for value in values)
    return Labels(indices, n_classes, truth.source, "", f"{what}, {meaning}, from {truth.source}", request)


def _read_values(truth: Truth, model: ModelClasses | None) -> tuple[dict[str, int] | None, str]:
    """(label -> class, how), or (None, what is not known yet because no model is).

    Raises:
        ImageError: a model is known, and the labels do not fit it or could mean several things.
    """
    distinct = sorted(set(truth.values))
    own, n_classes = (None, None) if model is None else (model.names, model.n_classes)
    found = None if own is None else match_names(distinct, own)
    if own is not None and found is not None and not found.unknown and not found.ambiguous and not found.how:
        return found.index, f"classes by {own.meaning}"
    if all(value.isascii() and value.isdecimal() and len(value) < 10 for value in distinct):
        return _read_indices(truth, model)
    are_unknown = found is None or len(found.unknown) == len(distinct)  # else one of them is misspelt
    if n_classes in (None, len(distinct)) and are_unknown:
        return {value: i for i, value in enumerate(distinct)}, f"{len(distinct)} classes in sorted order"
    assert model is not None
    if own is not None and found is not None:
        odd = name_some([*found.unknown, *found.ambiguous])
        raise ImageError(f"{truth.source}: label {odd} is not one of {own.meaning}; give class names or indices.")
    raise ImageError(
        f"{truth.source}: {len(distinct)} different labels, and {model.path.name} has {n_classes} classes and carries "
        "no names of them; give class indices, counted from 0."
    )


def _read_indices(truth: Truth, model: ModelClasses | None) -> tuple[dict[str, int] | None, str]:
    """As `_read_values`, for numbers: counted from 0 or from 1, as they show."""
    distinct = set(truth.values)
    n_classes = None if model is None else model.n_classes
    highest = max(int(value) for value in distinct)
    if truth.files is None and truth.values[: len(DEVKIT_START)] == DEVKIT_START:
        raise ImageError(
            f"{truth.source}: holds the ids of ILSVRC2012's devkit, whose order is not that of the sorted synsets, "
            "which models answer in; give class folders, or lines of file and class index or synset."
        )
    if model is not None and n_classes is not None and highest > n_classes - any(int(value) == 0 for value in distinct):
        raise ImageError(
            f"{truth.source}: its indices go up to {highest}, and {model.path.name} has {n_classes} classes; give the "
            "labels of the data set that the model was trained on."
        )
    base = count_base(distinct, n_classes)
    if base is None and truth.files is not None:
        base = 0  # in a table an index is an index, unless it shows otherwise
    if base is None and n_classes is None:
        return None, "without a 0 its indices show only beside a model whether they are counted from 0 or from 1"
    if base is None:
        raise ImageError(
            f"{truth.source}: its indices hold neither 0 nor {n_classes}, so they may be counted from 0 or from 1; "
            "give lines of file and index, counted from 0."
        )
    index = {value: int(value) - base for value in distinct}
    if base == 1 and n_classes == ILSVRC_CLASSES and truth.files is None:
        return (
            index,
            "counted from 1 and taken for sorted synsets, not for ids of ILSVRC2012's devkit, whose order differs",
        )
    return index, f"counted from {base}"


def _find_by_order(names: Sequence[str], request: Request, truth: Truth) -> list[str]:
    """The line of every image: the number in its name where that is ILSVRC's, else its place among all images."""
    lines = {name: _ilsvrc_number(name) for name in names}
    if all(number is not None and 1 <= number <= len(truth.values) for number in lines.values()):
        return [truth.values[(lines[name] or 1) - 1] for name in names]
    nested = next((name for name in request.order if "/" in name), None)
    if nested is not None:
        raise ImageError(
            f"{truth.source}: a number a line, one for each image, and {nested} lies in a folder, so their order is "
            "not known; give lines of file and label."
        )
    if len(request.order) != len(truth.values):
        raise ImageError(
            f"{truth.source}: {len(truth.values)} lines, and {request.root} holds {len(request.order)} images; "
            "expected a number for each, in the order of the file names, or lines of file and label."
        )
    place = {name: i for i, name in enumerate(request.order)}
    return [truth.values[place[name]] for name in names]


def _ilsvrc_number(name: str) -> int | None:
    stem = PurePosixPath(name).stem
    digits = stem.removeprefix(ILSVRC_NAME)
    return int(digits) if digits != stem and len(digits) == 8 and digits.isascii() and digits.isdecimal() else None


def _find_in_table(names: Sequence[str], request: Request, truth: Truth) -> list[str]:
    """The label of every image by its path, with a folder in front or without, its name, its name without suffix."""
    assert truth.files is not None
    files = [PurePosixPath(file.replace("\\", "/")) for file in truth.files]
    images = [PurePosixPath(name) for name in names]
    ways = (
        ([str(f) for f in files], [str(i) for i in images]),
        (["/".join(f.parts[1:]) for f in files], [str(i) for i in images]),
        ([f.name for f in files], [i.name for i in images]),
        ([f.name for f in files], [i.stem for i in images]),
    )
    fewest, twice = list(names), ""
    for keys, wanted in ways:
        table: dict[str, set[str]] = {}
        for key, value in zip(keys, truth.values, strict=True):
            table.setdefault(key, set()).add(value)
        missing = [name for name, key in zip(names, wanted, strict=True) if key not in table]
        several = next((key for key in wanted if len(table.get(key, ())) > 1), "")
        if not missing and not several:
            return [next(iter(table[key])) for key in wanted]
        if len(missing) < len(fewest):
            fewest, twice = missing, several
    if twice:
        raise ImageError(f"{truth.source}: gives {twice} more than one label; give paths below the image folder.")
    if len(fewest) < len(names):
        raise ImageError(
            f"{truth.source}: has no line for {len(fewest)} of {len(names)} images of {request.root} "
            f"({name_some(fewest)}); add them, or take these images out of the folder."
        )
    raise ImageError(
        f"{truth.source}: names none of the images of {request.root} (first {truth.files[0]}, and there {names[0]}); "
        "give paths below the image folder, or plain file names."
    )
