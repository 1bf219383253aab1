"""Data that is preprocessed already: a .npy or .npz file -> batches.

Enters a .npy file (one array, streamed from disk) or an .npz file with one array for each input of the model, such as
`input_ids` and `attention_mask` of a text encoder; leaves batches that hold the arrays under their own names. The
first axis counts samples. An array called `labels` in an .npz, [n] integers, is the class index of every sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import ImageError
from corp_onnx.images.batch import PIXELS, Batch, Skipped, check_batch_size

LABELS = "labels"
NPY_START = b"\x93NUMPY"
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # with and without members
MAX_REASON = 160
"""Characters of a reason."""

HASH_ROWS = 64
"""Samples hashed at a time, so that a large .npy is never in memory as a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class ArraySet:
    """Samples of preprocessed arrays.

    Attributes:
        path: the file.
        arrays: name -> array, all equally long in their first axis.
        rows: which samples of the file belong to this set.
        all_labels: the class index of every sample of the file, or None.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    rows: Int[np.ndarray, " n"]
    all_labels: Int[np.ndarray, " n_all"] | None = None

    @property
    def n_images(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Nothing: an array has no unreadable samples."""
        return ()

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The samples in order, `batch_size` at a time; the last batch may be shorter.

        Raises:
            OptionError: a batch size below 1.
            ImageError: an array holds NaN or Inf.
        """
        check_batch_size(batch_size)
        for start in range(0, len(self.rows), batch_size):
            rows = self.rows[start : start + batch_size]
            arrays = {name: array[rows] for name, array in self.arrays.items()}
            for name, array in arrays.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ImageError(
                        f"{self.path}: array '{name}' holds NaN or Inf between rows {rows[0]} and {rows[-1]}."
                    )
            labels = None if self.all_labels is None else self.all_labels[rows].astype(np.int64)
            yield Batch(arrays, tuple(f"{self.path.name}[{row}]" for row in rows), labels)

    def select(self, positions: Sequence[int] | Int[np.ndarray, " n"]) -> ArraySet:
        """The samples at these positions of this set."""
        return replace(self, rows=self.rows[np.asarray(positions, dtype=np.int64)])

    def alone(self) -> ArraySet:
        """The same samples for another process, without the others of the file."""
        arrays = {name: np.asarray(array[self.rows]) for name, array in self.arrays.items()}
        labels = None if self.all_labels is None else self.all_labels[self.rows]
        return ArraySet(self.path, arrays, np.arange(len(self.rows)), labels)

    def data_hash(self) -> str:
        """sha256 over names, types, shapes and contents of the samples in this set, and their labels."""
        digest = hashlib.sha256()
        parts = dict(self.arrays) | ({} if self.all_labels is None else {LABELS: self.all_labels})
        for name in sorted(parts):
            digest.update(f"{name} {parts[name].dtype.str} {(len(self.rows), *parts[name].shape[1:])}\n".encode())
            for start in range(0, len(self.rows), HASH_ROWS):
                digest.update(np.ascontiguousarray(parts[name][self.rows[start : start + HASH_ROWS]]).tobytes())
        return digest.hexdigest()


def is_array_file(path: Path) -> bool:
    """Whether a file starts like a .npy or an .npz, whatever its name."""
    with path.open("rb") as stream:
        start = stream.read(len(NPY_START))
    return start == NPY_START or start.startswith(ZIP_STARTS)


def make_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> ArraySet:
    """All samples of arrays by name, of which one may be called `labels`.

    Args:
        path: the file that they come from, or what errors call them.

    Raises:
        ImageError: they hold no numbers or differ in length.
    """
    inputs = {name: array for name, array in arrays.items() if name != LABELS}
    labels = arrays.get(LABELS)
    _check_arrays(path, inputs, labels)
    return ArraySet(path, inputs, np.arange(len(next(iter(inputs.values())))), labels)


def label_arrays(arrays: ArraySet, labels: object) -> ArraySet:
    """The same samples with a class index for each, from outside.

    Args:
        labels: whole numbers, one a sample; None and 'folders' leave the samples their own.

    Raises:
        ImageError: anything else, as the class names that a labels file holds: arrays lie in no folders.
    """
    if labels is None or (isinstance(labels, str) and labels == "folders"):
        return arrays
    given = np.asarray(labels) if isinstance(labels, (np.ndarray, list, tuple)) else np.empty(0)
    if given.ndim != 1 or given.dtype.kind not in "iu" or len(given) != len(arrays.rows):
        found = f"{len(given)} of {given.dtype}" if given.size else str(labels)[:MAX_REASON]
        raise ImageError(
            f"{arrays.path}: labels of arrays are {len(arrays.rows)} whole numbers, one a sample, as the array "
            f"'labels' of an .npz holds them; found {found}."
        )
    n_all = len(next(iter(arrays.arrays.values())))
    every = np.zeros(n_all, dtype=np.int64)
    every[arrays.rows] = given
    return replace(arrays, all_labels=every)


def open_arrays(path: Path) -> ArraySet:
    """All samples of a .npy or .npz file; a .npy is mapped and not read.

    Raises:
        ImageError: the file can not be read, holds Python objects or no numbers, or its arrays differ in length.
    """
    try:
        with np.errstate(over="ignore"):  # a header may name more numbers than can be counted
            arrays = _read_arrays(path)
    except Exception as error:  # NumPy, its parser of headers and zipfile raise whatever a spoilt file makes them meet
        raise ImageError(f"{path}: NumPy can not read it ({_reason(error)}).") from error
    return make_arrays(path, arrays)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as stream:  # NumPy leaves a file open when it is no zip after all, so it is opened here
        if stream.read(len(NPY_START)) == NPY_START:
            return {PIXELS: np.load(path, mmap_mode="r", allow_pickle=False)}
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files}


def _reason(error: Exception) -> str:
    """What is wrong with a file, in one line; some of NumPy's texts quote its header."""
    if isinstance(error, MemoryError) and not str(error):  # so says Python's parser of brackets in brackets
        return "its header is too deep to parse, or there is no memory left"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text[:MAX_REASON].rstrip(". ") or type(error).__name__


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray], labels: np.ndarray | None) -> None:
    if not arrays:
        raise ImageError(f"{path}: no array in it; expected one for each input of the model.")
    for name, array in arrays.items():
        if array.ndim < 1 or array.dtype.kind not in "fiub":
            found = f"{str(array.dtype)[:MAX_REASON]} of shape {list(array.shape)}"
            raise ImageError(
                f"{path}: array '{name}' is {found}; expected numbers [n, ...], preprocessed as the model takes them."
            )
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ImageError(f"{path}: 'labels' is {labels.dtype} of shape {list(labels.shape)}; expected integers [n].")
    lengths = {name: len(array) for name, array in arrays.items()}
    lengths |= {} if labels is None else {LABELS: len(labels)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ImageError(f"{path}: the arrays differ in length ({found}); the first axis counts samples.")
