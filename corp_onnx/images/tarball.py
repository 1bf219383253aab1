"""Images in tar shards, as WebDataset keeps them: members of one sample share a key, `0001.jpg` and `0001.cls`.

Enters places; leaves a `TarShards`, an index of where the members lie that are images by their suffix. It is made by
one pass over the headers, which seeks past the contents; images are read from their place later. Of a URL headers can
not be had without what lies between them, so the pass ends with the image that is the last one wanted.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import ImageError, MissingExtraError
from corp_onnx.images.decode import image_suffixes
from corp_onnx.images.labels import Truth
from corp_onnx.images.places import is_remote, name_places, open_place, read_reason
from corp_onnx.images.source import FileShards, ShardNames

LABEL = "cls"
MAX_LABEL_BYTES = 64
MAX_IMAGE_BYTES = 2**30
"""A header may claim anything; no photograph is larger."""


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One tar file.

    Attributes:
        title: what its images are called by.
        members: names of its images, in their order.
        images: where each begins, and its bytes.
        labels: the same of the class index beside it; -1 where there is none.
    """

    place: str
    title: str
    members: tuple[str, ...]
    images: Int[np.ndarray, "n 2"]
    labels: Int[np.ndarray, "n 2"]


@dataclass(frozen=True, slots=True, eq=False)
class TarShards(FileShards[Shard]):
    """Tar files one behind the other."""

    def name(self, row: int) -> str:
        """`shard-000.tar/0001.jpg`."""
        shard, inside = self.locate(row)
        return f"{shard.title}/{shard.members[inside]}"

    def read_rows(self, rows: Int[np.ndarray, " n"]) -> Iterator[bytes]:
        """As `ShardSource`."""
        yield from self._read(rows, "images")

    def read_truth(self, names: Sequence[str]) -> Truth | None:
        """The class indices beside the images, where all of them have one."""
        if not isinstance(names, ShardNames):
            return None
        places = [self.locate(int(row)) for row in names.rows]
        if not places or any(shard.labels[inside, 1] < 1 for shard, inside in places):
            return None
        values = [
            content[:MAX_LABEL_BYTES].decode(errors="replace").strip() for content in self._read(names.rows, "labels")
        ]
        return Truth(tuple(values), tuple(names), Path(f"{self.shards[0].title}:*.{LABEL}"))

    def alone(self, names: ShardNames) -> ShardNames:
        """As `ShardSource`: without the other members."""
        rows, places = np.unique(names.rows, return_inverse=True)
        kept: list[Shard] = []
        for at, shard in enumerate(self.shards):
            inside = rows[np.searchsorted(self.ends, rows, side="right") == at] - self.start(at)
            if len(inside):
                members = tuple(shard.members[i] for i in inside.tolist())
                kept.append(replace(shard, members=members, images=shard.images[inside], labels=shard.labels[inside]))
        return ShardNames(_join_shards(kept), places.astype(np.int64))

    def _read(self, rows: Int[np.ndarray, " n"], what: str) -> Iterator[bytes]:
        """The contents at these rows; a shard stays open while they lie in it."""
        stream, place = None, ""
        try:
            for shard, inside in map(self.locate, rows.tolist()):
                if stream is None or shard.place != place:
                    if stream is not None:
                        stream.close()
                    stream, place = open_place(shard.place), shard.place
                start, size = getattr(shard, what)[inside].tolist()
                stream.seek(start)
                yield stream.read(size)
        except OSError as error:
            raise ImageError(f"{place}: can not be read ({read_reason(error)}); replace or remove it.") from error
        finally:
            if stream is not None:
                stream.close()


def open_tars(places: Sequence[str], limit: int | None = None) -> tuple[TarShards, dict[str, str]]:
    """(the index of the shards, what was left out -> why).

    Args:
        limit: of images that are looked for behind URLs.

    Raises:
        ImageError: no image in any of them.
    """
    shards: list[Shard] = []
    bad: dict[str, str] = {}
    n_found = 0
    for place, title in zip(places, name_places(places), strict=True):
        left = None if limit is None or not is_remote(place) else limit - n_found
        if left == 0:
            break
        shard, reason = _index_shard(place, title, left)
        n_found += len(shard.members)
        if shard.members:
            shards.append(shard)
        if reason:
            bad[title] = reason
    if not shards:
        why = next(iter(bad.values()), "no member with the suffix of an image")
        raise ImageError(f"{places[0]}: {why}; expected tar shards with members such as 0001.jpg.")
    return _join_shards(shards), bad


def _join_shards(shards: Sequence[Shard]) -> TarShards:
    return TarShards(tuple(shards), np.cumsum([len(shard.members) for shard in shards]))


def _index_shard(place: str, title: str, limit: int | None) -> tuple[Shard, str]:
    """The images of a shard up to a limit, and why it ends early or gives none."""
    found: dict[str, tuple[int, int]] = {}
    labels: dict[str, tuple[int, int]] = {}
    suffixes, reason = image_suffixes(), ""
    try:
        with open_place(place) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members.clear()  # it keeps every header otherwise
                name = PurePosixPath(member.name)
                where = (member.offset_data, member.size)
                if not member.isfile() or name.name.startswith(".") or member.size > MAX_IMAGE_BYTES:
                    continue
                if name.suffix.lower() in suffixes:
                    found[member.name] = where
                elif name.suffix == f".{LABEL}":
                    labels[str(name.with_suffix(""))] = where
                if limit is not None and len(found) > limit:  # one more, so that the label of the last one is known
                    break
    except MissingExtraError:
        raise
    except (tarfile.TarError, OSError, EOFError, ImageError) as error:
        reason = _explain(place, error, len(found))
    names = tuple(_drop_companions(found))[:limit]
    images = np.array([found[name] for name in names], dtype=np.int64).reshape(-1, 2)
    beside = [labels.get(str(PurePosixPath(name).with_suffix("")), (-1, -1)) for name in names]
    return Shard(place, title, names, images, np.array(beside, dtype=np.int64).reshape(-1, 2)), reason


def _drop_companions(names: Sequence[str] | dict[str, tuple[int, int]]) -> list[str]:
    """Without masks and the like: `0001.seg.png` where there is `0001.jpg`."""
    keys = {name: _key(name) for name in names}
    plain = {key for name, key in keys.items() if PurePosixPath(name).stem == PurePosixPath(key).name}
    return [
        name for name, key in keys.items() if key not in plain or PurePosixPath(name).stem == PurePosixPath(key).name
    ]


def _key(name: str) -> str:
    """WebDataset's: all up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.split('.')[0]}"


def _explain(place: str, error: Exception, n_found: int) -> str:
    text = read_reason(error).removeprefix(f"{place}: ")
    if n_found:
        return f"ends after {n_found} images ({text})"
    compressed = "; if it is compressed, unpack it" if isinstance(error, tarfile.ReadError) else ""
    return f"is no tar file that can be read ({text}){compressed}"
