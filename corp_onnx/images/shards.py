"""Shards of encoded images, recognised and opened: Parquet files, and tar files as WebDataset keeps them.

Enters a path, a pattern or a URL; leaves a source of images, their names, and what a person should know. Shards are
counted or indexed, not read: parquet.py and tarball.py say how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from corp_onnx.errors import ImageError
from corp_onnx.images.decode import is_image_name
from corp_onnx.images.parquet import open_parquet
from corp_onnx.images.places import find_url, is_pattern, is_remote, list_places
from corp_onnx.images.regular import open_regular
from corp_onnx.images.source import ShardNames, ShardSource
from corp_onnx.images.tarball import open_tars

PARQUET, TAR = ".parquet", ".tar"
PARQUET_START = b"PAR1"
TAR_MARK = b"ustar"
TAR_MARK_AT = 257


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Images of shards.

    Attributes:
        names: of all that were found.
        bad: shards that give none, or fewer than they should -> why.
        note: why what was found is no fair draw; empty where all was found.
    """

    source: ShardSource
    names: ShardNames
    bad: dict[str, str]
    note: str


def find_shards(path: Path | str, listed: Sequence[str] = ()) -> list[str]:
    """The shards that a person means; none where it is a folder of images, an image, or an array.

    Args:
        listed: the files below a folder: they are shards where they end in .parquet or .tar and no image is among them.

    Raises:
        ImageError: a pattern or a URL of no shard, or shards of both kinds.
        MissingExtraError: a URL, and fsspec is not installed.
    """
    if find_url(path) is not None or is_pattern(path):
        places = [place for place in list_places(path) if place.endswith((PARQUET, TAR))]
        if not places:
            raise ImageError(f"{path}: names no file that ends in {PARQUET} or {TAR}; expected shards of images.")
        return _require_one_kind(path, places)
    if Path(path).is_file():
        return [str(path)] if _is_shard(Path(path)) else []
    shards = [name for name in listed if name.endswith((PARQUET, TAR))]
    if not shards or any(map(is_image_name, listed)):
        return []
    return _require_one_kind(path, [str(Path(path) / name) for name in shards])


def open_shards(path: Path | str, places: Sequence[str], limit: int | None) -> Shards:
    """What is in shards.

    Args:
        limit: of images that are looked for in tar files behind URLs.

    Raises:
        ImageError: no image in any of them.
        MissingExtraError: pyarrow, or what a URL takes, is not installed.
    """
    source: ShardSource
    if places[0].endswith(TAR) or (not places[0].endswith(PARQUET) and not _starts_like_parquet(Path(places[0]))):
        source, bad = open_tars(places, limit)
    else:
        source, bad = open_parquet(places)
    note = ""
    if limit is not None and is_remote(places[0]) and places[0].endswith(TAR) and source.n_rows >= limit:
        note = (
            f"the first {limit} images of {path}, in their order and no draw: tar files behind a URL are read from the "
            "start; they are as good as a draw where they were shuffled when they were written."
        )
    return Shards(source, ShardNames(source, np.arange(source.n_rows)), bad, note)


def _require_one_kind(path: Path | str, places: list[str]) -> list[str]:
    kinds = {PurePosixPath(place).suffix for place in places}
    if len(kinds) > 1:
        raise ImageError(f"{path}: holds {PARQUET} and {TAR} files; give one kind of shards, by a pattern or a folder.")
    return sorted(set(places))


def _is_shard(path: Path) -> bool:
    """By its content; and by its name where that is damaged, so that it is said what is wrong."""
    if path.name.endswith((PARQUET, TAR)) or _starts_like_parquet(path):
        return True
    with open_regular(path) as stream:
        return stream.read(TAR_MARK_AT + len(TAR_MARK))[TAR_MARK_AT:] == TAR_MARK


def _starts_like_parquet(path: Path) -> bool:
    with open_regular(path) as stream:
        return stream.read(len(PARQUET_START)) == PARQUET_START
