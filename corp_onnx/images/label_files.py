"""A labels file, whatever it looks like -> class names, or what it says of single images.

Enters a path, or the metadata of a model; leaves `ClassNames` or `Truth`, whose meaning is found from the content:

    a name a line                     line k is class k
    a WordNet id a line               the sorted order counts, as everywhere with this data set
    n01440764 tench, Tinca tinca      line k is class k; the id and the words are its names
    0 tench / 0,tench / tench,0       the number is the class, from 0 or from 1
    ["tench", ...]                    position k is class k
    {"0": "tench"}, {"tench": 0}      the number is the class; also {0: 'tench'} and {"0": ["n01440764", "tench"]}
    {"id2label": {...}}               a Hugging Face config.json; timm's with label_names
    dog/1.jpg,dog                     a table of file and label, with tabs, commas, semicolons or spaces
    65                                a number a line, one an image in the order of the file names
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corp_onnx.errors import ImageError, ModelError, OptionError, clean_text
from corp_onnx.images.label_tables import find_table, split_number
from corp_onnx.images.labels import LABELS_KEY, ClassNames, Truth, is_wordnet_id, name_some, split_name
from corp_onnx.images.regular import read_text
from corp_onnx.results import read_json

OTHER_KEYS = ("names", "class_names")
"""Where other exporters put class names in an ONNX file: Ultralytics (YOLO), and Deepness (QGIS)."""

CONFIG = "config.json"
"""Beside a model, as Hugging Face and timm write it."""

EXPORT_FOLDER = "onnx"
MAX_LITERAL = 2**20
"""Characters of a Python literal that is parsed; its parser takes memory many times that."""


def read_labels(path: Path, files: Sequence[str] = ()) -> ClassNames | Truth:
    """What a labels file says.

    Args:
        files: images, by their path below the folder: what tells a table of files from one of names, and, where none
            of them lies in a folder, indices of images from names of classes that are numbers.

    Raises:
        ImageError: the file is missing, not text, empty, or of no known form.
    """
    try:
        text = read_text(path).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ImageError(f"{path}: the labels file can not be read ({reason}).") from error
    if not text:
        raise ImageError(f"{path}: the labels file is empty; expected one class name a line.")
    if text[0] in "[{":
        stored = _parse_literal(text)
        if isinstance(stored, (dict, list)):
            try:
                return _name_classes(_order_names(stored), path)
            except OptionError as error:
                raise ImageError(f"{path}: no class names can be read from it: {error}.") from error
        if path.suffix.lower() == ".json":
            raise ImageError(f"{path}: no class names can be read from it: it is not a JSON text.")
    return _read_lines(text.splitlines(), path, files)


def read_class_names(path: Path) -> ClassNames:
    """The class names of a labels file, where there are no images that it could speak of.

    Raises:
        ImageError: as `read_labels`, or the file says a label for every image.
    """
    found = read_labels(path)
    if isinstance(found, Truth):
        raise ImageError(f"{path}: says the label of single images; expected the names of the classes, one a line.")
    return found


def read_model_names(path: Path, metadata: Mapping[str, str]) -> ClassNames | None:
    """The class names that a model carries, or that the configuration beside it says; None where it has none.

    Raises:
        ModelError: our own entry of its metadata is broken.
    """
    if LABELS_KEY in metadata:
        try:
            stored = read_json(metadata[LABELS_KEY])
        except ValueError:
            stored = None
        if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
            raise ModelError(f"{path}: {LABELS_KEY} in its metadata is no JSON list of names; remove the entry.")
        return _carry(stored, path) if stored else None
    for key in OTHER_KEYS:
        stored = _parse_literal(metadata.get(key, ""))
        try:
            return _carry(_order_names(stored), path)
        except OptionError:
            continue
    folders = [path.parent, *([path.parent.parent] if path.absolute().parent.name == EXPORT_FOLDER else [])]
    for file in (folder / CONFIG for folder in folders):
        try:
            stored = read_json(read_text(file))
            names = _order_names({k: v for k, v in stored.items() if k in ("id2label", "label_names",
                                                                            "label_descriptions")})  # fmt: skip
        except (OSError, ValueError, AttributeError, OptionError):
            continue
        if not all(name == f"LABEL_{k}" for k, name in enumerate(names)):  # what Hugging Face puts where none are known
            return _carry(names, path, f", from {file}")
    return None


def _carry(names: Sequence[str], path: Path, origin: str = "") -> ClassNames:
    """The names of a model, as it spells them; each is a line of its own wherever it goes."""
    spelled = [" ".join(clean_text(name).split()) for name in names]
    return ClassNames(tuple(map(split_name, spelled)), path, f"the {len(names)} names of the model{origin}")


def _name_classes(names: Sequence[str], path: Path, order: str = "in index order") -> ClassNames:
    what = "WordNet ids" if all(map(is_wordnet_id, names)) else "names"
    spelled = [" ".join(clean_text(name).split()) for name in names]
    if not all(spelled):
        raise ImageError(f"{path}: class {spelled.index('')} has no name; expected one for every class.")
    return ClassNames(tuple(map(split_name, spelled)), path, f"{len(names)} {what} {order}, from {path}")


def _parse_literal(text: str) -> Any:
    """JSON, or else a Python literal; None where it is neither."""
    try:
        return read_json(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in a text that is none of ours
            return ast.literal_eval(text) if len(text) <= MAX_LITERAL else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _order_names(stored: Any) -> list[str]:
    """The class names of a list or an object, in the order of the classes.

    Raises:
        OptionError: it is neither, or a class is missing.
    """
    if isinstance(stored, dict) and isinstance(stored.get("id2label"), dict):
        return _order_names(stored["id2label"])
    if isinstance(stored, dict) and isinstance(stored.get("label_names"), list):  # timm
        described = stored.get("label_descriptions")
        described = described if isinstance(described, dict) else {}
        return [_spell_name([n, described[n]] if n in described else n) for n in stored["label_names"]]
    if isinstance(stored, list) and stored:
        return [_spell_name(name) for name in stored]
    if not isinstance(stored, dict) or not stored:
        raise OptionError("expected a list of names, or an object of numbers and names")
    pairs = [_pair(key, value) for key, value in stored.items()]
    named = {number: name for number, name in pairs if number is not None}
    if len(named) != len(pairs) or set(named) != set(range(len(pairs))):
        raise OptionError(
            f"expected a name for each number 0..{len(pairs) - 1}, found {name_some(list(map(str, stored)))}"
        )
    return [named[k] for k in range(len(pairs))]


def _pair(key: Any, value: Any) -> tuple[int | None, str]:
    """(the number, the name) of an entry of an object, whichever stands first."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, str(key)
    return split_number(str(key)), _spell_name(value)


