"""Arrays that a stage keeps for a later one: in memory up to a limit, beyond it in files without a name.

The refit keeps two residual streams and the regressors of a product, all of them images x tokens x width; the search
keeps preprocessed images. A `Shelf` bounds what all of them together take; a `Row` on it reads like a sequence of
arrays, wherever they are. What is to stay an array (solutions, of which a wide model has gigabytes) is laid `aside`
where there is a limit: in a file that is mapped. The files have no names, so a killed run leaves nothing, and their
space is free as soon as nobody holds what lies in them.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, cast, overload

import numpy as np

from corp_onnx.errors import OutputError
from corp_onnx.staging import visible_folder

LARGE_BYTES = 2**20
"""An array from which on it is laid aside."""

CHUNK_BYTES = 2**28
"""Of a file that arrays are laid aside in, one behind the other."""

ALIGNED = 64
"""Arrays in it begin at multiples of this."""


@dataclass(slots=True, eq=False)
class Shelf:
    """Room for arrays.

    Attributes:
        limit: bytes in memory, of all rows together; None is no limit.
        folder: where the files lie; None is the system's folder for temporary files.
        n_bytes: in memory now.
        n_written: bytes that went to files so far.
    """

    limit: int | None = None
    folder: Path | None = None
    n_bytes: int = 0
    n_written: int = 0
    _chunk: _Chunk | None = None
    _lock: Lock = field(default_factory=Lock)

    def row(self, arrays: Iterable[np.ndarray] = ()) -> Row:
        """A row of arrays, which are taken one at a time."""
        row = Row(self)
        for array in arrays:
            row.put(array)
        return row

    def keep(self, batches: Iterable[tuple[Mapping[str, np.ndarray], int]]) -> tuple[tuple[Feeds, int], ...]:
        """Feeds with their number of images; each reads like a dict, an array at a time."""
        row = Row(self)
        return tuple(
            (Feeds({name: row.put(array) for name, array in feeds.items()}), n_real) for feeds, n_real in batches
        )

    def aside(self, array: np.ndarray) -> np.ndarray:
        """The array, in the same layout; a large one read-only in a file that is mapped, where there is a limit.

        Raises:
            OutputError: the disk is full.
        """
        if self.limit is None or array.nbytes < LARGE_BYTES:
            return array
        turned = array.flags.f_contiguous and not array.flags.c_contiguous
        lying = np.ascontiguousarray(array.T if turned else array)
        with self._lock:
            with _writing_to(self.folder, lying.nbytes):
                if self._chunk is None or not self._chunk.has_room(lying.nbytes):
                    self._chunk = _Chunk(self.folder, max(CHUNK_BYTES, lying.nbytes))
                laid = self._chunk.lay(lying)
            self.n_written += lying.nbytes
        return laid.T if turned else laid


class _Chunk:
    """A file that is mapped, with room for arrays one behind the other, which hold the map."""

    def __init__(self, folder: Path | None, n_bytes: int) -> None:
        self._file, self._free, self._n_bytes = _open_file(folder), 0, n_bytes
        self._file.truncate(n_bytes)
        self._pages = mmap.mmap(self._file.fileno(), n_bytes, access=mmap.ACCESS_READ)

    def has_room(self, n_bytes: int) -> bool:
        """Whether so much fits in."""
        return self._free + n_bytes <= self._n_bytes

    def lay(self, array: np.ndarray) -> np.ndarray:
        """The array where it lies from now on; it is written and not only mapped, so that a full disk is an error."""
        start = _write(self._file, array, self._free)
        self._free = -(-(start + array.nbytes) // ALIGNED) * ALIGNED
        return np.frombuffer(self._pages, array.dtype, array.size, start).reshape(array.shape)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


def own_memory(array: np.ndarray) -> np.ndarray:
    """The array, as a copy unless its memory is NumPy's and all its own: what ONNX Runtime gives holds all of its
    session's."""
    whole = array if array.base is None else array.base
    is_own = isinstance(whole, np.ndarray) and whole.flags.owndata and whole.nbytes == array.nbytes
    return array if is_own else array.copy()


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or will be."""
    there = next(above for above in (folder.absolute(), *folder.absolute().parents) if above.is_dir())
    return shutil.disk_usage(there).free


@dataclass(slots=True, eq=False)
class _Store:
    """What the arrays of a row take, given back with the last of them."""

    shelf: Shelf
    n_bytes: int = 0
    file: FileIO | None = None
    lock: Lock = field(default_factory=Lock)  # one place in the file for all threads

    def take(self, n_bytes: int) -> bool:
        """Whether there is room in memory for so much; it is taken."""
        limit = self.shelf.limit
        if limit is not None and self.shelf.n_bytes + n_bytes > limit:
            return False
        self.n_bytes += n_bytes
        self.shelf.n_bytes += n_bytes
        return True

    def write(self, array: np.ndarray) -> int:
        """Where the array begins in the file."""
        with _writing_to(self.shelf.folder, array.nbytes):
            if self.file is None:
                self.file = _open_file(self.shelf.folder)
            start = _write(self.file, array)
        self.shelf.n_written += array.nbytes
        return start

    def read(self, start: int, into: np.ndarray) -> np.ndarray:
        """The array, filled."""
        assert self.file is not None
        bytes_left = _as_bytes(into)
        with self.lock:
            self.file.seek(start)
            while len(bytes_left):
                n = self.file.readinto(bytes_left)
                if not n:
                    place = _name_folder(self.shelf.folder)
                    raise OutputError(f"{place}: an intermediate result ends early; check that disk and run again.")
                bytes_left = bytes_left[n:]
        return into

    def __del__(self) -> None:
        self.shelf.n_bytes -= self.n_bytes
        if self.file is not None:
            self.file.close()


@contextmanager
def _writing_to(folder: Path | None, n_bytes: int) -> Iterator[None]:
    """What the system says of a file there, as a person wants to hear it.

    Args:
        n_bytes: that are to be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{_name_folder(folder)}: can not keep intermediate results there ({error.strerror}): free "
            f"{(n_bytes >> 20) + 1} MiB or more, or allow more memory with --memory."
        ) from error


