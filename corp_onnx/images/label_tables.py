"""Lines with several columns: a table of images and labels, of numbers and class names, or no table at all.

Enters the lines of a labels file; leaves a `Truth`, a `NumberedNames`, or None. What a column is shows in its cells:
one that names images of the folder, or looks like file names, is that of the files; one that holds each of 0..n-1 or
1..n once is that of the class numbers. A first line that fits neither is a header.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from corp_onnx.errors import ImageError
from corp_onnx.images.labels import Truth, is_wordnet_id

DELIMITERS = ("\t", ",", ";", None)
"""None: white space, of which only the last counts, since names of files hold spaces."""

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".j2k", ".ppm", ".pgm",
    ".pnm", ".mpo",
))  # fmt: skip

DIGITS = "0123456789"

LABEL_HEADERS = ("label", "labels", "class", "class_name", "class_id", "target", "category", "y", "truth", "id",
                 "predictionstring", "synset", "wnid", "index", "idx")  # fmt: skip
"""What a column of labels is called, the likeliest first."""


@dataclass(frozen=True, slots=True)
class NumberedNames:
    """Class names by their number; `order` is for a text."""

    names: tuple[str, ...]
    order: str


def split_number(text: str) -> int | None:
    """A whole number, or None."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def find_table(lines: Sequence[str], path: Path, files: Sequence[str]) -> Truth | NumberedNames | None:
    """What the lines are, where they have columns.

    Raises:
        ImageError: a table of files of which no column says labels.
    """
    known = _known_names(files)
    for delimiter in DELIMITERS:
        rows = _split(lines, delimiter)
        if rows is None:
            continue
        truth = _read_truth(rows, path, known)
        if truth is not None:
            return truth
    return _read_numbered(lines)


def _known_names(files: Sequence[str]) -> frozenset[str]:
    """The ways to call an image: its path, its name, its name without suffix."""
    paths = [PurePosixPath(file) for file in files]
    return frozenset({*files, *(p.name for p in paths), *(p.stem for p in paths)})


def _split(lines: Sequence[str], delimiter: str | None) -> list[list[str]] | None:
    """Rows of cells; None where some line has one cell only."""
    if delimiter is None:
        rows = [line.rsplit(None, 1) for line in lines]
    else:
        try:
            rows = [[c.strip() for c in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
        except csv.Error:
            return None
    return rows if len(rows) == len(lines) and all(len(row) > 1 for row in rows) else None


def _read_truth(rows: list[list[str]], path: Path, known: frozenset[str]) -> Truth | None:
    width = min(map(len, rows))
    body = rows[1:] or rows
    columns = [i for i in range(width) if all(_is_file(row[i], known) for row in body)]
    if not columns:
        return None
    place = columns[0]
    has_header = len(rows) > 1 and not _is_file(rows[0][place], known)
    others = [i for i in range(width) if i != place]
    header = [cell.casefold() for cell in rows[0]] if has_header else []
    named = [header.index(name) for name in LABEL_HEADERS if name in header and header.index(name) in others]
    if len(others) > 1 and not named:
        raise ImageError(
            f"{path}: has {len(others)} columns beside the files, and no header calls one of them label; give file and "
            "label."
        )
    label = named[0] if named else others[0]
    kept = rows[1:] if has_header else rows
    return Truth(tuple(_read_label(row[label]) for row in kept), tuple(row[place] for row in kept), path)


def _is_file(cell: str, known: frozenset[str]) -> bool:
    posix = PurePosixPath(cell.replace("\\", "/"))
    return posix.suffix.lower() in IMAGE_SUFFIXES or cell in known or posix.name in known


def _read_label(cell: str) -> str:
    """A label; of a cell that goes on behind a WordNet id, as Kaggle's with boxes, the id."""
    first = cell.split(None, 1)[0] if cell else ""
    return first if is_wordnet_id(first) else cell


def _read_numbered(lines: Sequence[str]) -> NumberedNames | None:
    """Names beside their numbers, in the order of the numbers; with or without a header."""
    for split in (_split_front, _split_back):
        skips = (0, 1) if split(lines[0])[0] is None and len(lines) > 1 else (0,)  # a header has no number
        for body in (lines[skipped:] for skipped in skips):
            pairs = [split(line) for line in body]
            numbers = sorted(number for number, _ in pairs if number is not None)
            base = numbers[0] if len(numbers) == len(body) and numbers else None
            if base in (0, 1) and numbers == list(range(base, len(body) + base)) and all(name for _, name in pairs):
                names = tuple(name for _, name in sorted(pairs, key=lambda pair: pair[0] or 0))
                return NumberedNames(names, f"by their numbers, counted from {base}")
    return None


def _split_front(line: str) -> tuple[int | None, str]:
    """(3, "cat") of `3 cat`, `3: cat` and `3,cat`."""
    digits = line[: len(line) - len(line.lstrip(DIGITS))]
    rest = line[len(digits) :]
    is_row = rest and rest[0] in " \t,;:"
    return (split_number(digits), rest.strip(" \t,;:").strip("\"'")) if is_row else (None, "")


def _split_back(line: str) -> tuple[int | None, str]:
    """(3, "cat") of `cat,3`; `class 3` is a name."""
    digits = line[len(line.rstrip(DIGITS)) :]
    rest = line[: len(line) - len(digits)].rstrip(" ")
    is_row = rest and rest[-1] in "\t,;"
    return (split_number(digits), rest.strip(" \t,;").strip("\"'")) if is_row else (None, "")
