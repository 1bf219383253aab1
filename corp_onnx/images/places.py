"""Where shards lie: paths, patterns of paths and URLs -> places, each of which can be opened.

Enters `shard-{000..012}.tar`, `train-*.parquet`, or a URL of any file system that fsspec knows (s3, gs, http,
memory, `simplecache::s3`); leaves texts that name one file each, in order. Local files need no package.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, cast

from corp_onnx.errors import ImageError, MissingExtraError
from corp_onnx.images.regular import open_regular

URL = re.compile(r"((?:[a-z][a-z0-9]+::)*[a-z][a-z0-9+.-]+):(/{1,3})([^/].*)")
"""Of two letters or more, since `C:/` is a path; one slash where a `Path` was made of it, which keeps no two."""

BRACES = re.compile(r"\{([^{}]*)\}")
MAX_PLACES = 1_000_000
MAX_REASON = 160


def find_url(path: Path | str) -> str | None:
    """The URL that a person gave, also where it has become a `Path` meanwhile; None for a path."""
    found = URL.fullmatch(str(path))
    if found is None or Path(path).exists():
        return None
    return f"{found[1]}:{found[2] if len(found[2]) > 1 else '//'}{found[3]}"


def is_pattern(path: Path | str) -> bool:
    """Whether braces or stars stand for several files; a file that is really called so is none."""
    text = str(path)
    return (bool(BRACES.search(text)) or glob.has_magic(text)) and not Path(path).exists()


def list_places(path: Path | str) -> list[str]:
    """The files that a URL or a pattern stands for, in order; of a folder by URL, all in it.

    Raises:
        ImageError: none.
        MissingExtraError: a URL, and fsspec or its file system is not installed.
    """
    url = find_url(path)
    patterns = expand_braces(str(path) if url is None else url)
    found = [place for p in patterns for place in (_list_local(p) if url is None else _list_remote(p))]
    if not found:
        raise ImageError(f"{path}: no such file; give a folder of images, shards, or a pattern of shards.")
    return found


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..012}.tar` and `{a,b}.tar` written out, as a shell does; numbers keep their zeros.

    Raises:
        ImageError: braces that mean neither, or a million files and more.
    """
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    ends = found[1].split("..")
    if len(ends) == 2 and all(end.isascii() and end.isdecimal() for end in ends):
        first, last = map(int, ends)
        step = 1 if last >= first else -1
        width = max(map(len, ends)) if any(end.startswith("0") and len(end) > 1 for end in ends) else 0
        if abs(last - first) >= MAX_PLACES:
            raise ImageError(f"{pattern}: stands for {abs(last - first) + 1} files; expected fewer than {MAX_PLACES}.")
        choices = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        raise ImageError(f"{pattern}: '{found[0]}' is neither a range such as {{000..012}} nor a list such as {{a,b}}.")
    head, tail = pattern[: found.start()], expand_braces(pattern[found.end() :])
    return [f"{head}{choice}{rest}" for choice in choices for rest in tail]


def open_place(place: str) -> BinaryIO:
    """A file, local or remote, for reading from anywhere in it.

    Raises:
        ImageError: it can not be opened.
        MissingExtraError: as `list_places`.
    """
    try:
        if URL.fullmatch(place) is None:
            return open_regular(Path(place))
        return cast(BinaryIO, _import_fsspec(place).open(place, "rb").open())
    except MissingExtraError:
        raise
    except Exception as error:  # every file system has errors of its own
        raise ImageError(f"{place}: can not be opened ({read_reason(error)}).") from error


def place_to_keep(path: Path | str) -> str:
    """How a file names a path, a pattern or a URL, wherever it is read from; empty where nothing is there."""
    url = find_url(path)
    return url or (str(Path(path).absolute()) if Path(path).exists() or is_pattern(path) else "")


def name_places(places: Sequence[str]) -> list[str]:
    """A short name for each of different places: without the folder that all of them lie in."""
    parts = [place.replace("\\", "/").split("/") for place in places]
    first, last = min(parts)[:-1], max(parts)[:-1]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return ["/".join(of_place[shared:]) for of_place in parts]


def is_remote(place: str) -> bool:
    """Whether it is a URL."""
    return URL.fullmatch(place) is not None


def read_reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:MAX_REASON].rstrip(". ") or type(error).__name__


def _list_local(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        if not Path(pattern).is_file():
            raise ImageError(f"{pattern}: no such file; the pattern names it.")
        return [pattern]
    return sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())  # noqa: PTH207


def _list_remote(url: str) -> list[str]:
    """A file by its own name, without asking for it; a folder or a pattern listed."""
    if url.endswith((".parquet", ".tar")) and not glob.has_magic(url):
        return [url]
    try:
        system, path = _import_fsspec(url).core.url_to_fs(url)
        found = system.glob(path) if glob.has_magic(url) else ([path] if system.isfile(path) else system.find(path))
        return sorted(system.unstrip_protocol(name) for name in found)
    except MissingExtraError:
        raise
    except Exception as error:  # as in open_place
        raise ImageError(f"{url}: can not be listed ({read_reason(error)}).") from error


def _import_fsspec(url: str) -> Any:
    """fsspec, where it is installed with what this URL needs."""
    try:
        fsspec = import_module("fsspec")
    except ImportError as error:
        raise MissingExtraError(
            f"{url}: to read URLs takes fsspec: pip install 'corp-onnx[shards]', or download the shards."
        ) from error
    for protocol in URL.sub(r"\1", url).split("::"):
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise MissingExtraError(f"{url}: fsspec can not read {protocol} ({read_reason(error)}).") from error
    return fsspec
