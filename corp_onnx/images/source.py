"""Where encoded images lie: names in, what Pillow decodes out, in order.

A folder is here; Parquet files and tar shards, which are read a piece at a time and never listed whole, are sources of
the same kind (parquet.py, tarball.py). A source holds paths and counts and no open file, so that it can be sent to
another process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar, overload

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import ImageError
from corp_onnx.images.labels import Truth
from corp_onnx.images.places import open_place

Encoded: TypeAlias = Path | bytes
"""An image as a file holds it."""


class Source(ABC):
    """Encoded images by name."""

    @abstractmethod
    def stream(self, names: Sequence[str], is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, Encoded | None]]:
        """Every name in order with its image; with None where the image is not wanted, which costs no reading.

        Raises:
            ImageError: a shard can not be read.
        """

    @abstractmethod
    def require_readable(self) -> None:
        """Raise where nothing is there.

        Raises:
            ImageError: naming what is missing.
        """

    def read_truth(self, names: Sequence[str]) -> Truth | None:
        """The labels that are stored beside the images, one for each name; None where there are none."""
        del names
        return None


@dataclass(frozen=True, slots=True, eq=False)
class FolderSource(Source):
    """Files below a folder, by their posix paths."""

    root: Path

    def stream(self, names: Sequence[str], is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, Encoded | None]]:
        """As `Source`; a file is opened by who decodes it."""
        for name in names:
            yield name, self.root / name if is_wanted(name) else None

    def require_readable(self) -> None:
        """As `Source`."""
        if not self.root.is_dir():
            raise ImageError(f"{self.root}: no such folder.")


class ShardSource(Source):
    """Images in shards: counted, and named only when a name is asked for."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Images of all shards."""

    @abstractmethod
    def name(self, row: int) -> str:
        """The name of an image: its shard, and what it is called there."""

    @abstractmethod
    def read_rows(self, rows: Int[np.ndarray, " n"]) -> Iterator[bytes]:
        """The images at these rows, in this order; fast where they ascend. Empty where a shard holds none there."""

    def find(self, names: Sequence[str]) -> ShardNames:
        """These images among all of them.

        Raises:
            ImageError: one is not there.
        """
        wanted = dict.fromkeys(names, -1)
        for row in range(self.n_rows):
            name = self.name(row)
            if name in wanted:
                wanted[name] = row
        missing = next((name for name, row in wanted.items() if row < 0), None)
        if missing is not None:
            raise ImageError(f"{missing}: is not in these shards.")
        return ShardNames(self, np.array([wanted[name] for name in names], dtype=np.int64))

    def alone(self, names: ShardNames) -> ShardNames:
        """The same images of a source that knows no more than it has to; for another process."""
        return names

    def stream(self, names: Sequence[str], is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, Encoded | None]]:
        """As `Source`, of the names of this source."""
        assert isinstance(names, ShardNames)
        wanted = np.fromiter(map(is_wanted, names), bool, len(names))
        images = self.read_rows(names.rows[wanted])
        for name, reads in zip(names, wanted, strict=True):
            yield name, next(images) if reads else None


class Shard(Protocol):
    """A file of images."""

    @property
    def place(self) -> str:
        """Where it lies, as `open_place` takes it."""
        ...


S = TypeVar("S", bound=Shard)


@dataclass(frozen=True, slots=True, eq=False)
class FileShards(ShardSource, Generic[S]):
    """Files one behind the other.

    Attributes:
        ends: images of all shards up to the end of each.
    """

    shards: tuple[S, ...]
    ends: Int[np.ndarray, " s"]

    @property
    def n_rows(self) -> int:
        """As `ShardSource`."""
        return int(self.ends[-1])

    def require_readable(self) -> None:
        """As `Source`."""
        open_place(self.shards[0].place).close()

    def locate(self, row: int) -> tuple[S, int]:
        """The shard of an image, and its place in it."""
        at = int(np.searchsorted(self.ends, row, side="right"))
        return self.shards[at], row - self.start(at)

    def start(self, at: int) -> int:
        """Images before a shard."""
        return int(self.ends[at - 1]) if at else 0


@dataclass(frozen=True, slots=True, eq=False)
class ShardNames(Sequence[str]):
    """The names of some images of shards: eight bytes each until one is looked at."""

    source: ShardSource
    rows: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ShardNames: ...
    def __getitem__(self, index: int | slice) -> str | ShardNames:
        if isinstance(index, slice):
            return ShardNames(self.source, self.rows[index])
        return self.source.name(int(self.rows[index]))


@dataclass(frozen=True, slots=True, eq=False)
class JoinedSource(Source):
    """Images of several sources: `2/a.tar/1.jpg` is one of the second."""

    parts: tuple[Source, ...]

    def stream(self, names: Sequence[str], is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, Encoded | None]]:
        """As `Source`; fast where images of one source follow each other."""
        for number, run in groupby(names, key=lambda name: name.partition("/")[0]):
            own = [name.partition("/")[2] for name in run]
            part = self.parts[int(number) - 1]
            found = part.find(own) if isinstance(part, ShardSource) else own
            wanted = dict(zip(found, (is_wanted(f"{number}/{name}") for name in own), strict=True))
            yield from ((f"{number}/{name}", image) for name, image in part.stream(found, wanted.__getitem__))

    def require_readable(self) -> None:
        """As `Source`."""
        for part in self.parts:
            part.require_readable()


def take_names(names: Sequence[str], positions: Sequence[int] | Int[np.ndarray, " n"]) -> Sequence[str]:
    """The names at some positions."""
    if isinstance(names, ShardNames):
        return ShardNames(names.source, names.rows[np.asarray(positions, dtype=np.int64)])
    return tuple(names[i] for i in positions)
