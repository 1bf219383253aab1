"""Files that a person gives, opened only where they end: no pipe that nobody writes to, no device without an end.

Enters a path; leaves a stream or a text, or an `OSError` with its reason, as of any file that can not be opened.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

MAX_TEXT_BYTES = 2**24
"""Of a text file: 16 MiB are more than half a million class names."""


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading.

    Raises:
        OSError: it can not be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise


def read_text(path: Path) -> str:
    """A short text in UTF-8, without the mark that Windows puts in front.

    Raises:
        OSError: it can not be opened, is no regular file, or too long to be what it should be.
        UnicodeDecodeError: it is no text.
    """
    with open_regular(path) as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise OSError(None, f"more than {MAX_TEXT_BYTES >> 20} MiB")
    return content.decode("utf-8-sig")