def _open_file(folder: Path | None) -> FileIO:
    return cast(FileIO, tempfile.TemporaryFile(buffering=0, dir=folder))


def _write(file: FileIO, array: np.ndarray, start: int | None = None) -> int:
    """Where the array begins: at the end of the file, or where it is to."""
    start, bytes_left = file.seek(0, os.SEEK_END) if start is None else file.seek(start), _as_bytes(array)
    while len(bytes_left):
        bytes_left = bytes_left[file.write(bytes_left) :]
    return start


def _name_folder(folder: Path | None) -> str:
    """As a person knows it."""
    return str(visible_folder((folder or Path(tempfile.gettempdir())) / "file"))


def _as_bytes(array: np.ndarray) -> memoryview:
    return memoryview(cast(Any, array.reshape(-1).view(np.uint8)))


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """The place of one array: itself, or where it begins in a file."""

    store: _Store
    array: np.ndarray | None
    start: int = 0
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))

    def read(self) -> np.ndarray:
        """The array, which is not to be changed."""
        if self.array is not None:
            return self.array
        return self.store.read(self.start, np.empty(self.shape, self.dtype))


class Row(Sequence[np.ndarray]):
    """Arrays in a row; what it took is given back when nobody holds it any longer."""

    def __init__(self, shelf: Shelf) -> None:
        self._store = _Store(shelf)
        self._slots: list[Slot] = []

    def put(self, array: np.ndarray) -> Slot:
        """Add an array, whose memory is to be its own (`own_memory`).

        Raises:
            OutputError: it has to go to a file, and the disk is full.
        """
        if self._store.take(array.nbytes):
            slot = Slot(self._store, own_memory(array))
        else:
            array = np.ascontiguousarray(array)
            slot = Slot(self._store, None, self._store.write(array), array.shape, array.dtype)
        self._slots.append(slot)
        return slot

    def __len__(self) -> int:
        return len(self._slots)

    @overload
    def __getitem__(self, position: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, position: slice) -> list[np.ndarray]: ...
    def __getitem__(self, position: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(position, slice):
            return [slot.read() for slot in self._slots[position]]
        return self._slots[position].read()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (slot.read() for slot in self._slots)


@dataclass(frozen=True, slots=True, eq=False)
class Feeds(Mapping[str, np.ndarray]):
    """Arrays by name, read when they are asked for."""

    slots: Mapping[str, Slot]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.slots[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)
