"""Image files on disk, through Pillow: list them, tell images from other files, decode and crop them.

Enters paths; leaves names, uint8 crops, or the reason why a file gives none. Nothing here raises for a bad file: a
reason is a value, so that one damaged photograph among thousands does not end a run.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from corp_onnx.errors import ImageError
from corp_onnx.images.crop import crop_image
from corp_onnx.images.places import find_url, is_pattern
from corp_onnx.images.recipe import Recipe
from corp_onnx.images.regular import open_regular

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")
"""Photographs with a signature. Pillow would also start Ghostscript for an EPS, and try to read any bytes as a TGA."""

MAX_REASON = 160
"""Characters of a reason; some of Pillow's quote the file."""

MANY_FILES = 10_000
"""Where all of so many files are wanted, what is called like an image is not opened before its turn: 0.03 ms a file on
a local disk, and a hundred times that on a share."""


def require_path(path: Path) -> None:
    """Refuse a path where nothing lies that could hold images; what a URL or a pattern names shows when it is opened.

    Raises:
        ImageError: no folder and no file.
    """
    if not path.is_file() and not path.is_dir() and find_url(path) is None and not is_pattern(path):
        raise ImageError(f"{path}: no such folder or file; give a folder of images.")


def list_files(path: Path) -> tuple[Path, list[str]]:
    """(folder, sorted posix paths below it); of a file, its folder and its name.

    Hidden folders are not entered, and a folder that links lead to twice is entered once.

    Raises:
        ImageError: nothing at that path, or an empty folder.
    """
    require_path(path)
    if path.is_file():
        return path.parent, [path.name]
    names: list[str] = []
    entered: set[tuple[int, int]] = set()
    todo = [("", str(path))]
    while todo:
        prefix, folder = todo.pop()
        about = os.stat(folder)  # noqa: PTH116 - text: a Path for everything in a folder of a million takes seconds
        if (about.st_dev, about.st_ino) not in entered:
            entered.add((about.st_dev, about.st_ino))
            files, folders = _scan_folder(folder)
            names += [prefix + name for name in files]
            todo += [(f"{prefix}{name}/", f"{folder}{os.sep}{name}") for name in sorted(folders, reverse=True)]
    if not names:
        raise ImageError(f"{path}: the folder is empty; give a folder of images.")
    return path, sorted(names)


def _scan_folder(folder: str) -> tuple[list[str], list[str]]:
    """(files, folders that are not hidden) in a folder; the system is asked about links alone."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_folder(entry):
                    files.append(entry.name)
                elif not entry.name.startswith("."):
                    folders.append(entry.name)
    except OSError:  # as `os.walk` has it: what can not be listed is left out
        pass
    return files, folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def identify_file(path: Path) -> str:
    """Why a file is not an image, by its first bytes and not its name; empty where it is one."""
    if path.name.startswith("."):
        return "hidden file"
    if not path.is_file():  # a broken link is not there, and yet no missing file to a person who sees its name
        return "not a regular file"
    try:
        with open_regular(path) as stream, Image.open(stream, formats=_known_formats()):
            return ""
    except Exception as error:  # Pillow's plugins raise whatever a damaged header makes them meet
        return _reason(error, path)


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image, and not hidden."""
    file = name.rpartition("/")[2]
    return file[file.rfind(".") :].lower() in image_suffixes() and not file.startswith(".")


@cache
def image_suffixes() -> frozenset[str]:
    """Of the formats that are read, with their dot."""
    Image.init()
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS)


def choose_images(root: Path, order: Sequence[str], limit: int | None) -> tuple[list[str], dict[str, str]]:
    """(sorted names of the first `limit` images in this order, name -> reason for the other files met on the way).

    Of more than `MANY_FILES` that are all wanted, those that are called like images are opened when they are decoded.
    """
    chosen: list[str] = []
    bad: dict[str, str] = {}
    trusting = limit is None and len(order) > MANY_FILES
    with quiet_pillow():
        for name in order:
            if limit is not None and len(chosen) == limit:
                break
            reason = "" if trusting and is_image_name(name) else identify_file(root / name)
            if reason:
                bad[name] = reason
            else:
                chosen.append(name)
    return sorted(chosen), bad


def decode_file(encoded: Path | bytes, recipes: Sequence[Recipe]) -> tuple[UInt8[np.ndarray, "h w c"], ...] | str:
    """The crop of an image, in a file or as its bytes, for each recipe, decoded once; or why it can not be decoded."""
    try:
        stream = io.BytesIO(encoded) if isinstance(encoded, bytes) else open_regular(encoded)
        with stream, Image.open(stream, formats=_known_formats()) as image:
            return tuple(crop_image(image, recipe) for recipe in recipes)
    except Exception as error:  # as in identify_file
        return _reason(error, encoded)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Ignore the warnings of Pillow's modules, of its threads too; what is wrong with a file is in its reason.

    What they log reaches who asked for it, and stderr no more where nobody did.

    Warning filters belong to the process, so this is entered by the consumer's thread and never by a decoding one.
    """
    logger = logging.getLogger("PIL")
    if not logger.hasHandlers():
        logger.addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reason(error: Exception, encoded: Path | bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        size = len(encoded) if isinstance(encoded, bytes) else encoded.stat().st_size
        return "not an image" if size else "an empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()).rstrip(".")
    return text[:MAX_REASON] or type(error).__name__
