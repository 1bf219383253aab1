"""Images in Parquet files (extra `shards`): a column of encoded images, as the datasets of Hugging Face keep them.

Enters places; leaves a `ParquetShards`. The column is a struct with a field `bytes`, or binary. Row counts stand in
the footers, so a draw opens no image. Rows are read a few at a time from the row groups that hold them: to reach one
row, what lies before it in its row group is read as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from corp_onnx.errors import ImageError, MissingExtraError
from corp_onnx.images.labels import ClassNames, Truth
from corp_onnx.images.places import name_places, open_place, read_reason
from corp_onnx.images.source import FileShards, ShardNames

READ_ROWS = 16
"""Rows that are in memory at a time."""

READ_BYTES = 2**20
"""Of a file that is read ahead; without it pyarrow reads a whole column of a row group, hundreds of megabytes."""

N_FOOTERS = 8
"""Footers that are read side by side: behind a URL each takes its time."""

NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
"""Of the column, where several could be it."""

LABELS = ("label", "labels", "cls", "class")


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """One Parquet file.

    Attributes:
        title: what its images are called by.
        group_ends: rows of the file up to the end of every row group.
        column: of the images, as pyarrow selects it.
        label: the column of class indices, or empty.
        classes: what they mean, where the file says so as `datasets` does.
    """

    place: str
    title: str
    group_ends: Int[np.ndarray, " g"]
    column: str
    label: str
    classes: tuple[str, ...]

    @property
    def n_rows(self) -> int:
        """Images in it."""
        return int(self.group_ends[-1]) if len(self.group_ends) else 0


@dataclass(frozen=True, slots=True, eq=False)
class ParquetShards(FileShards[Shard]):
    """Parquet files one behind the other."""

    def name(self, row: int) -> str:
        """`train-00000.parquet[12]`."""
        shard, inside = self.locate(row)
        return f"{shard.title}[{inside}]"

    def read_rows(self, rows: Int[np.ndarray, " n"]) -> Iterator[bytes]:
        """As `ShardSource`."""
        for shard, inside in self._by_shard(rows):
            yield from (_read_image(value) for value in _read_column(shard, shard.column, inside))

    def read_truth(self, names: Sequence[str]) -> Truth | None:
        """The class indices of the images, where every shard has them."""
        if not all(shard.label for shard in self.shards) or not isinstance(names, ShardNames):
            return None
        values = [v for shard, inside in self._by_shard(names.rows) for v in _read_column(shard, shard.label, inside)]
        if any(value is None or value < 0 for value in values):  # a hidden test set has -1
            return None
        first = self.shards[0]
        source = Path(f"{first.title}:{first.label}")
        classes = ClassNames(tuple((name,) for name in first.classes), source, "") if first.classes else None
        return Truth(tuple(map(str, values)), tuple(names), source, classes)

    def _by_shard(self, rows: Int[np.ndarray, " n"]) -> Iterator[tuple[Shard, Int[np.ndarray, " k"]]]:
        """Rows that follow each other in one shard, and where they lie in it."""
        places = np.searchsorted(self.ends, rows, side="right")
        for cut in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(places)) + 1):
            if len(cut):
                at = int(places[cut[0]])
                yield self.shards[at], rows[cut] - self.start(at)


def open_parquet(places: Sequence[str]) -> tuple[ParquetShards, dict[str, str]]:
    """(the shards that can be read, title -> reason for the others); footers alone are read.

    Raises:
        ImageError: no shard can be read, or one has no column of images.
        MissingExtraError: pyarrow is not installed.
    """
    _import_parquet(places[0])
    titles = name_places(places)
    with ThreadPoolExecutor(min(N_FOOTERS, len(places)), thread_name_prefix="corp-onnx-footer") as pool:
        found = list(pool.map(_read_footer, places, titles))
    shards = tuple(shard for shard in found if isinstance(shard, Shard) and shard.n_rows)
    bad = {title: reason for title, reason in zip(titles, found, strict=True) if isinstance(reason, str)}
    if not shards:
        raise ImageError(f"{places[0]}: {next(iter(bad.values()), 'holds no row')}; expected Parquet files of images.")
    return ParquetShards(shards, np.cumsum([shard.n_rows for shard in shards])), bad


def _read_footer(place: str, title: str) -> Shard | str:
    """What is in a file, or why it can not be read."""
    parquet = _import_parquet(place)
    try:
        with open_place(place) as stream, parquet.ParquetFile(stream) as file:
            about, schema = file.metadata, file.schema_arrow
    except MissingExtraError:
        raise
    except Exception as error:  # pyarrow's, and those of every file system
        return read_reason(error)
    column, label = _find_image(place, schema), _find_label(schema)
    rows = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
    return Shard(place, title, np.cumsum(rows, dtype=np.int64), column, label, _find_classes(schema, label))


def _find_image(place: str, schema: Any) -> str:
    """The column of images: by its type, and by its name where there are several."""
    found = {field.name: path for field in schema if (path := _image_path(field))}
    named = [name for name in NAMES if name in found] or list(found)
    if not named or (named[0] not in NAMES and len(named) > 1):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)[:200]
        raise ImageError(
            f"{place}: expected one column of encoded images, called image: binary, or a struct with a field bytes; "
            f"found {columns}."
        )
    return found[named[0]]


def _image_path(field: Any) -> str:
    """How pyarrow selects a column, if it can hold encoded images."""
    if _is_binary(field.type):
        return field.name
    with suppress(AttributeError, KeyError, TypeError):  # no struct, or none with bytes
        index = field.type.get_field_index("bytes")
        if index >= 0 and _is_binary(field.type.field(index).type):
            return f"{field.name}.bytes"
    return ""


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _find_label(schema: Any) -> str:
    return next(
        (n for n in LABELS if n in schema.names and str(schema.field(n).type).lstrip("u").startswith("int")), ""
    )


def _find_classes(schema: Any, label: str) -> tuple[str, ...]:
    """The names of a ClassLabel of `datasets`; none where there are none, or they can not be read."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    return ()


