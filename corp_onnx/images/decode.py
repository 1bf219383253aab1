"""Image files on disk, through Pillow: list them, tell images from other files, decode and crop them.

Enters paths; leaves names, uint8 crops, or the reason why a file gives none. Nothing here raises for a bad file: a
reason is a value, so that one damaged photograph among thousands does not end a run.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from corp_onnx.errors import ImageError
from corp_onnx.images.crop import crop_image
from corp_onnx.images.recipe import Recipe
from corp_onnx.images.regular import open_regular

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM")
"""Photographs with a signature. Pillow would also start Ghostscript for an EPS, and try to read any bytes as a TGA."""

MAX_REASON = 160
"""Characters of a reason; some of Pillow's quote the file."""


def require_path(path: Path) -> None:
    """Refuse a path where nothing lies that could hold images.

    Raises:
        ImageError: no folder and no file.
    """
    if not path.is_file() and not path.is_dir():
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
    entered: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [(Path(folder) / name).relative_to(path).as_posix() for name in files]
    if not names:
        raise ImageError(f"{path}: the folder is empty; give a folder of images.")
    return path, sorted(names)


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


def choose_images(root: Path, order: Sequence[str], limit: int | None) -> tuple[list[str], dict[str, str]]:
    """(sorted names of the first `limit` images in this order, name -> reason for the other files met on the way)."""
    chosen: list[str] = []
    bad: dict[str, str] = {}
    with quiet_pillow():
        for name in order:
            if limit is not None and len(chosen) == limit:
                break
            reason = identify_file(root / name)
            if reason:
                bad[name] = reason
            else:
                chosen.append(name)
    return sorted(chosen), bad


def decode_file(path: Path, recipes: Sequence[Recipe]) -> tuple[UInt8[np.ndarray, "h w c"], ...] | str:
    """The crop of an image for each recipe, decoded once; or why it can not be decoded."""
    try:
        with open_regular(path) as stream, Image.open(stream, formats=_known_formats()) as image:
            return tuple(crop_image(image, recipe) for recipe in recipes)
    except Exception as error:  # as in identify_file
        return _reason(error, path)


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


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if path.stat().st_size else "an empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()).rstrip(".")
    return text[:MAX_REASON] or type(error).__name__
