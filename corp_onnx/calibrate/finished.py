"""Moments that are finished while others are still to come: in a file that is mapped, not in memory.

Enters moments of some units; leaves the same with arrays that the system reads when they are looked at and may forget
afterwards (`memory.forget_pages`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from corp_onnx.errors import InputError
from corp_onnx.moments import AnyMoments, flatten_moments, gather_moments
from corp_onnx.tensor_file import read_tensors, write_tensors

ABOUT = "about"

Entries = tuple[tuple[str, AnyMoments], ...]
"""Moments by the key of their unit."""


def write_finished(entries: Entries, path: Path, about: Mapping[str, str], destination: Path | None = None) -> None:
    """A file of moments, with what they are of.

    Args:
        destination: what an error calls the file; the path.

    Raises:
        OutputError: it can not be written.
    """
    write_tensors(path, flatten_moments(entries), {ABOUT: json.dumps(dict(about))}, destination)


def map_finished(path: Path, about: Mapping[str, str]) -> Entries:
    """What `write_finished` wrote of the same; on Linux and macOS the file may go once it is mapped.

    Raises:
        InputError: it is no such file, or of something else.
    """
    file = read_tensors(path)
    if file.metadata.get(ABOUT) != json.dumps(dict(about)):
        raise InputError(f"{path}: holds moments of another calibration; remove it to start anew.")
    return tuple(gather_moments(file.arrays).items())
