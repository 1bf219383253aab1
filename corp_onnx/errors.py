"""Every error that corp-onnx raises on purpose, and the exit code each one means.

    CorpOnnxError                exit 1
    ├── InputError               exit 2  what the person gave can not be used
    │   ├── ModelError                   the ONNX file: unreadable, quantised, of an unsupported kind
    │   │   └── NothingToPruneError      no unit was recognised; carries the nearest miss
    │   ├── ImageError                   the images: folder missing, empty, too few readable
    │   ├── OutputError                  the destination: exists, not writable, disk full
    │   └── OptionError                  a number or name out of its range
    ├── MissingExtraError        exit 2  an optional package is not installed; says which to install
    └── CheckFailedError         exit 1  the work was done, and a check on it failed
        └── NonFiniteError               a tensor of the model holds NaN or Inf

A text says what was expected, what was found (names, shapes, numbers) and what to do next, in one sentence or two.
"""

from __future__ import annotations

import unicodedata

CONTROL, HALF = "Cc", "Cs"
"""Unicode's categories of control characters, and of halves of characters: what stands for a byte that is no UTF-8."""

DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of what follows, so that a name reads as another."""


def clean_text(text: str) -> str:
    """A text of a model or a file as a person may see it: one line, without what a terminal obeys.

    An escape sequence in the name of a node could otherwise clear the screen, rename the window or forge a line of
    ours. White space of any kind becomes a space and half a character a mark that shows where it was; other control
    characters go, and what is left of a sequence shows.
    """
    if text.isprintable():
        return text
    spaced = (" " if c in "\t\n\r\x0b\x0c\x85\u2028\u2029" else c for c in text)
    whole = ("\ufffd" if unicodedata.category(c) == HALF else c for c in spaced)
    return "".join(c for c in whole if unicodedata.category(c) != CONTROL and c not in DIRECTIONS)


class CorpOnnxError(Exception):
    """Base of everything that corp-onnx raises on purpose."""

    exit_code: int = 1

    def __str__(self) -> str:
        return clean_text(super().__str__())


class InputError(CorpOnnxError):
    """What the person gave can not be used."""

    exit_code = 2


class ModelError(InputError):
    """The ONNX file can not be used."""


class NothingToPruneError(ModelError):
    """No unit of the graph was recognised."""


class ImageError(InputError):
    """The images can not be used."""


class OutputError(InputError):
    """The destination can not be written."""


class OptionError(InputError):
    """An option is out of its range."""


class MissingExtraError(CorpOnnxError):
    """An optional package is not installed."""

    exit_code = 2


class CheckFailedError(CorpOnnxError):
    """The work was done, and a check on it failed."""


class NonFiniteError(CheckFailedError):
    """A tensor of the model holds NaN or Inf."""
