"""A calibration cut into portions of the images, which know nothing of each other: for several machines, or one.

Enters images, and a portion of them with what there is to do; leaves the moments of the portion, as a value and as a
file that is taken up again, and the moments of all portions together, added in their order whoever was done first. So
they are, to the bit, those of one process that goes through the same portions. In one pass over all images the float32
sums inside of a unit are cut at other places (moments/sums.py): an entry of a Gram then differs by less than twice
2.4e-4 of sqrt(G_ii G_jj), by less than 1e-6 of the largest entry in the test.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.errors import ImageError, InputError, ModelError
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.external import list_locations
from corp_onnx.graph.model import Model, hash_file
from corp_onnx.images import Images, ImageSet, Skipped
from corp_onnx.moments import Moments, flatten_moments, gather_moments, merge_moments
from corp_onnx.run.probe import probe_graph
from corp_onnx.staging import staged_files
from corp_onnx.tensor_file import read_tensors, write_tensors
from corp_onnx.units import Unit, list_units

SCHEMA = "corp_onnx.portion/1"

MAX_SENT = 2**29
"""Bytes of a model that is handed to workers; a larger one they read where it lies."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What is done with every portion.

    Attributes:
        path: of the model, and `sha256` of that file.
        content: its bytes, for who can not read it there; None where it is too large, or its weights lie beside it.
        units: their keys as text, and `kinds`, their kinds.
        room: bytes that running sums of a worker may take; as of `collect_moments`.
    """

    path: Path
    sha256: str
    content: np.ndarray | None
    units: tuple[str, ...]
    kinds: tuple[str, ...]
    batch_size: int
    provider: str
    room: int | None = None

    def identify(self, images: Images) -> str:
        """What a finished portion is of, apart from the content of its images."""
        names = tuple(images.names) if isinstance(images, ImageSet) else tuple(map(int, images.rows))
        recipe = images.recipe_json() if isinstance(images, ImageSet) else ""
        return hashlib.sha256(json.dumps([self.sha256, self.units, recipe, names]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Collected:
    """A portion that is done.

    Attributes:
        moments: None where no image of it can be read, or where those that were kept are still right.
        images: hash of its images.
        skipped: images that gave none.
    """

    moments: Moments | None
    images: str
    skipped: tuple[Skipped, ...] = ()
    is_known: bool = False


def describe_work(model: Model, units: Sequence[Unit], batch_size: int, provider: str, room: int | None = None) -> Work:
    """What there is to do for some units of a model."""
    path = model.path.absolute()
    is_sent = not list_locations(model.proto) and path.stat().st_size <= MAX_SENT
    content = np.fromfile(path, dtype=np.uint8) if is_sent else None
    kinds = tuple(dict.fromkeys(unit.key.kind for unit in units))
    return Work(path, model.sha256, content, tuple(str(u.key) for u in units), kinds, batch_size, provider, room)


def cut_images(images: Images, size: int) -> list[Images]:
    """Images in portions of `size`, one behind the other."""
    n = len(images.names) if isinstance(images, ImageSet) else images.n_images
    return [images.select(range(start, min(start + size, n))) for start in range(0, n, size)]


def collect_portion(work: Work, images: Images, known: str | None = None) -> Collected:
    """The moments of a portion.

    Args:
        known: hash of the images of which they are kept already; if they are the same, nothing else is done.

    Raises:
        ImageError: the images are not where they should be.
        ModelError: the model is not.
        NonFiniteError: as `collect_moments`.
    """
    if isinstance(images, ImageSet):
        images.source.require_readable()
    if known is not None and images.data_hash() == known:
        return Collected(None, known, is_known=True)
    graph = _open_graph(_find_model(work), work.sha256)
    units = [u for u in list_units(find_blocks(graph), work.kinds, skipped=True) if str(u.key) in work.units]
    if len(units) != len(work.units):
        raise ModelError(
            f"{work.path}: has {len(units)} of {len(work.units)} units here; run the same corp-onnx everywhere."
        )
    try:
        running = {"batch_size": work.batch_size, "provider": work.provider, "room": work.room}
        moments = collect_moments(graph, units, images, **running)
    except ImageError:
        if images.n_images:
            raise
        moments = None
    return Collected(moments, images.data_hash(), images.skipped)


def keep_portion(collected: Collected, identity: str, path: Path) -> None:
    """Write a portion that is done, whole or not at all.

    Raises:
        OutputError: the place can not be written, or the disk is full.
    """
    entries = () if collected.moments is None else collected.moments.entries
    about = {
        "schema": SCHEMA,
        "identity": identity,
        "images": collected.images,
        "units": json.dumps([key for key, _ in entries]),
        "skipped": json.dumps([(skip.name, skip.reason) for skip in collected.skipped]),
    }
    with staged_files({"--ray": path}, force=True) as (staged,):
        write_tensors(staged, flatten_moments(entries), about, path)


def find_portion(path: Path, identity: str) -> Collected | None:
    """What `keep_portion` wrote of the same, with its arrays mapped; None where there is none, or it is damaged."""
    try:
        file = read_tensors(path)
        if file.metadata["schema"] != SCHEMA or file.metadata["identity"] != identity:
            return None
        keys = json.loads(file.metadata["units"])
        found = gather_moments(file.arrays)
        moments = Moments(tuple((key, found[key]) for key in keys)) if keys else None
        skipped = tuple(Skipped(name, reason) for name, reason in json.loads(file.metadata["skipped"]))
        return Collected(moments, file.metadata["images"], skipped)
    except (InputError, KeyError, ValueError):
        return None


def merge_portions(keys: Sequence[str], portions: Sequence[Moments]) -> Moments:
    """The moments of all portions, added in their order, unit by unit.

    Raises:
        ImageError: there is none.
    """
    if not portions:
        raise ImageError("none of the images can be read; give others.")
    merge: Any = merge_moments  # of one kind, whichever
    return Moments(tuple((key, reduce(merge, [portion[key] for portion in portions])) for key in keys))


def _find_model(work: Work) -> Path:
    """Where the model lies on this machine; in a file of its own where its path leads nowhere.

    Raises:
        ModelError: there it is another, or it is not and was not sent.
    """
    if work.path.is_file():
        if hash_file(work.path) == work.sha256:
            return work.path
        if work.content is None:
            raise ModelError(f"{work.path}: is another file here than where the calibration was started; copy it here.")
    if work.content is None:
        raise ModelError(
            f"{work.path}: can not be read here, and is too large to be sent or has its weights in other files; put it "
            "where every worker of the cluster reads it."
        )
    copy = Path(tempfile.gettempdir()) / f"corp-onnx-{os.getpid()}-{work.sha256[:16]}.onnx"
    if not copy.exists():
        copy.write_bytes(work.content.tobytes())
    return copy


@lru_cache(maxsize=1)
def _open_graph(path: Path, sha256: str) -> Graph:
    """The probed graph, kept for the next portion of the same process."""
    assert sha256
    return probe_graph(load_model(path))
