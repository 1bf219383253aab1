"""Class names and what is said of single images, as values; which class a folder or a name means.

Enters names; leaves class indices. A class goes by several names: a WordNet id, a description, the first of its
synonyms. A name is looked for exactly, then without regard to case, spaces, underscores and hyphens, then among first
synonyms; where it could be two classes, it is none. Folders that are numbers and no names are indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LABELS_KEY = "corp_onnx.labels"
"""Where an ONNX file keeps its class names: a JSON list, the position is the class index."""

N_NAMED = 3
"""Of many, those that a text names."""

SAME_ORDER = 0.02
"""Lists of the same classes may spell some differently; where more than this share of the names that two lists have in
common stand at another index, they are of another order."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassNames:
    """The classes of a model, in the order of its answers.

    Attributes:
        names: for each class the names it goes by; the last one is for people.
        source: the file, or the model, that says so.
        meaning: what was made of it: `1000 names in index order`.
    """

    names: tuple[tuple[str, ...], ...]
    source: Path
    meaning: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def titles(self) -> tuple[str, ...]:
        """One name for each class, for people."""
        return tuple(names[-1] for names in self.names)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What a file says of single images.

    Attributes:
        values: an index, a class name or a folder name, one for each image.
        files: the image of each value; None where they stand in the order of the file names.
        source: the file.
        classes: what its indices mean, where it says so.
    """

    values: tuple[str, ...]
    files: tuple[str, ...] | None
    source: Path
    classes: ClassNames | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Names and their classes.

    Attributes:
        index: name -> class.
        unknown: names of no class.
        ambiguous: names of several classes, with them.
        how: how they were found where that was not by name; for a text.
    """

    index: dict[str, int]
    unknown: tuple[str, ...]
    ambiguous: dict[str, tuple[int, ...]]
    how: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ModelClasses:
    """What is known of the classes of a model: its file, their number where it is known, their names if it has any."""

    path: Path
    n_classes: int | None
    names: ClassNames | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What labels were asked for: kept, to label again once a model is known.

    Attributes:
        root: the folder of the images, for texts.
        given: what the person gave; None asks the folders.
        folders: every class folder, of images that were not drawn too; sorted.
        order: for labels in the order of the images: all of them, sorted.
    """

    root: Path
    given: ClassNames | Truth | None
    folders: tuple[str, ...]
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The class index of every file.

    Attributes:
        indices: one for each file, or None where there are no labels.
        n_classes: how many classes the indices count over, where that is known.
        source: the labels file, or None where folder names gave the order.
        note: why there are no labels although they were asked for; empty otherwise.
        meaning: how they were found, for a person: `10 names in index order, from names.txt`.
        request: what was asked for; None for no labels.
    """

    indices: tuple[int, ...] | None = None
    n_classes: int | None = None
    source: Path | None = None
    note: str = ""
    meaning: str = ""
    request: Request | None = None


def is_wordnet_id(text: str) -> bool:
    """Whether a text is a noun of WordNet, such as n01440764."""
    return len(text) == 9 and text[0] == "n" and text.isascii() and text[1:].isdecimal()


def class_folder(name: str) -> str | None:
    """The first folder of a path below the image folder."""
    folder, slash, _ = name.partition("/")
    return folder if slash else None


def split_name(text: str) -> tuple[str, ...]:
    """The names in `n01440764 tench, Tinca tinca`: the WordNet id, and what follows; others stay whole."""
    text = text.strip()
    rest = text[9:].strip(" \t:,;_-")
    return (text[:9], rest) if is_wordnet_id(text[:9]) and rest and not text[9].isalnum() else (text,)


def match_names(wanted: Iterable[str], classes: ClassNames) -> Matched:
    """The class of every name, as the module says."""
    asked = list(dict.fromkeys(wanted))
    stages = [_index(classes, spelled) for spelled in (str, _fold, _first_synonym)]
    index: dict[str, int] = {}
    unknown: list[str] = []
    ambiguous: dict[str, tuple[int, ...]] = {}
    for name in asked:
        tries = (name, _fold(name), _fold(name))
        found = next((s[key] for s, key in zip(stages, tries, strict=True) if key in s), ())
        if not found:  # a folder may be called n01440764_tench
            found = next((stages[0][part] for part in split_name(name)[:1] if part in stages[0]), ())
        if len(found) == 1:
            index[name] = found[0]
        elif found:
            ambiguous[name] = found
        else:
            unknown.append(name)
    if not index and not ambiguous and (base := count_base(unknown, len(classes))) is not None:
        return Matched({n: int(n) - base for n in unknown}, (), {}, f" by their number, counted from {base}")
    return Matched(index, tuple(unknown), ambiguous)


def count_base(values: Iterable[str], n_classes: int | None) -> int | None:
    """Whether numbers count classes from 0 or from 1, where they show it; None where they do not, or are no indices.

    A 0 is there from 0 on only, and the number of classes from 1 on only.
    """
    texts = set(values)
    if not texts or not all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts):
        return None
    numbers = {int(text) for text in texts}
    if 0 in numbers:
        return 0 if n_classes is None or max(numbers) < n_classes else None
    return 1 if n_classes is not None and max(numbers) == n_classes else None


def find_contradiction(given: ClassNames, own: ClassNames) -> str:
    """Says which class two lists of the same names put at different places; empty where they do not."""
    if len(given) != len(own):
        return ""
    found = match_names(own.titles, given)
    if found.how:  # numbers on one side are no names
        return ""
    places = [(k, found.index[title]) for k, title in enumerate(own.titles) if title in found.index]
    moved = [(k, other) for k, other in places if k != other]
    if len(moved) <= SAME_ORDER * len(places):
        return ""
    k, other = moved[0]
    return (
        f"{given.source} and {own.source} have the same class names in different orders: '{own.titles[k]}' is class "
        f"{other} of the one and class {k} of the other"
    )


def name_some(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + more


def _index(classes: ClassNames, spelled: Callable[[str], str]) -> dict[str, tuple[int, ...]]:
    """Spelling -> the classes that have a name of it."""
    found: dict[str, dict[int, None]] = {}
    for k, names in enumerate(classes.names):
        for name in names:
            found.setdefault(spelled(name), {})[k] = None
    found.pop("", None)
    return {key: tuple(places) for key, places in found.items()}


def _first_synonym(name: str) -> str:
    return _fold(name.split(",")[0])


def _fold(name: str) -> str:
    """A name without regard to case, underscores, hyphens and white space; of a number, without zeros in front."""
    text = " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()
    return text.lstrip("0") or "0" if text.isascii() and text.isdecimal() else text
