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


class CorpOnnxError(Exception):
    """Base of everything that corp-onnx raises on purpose."""

    exit_code: int = 1


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