def _read_image(value: Any) -> bytes:
    """The bytes in a cell."""
    cell = value.get("bytes") if isinstance(value, dict) else value
    return b"" if cell is None else cell


def _read_column(shard: Shard, column: str, rows: Int[np.ndarray, " n"]) -> Iterator[Any]:
    """The values of a column at some rows, in their order."""
    parquet = _import_parquet(shard.place)
    try:
        with open_place(shard.place) as stream, parquet.ParquetFile(stream, buffer_size=READ_BYTES) as file:
            for group, inside in _runs(shard, rows):
                yield from _read_run(file, column, group, inside)
    except (MissingExtraError, ImageError, GeneratorExit):
        raise
    except Exception as error:  # as in _read_footer
        raise ImageError(f"{shard.place}: can not be read ({read_reason(error)}); replace or remove it.") from error


def _runs(shard: Shard, rows: Int[np.ndarray, " n"]) -> Iterator[tuple[int, list[int]]]:
    """(row group, ascending rows in it), one behind the other."""
    groups = np.searchsorted(shard.group_ends, rows, side="right")
    turns = np.cumsum(np.diff(rows, prepend=rows[:1]) < 0)  # where rows do not ascend, a group is read anew
    for (_, group), run in groupby(range(len(rows)), key=lambda i: (int(turns[i]), int(groups[i]))):
        start = int(shard.group_ends[group - 1]) if group else 0
        yield group, [int(rows[i]) - start for i in run]


def _read_run(file: Any, column: str, group: int, rows: Sequence[int]) -> Iterator[Any]:
    """Ascending rows of one row group."""
    place, start = 0, 0
    for batch in file.iter_batches(batch_size=READ_ROWS, row_groups=[group], columns=[column], use_threads=False):
        while place < len(rows) and rows[place] < start + len(batch):
            yield batch.column(0)[rows[place] - start].as_py()
            place += 1
        start += len(batch)
        if place == len(rows):
            return
    raise ImageError(f"row {rows[place]} of row group {group} is missing")


def _import_parquet(place: str) -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(
            f"{place}: to read Parquet takes pyarrow: pip install 'corp-onnx[shards]', or give a folder of images."
        ) from error
