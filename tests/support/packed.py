"""Folders of images packed into shards: Parquet as the datasets of Hugging Face keep it, tar as WebDataset does."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_files(folder: Path) -> list[tuple[str, bytes]]:
    return [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]


def cut(items: Sequence[Any], n: int) -> list[Sequence[Any]]:
    """In n parts, one behind the other."""
    size = -(-len(items) // n)
    return [items[i : i + size] for i in range(0, len(items), size)]


def pack_parquet(
    files: Sequence[tuple[str, bytes | None]], to: Path, *, shards: int = 2, group: int = 3, plain: bool = False,
    labels: Sequence[int] | None = None,
) -> Path:  # fmt: skip
    """`to/train-00000.parquet`, ...; a struct of bytes and path, or plain: binary."""
    to.mkdir(parents=True, exist_ok=True)
    rows = list(zip(files, labels or [0] * len(files), strict=True))
    for i, part in enumerate(cut(rows, shards)):
        cells = [content if plain else {"bytes": content, "path": name} for (name, content), _ in part]
        kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(cells, kind)} | ({"label": [label for _, label in part]} if labels else {})
        pq.write_table(pa.table(columns), to / f"train-{i:05d}.parquet", row_group_size=group)
    return to


def pack_tar(
    files: Sequence[tuple[str, bytes]], to: Path, *, shards: int = 2, labels: Sequence[int] | None = None
) -> Path:
    """`to/shard-000.tar`, ..., members in the order of the files, and `.cls` behind each where there are labels."""
    to.mkdir(parents=True, exist_ok=True)
    rows = list(zip(files, labels or [None] * len(files), strict=True))
    for i, part in enumerate(cut(rows, shards)):
        with tarfile.open(to / f"shard-{i:03d}.tar", "w") as tar:
            for (name, content), label in part:
                add_member(tar, name, content)
                if label is not None:
                    add_member(tar, str(Path(name).with_suffix(".cls")), str(label).encode())
    return to


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