def _spell_name(value: Any) -> str:
    """A name; a WordNet id and its word, as in ["n01440764", "tench"], are two names of a class."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    if not parts or not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
        raise OptionError(f"expected names, found {str(value)[:40]}")
    return " ".join(map(str, parts))


def _read_lines(lines: Sequence[str], path: Path, files: Sequence[str]) -> ClassNames | Truth:
    texts = [line.strip() for line in lines]
    filled = [text for text in texts if text]
    if all(map(is_wordnet_id, filled)):
        twice = sorted({a for a, b in zip(sorted(filled), sorted(filled)[1:], strict=False) if a == b})
        if twice:
            raise ImageError(f"{path}: the labels file names a class twice: {name_some(twice)}.")
        listed = "" if filled == sorted(filled) else " (the file lists them in another, and they count as a set)"
        return _name_classes(sorted(filled), path, f"in sorted order{listed}")
    if all(split_number(text) is not None for text in filled):
        loose = bool(files) and not any("/" in file for file in files)
        if loose or len(set(filled)) < len(filled):
            return Truth(tuple(filled), None, path)
    if len(filled) < len(texts):
        raise ImageError(
            f"{path}: expected a class name in every line of the labels file, and found an empty one, line "
            f"{texts.index('') + 1}."
        )
    found = find_table(texts, path, files)
    if isinstance(found, Truth):
        return found
    return _name_classes(texts, path) if found is None else _name_classes(found.names, path, found.order)
