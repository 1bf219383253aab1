"""Moments over a Ray cluster (extra `ray`): its workers take portions of the images, which are added in their order.

Enters what `collect_moments` takes and the address of a cluster; leaves the same moments (portions.py says how exactly
the same). A task whose worker dies is given to another; what is done lies in a folder, from which a driver that died
goes on. Ray is only a way to run `collect_portion` elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx.calibrate.portions import (
    Collected,
    Work,
    collect_portion,
    cut_images,
    describe_work,
    find_portion,
    keep_portion,
    merge_portions,
)
from corp_onnx.errors import CorpOnnxError, ImageError, MissingExtraError, ModelError, OptionError
from corp_onnx.graph import Graph
from corp_onnx.images import Images, ImageSet
from corp_onnx.moments import Moments
from corp_onnx.progress import Count
from corp_onnx.staging import staged_files, write_text
from corp_onnx.threads import CORES, few_blas_threads
from corp_onnx.units import Unit

LOCAL = "local"
"""The address of a cluster of this machine's cores, which lasts as long as the run."""

A_WORKER = 3
"""Portions for each worker: few, since the moments of each are carried about, and enough that none waits for long."""

MIN_PORTION = 8
"""Images."""

MAX_RETRIES = 3
"""Workers that a portion may lose before the run ends: one that needs too much memory kills every one of them."""

WAITING = 2
"""Portions that are under way or wait, for each worker."""


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A portion, and where it is kept."""

    images: Images
    identity: str
    path: Path


def collect_on_cluster(
    graph: Graph,
    units: Sequence[Unit],
    images: Images,
    *,
    address: str,
    kept_in: Path,
    batch_size: int = 8,
    provider: str = "cpu",
    room: int | None = None,
    cores: int = 1,
    size: int | None = None,
    progress: Count | None = None,
) -> Moments:
    """The moments of every unit, as `collect_moments` has them, from the workers of a Ray cluster.

    Args:
        graph: of the dense model; its file is read by the workers, or sent to them up to 512 MiB.
        images: where every worker reads them; arrays are sent.
        address: `local`, `auto`, HOST:PORT or ray://HOST:PORT. A connection that is open already is used.
        kept_in: a folder for portions that are done: the moments of each, 8 n^2 bytes for a unit of n channels. A run
            that died goes on from it with whatever fits; remove it when the moments are safe.
        room: as of `collect_moments`, of a worker; `cores` as well.
        size: images of a portion; None is a third of a worker's share. What `kept_in` was begun with stays.
        progress: counts images.

    Raises:
        MissingExtraError: Ray is not installed here, or corp-onnx not on a worker.
        OptionError: no cluster at this address, or none that has so many cores.
        ImageError, ModelError: a worker can not read them.
        CorpOnnxError: a portion lost all workers that it was given to.
        NonFiniteError: as of `collect_moments`.
    """
    ray = _import_ray()
    work = describe_work(graph.model, units, batch_size, provider, room)
    with _connect(ray, address):
        n_workers = _count_workers(ray, address, cores)
        size = _settle_size(kept_in, work, images, n_workers, size)
        places = [_find_place(part, work, kept_in) for part in cut_images(images, size)]
        for place in _run_all(ray, work, places, cores, WAITING * n_workers, address):
            found = find_portion(place.path, place.identity)
            if found is not None and isinstance(images, ImageSet):
                images.know_skipped(found.skipped)
            if progress:
                progress(_count_sound(place.images, found))
    return merge_portions(work.units, list(_take_up(places)))


def _take_up(places: Sequence[_Place]) -> Iterator[Moments]:
    """What is kept, in the order of the images."""
    for place in places:
        found = find_portion(place.path, place.identity)
        if found is not None and found.moments is not None:
            yield found.moments


def _run_all(
    ray: Any, work: Work, places: Sequence[_Place], cores: int, n_waiting: int, address: str
) -> Iterator[_Place]:
    """Every portion as it is done and kept, in whatever order."""
    content = None if work.content is None else ray.put(work.content)
    task = ray.remote(num_cpus=cores, max_retries=MAX_RETRIES)(_run_portion)
    todo = list(reversed(places))
    under_way: dict[Any, _Place] = {}
    light = replace(work, content=None)
    while todo or under_way:
        while todo and len(under_way) < n_waiting:
            place = todo.pop()
            known = find_portion(place.path, place.identity)
            reference = task.remote(
                light, content, place.images.alone(), None if known is None else known.images, cores
            )
            under_way[reference] = place
        (done, *_), _ = ray.wait(list(under_way), num_returns=1)
        place = under_way.pop(done)
        collected = _fetch(ray, done, place, address)
        if not collected.is_known:
            keep_portion(collected, place.identity, place.path)
        yield place


def _run_portion(work: Work, content: np.ndarray | None, images: Images, known: str | None, cores: int) -> Any:
    """On a worker: a portion, or an error as a value, so that it arrives as it was raised."""
    os.environ[CORES] = str(cores)
    work = replace(work, content=content)
    try:
        with few_blas_threads():
            return collect_portion(work, images, known)
    except (ImageError, ModelError) as error:
        return type(error)(f"on worker {socket.gethostname()}: {error}")
    except CorpOnnxError as error:
        return error


def _fetch(ray: Any, reference: Any, place: _Place, address: str) -> Collected:
    """What a task gave."""
    names = place.images.names if isinstance(place.images, ImageSet) else [f"row {row}" for row in place.images.rows]
    try:
        found = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):
            raise MissingExtraError(
                f"--ray {address}: a worker can not import what it needs ({error.cause}); install the same corp-onnx "
                "on every node of the cluster: pip install 'corp-onnx[cpu,ray]'."
            ) from error
        raise
    except ray.exceptions.RayError as error:
        text = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise CorpOnnxError(
            f"--ray {address}: the images {names[0]} to {names[-1]} lost {MAX_RETRIES + 1} workers one after the other "
            f"({text}); give workers more memory, or find out what ends them. What is done is kept in "
            f"{place.path.parent}, and the same command goes on from it."
        ) from error
    if isinstance(found, CorpOnnxError):
        raise found
    return found


def _count_sound(images: Images, found: Collected | None) -> int:
    if not isinstance(images, ImageSet) or found is None:
        return images.n_images
    bad = {skip.name for skip in found.skipped}
    return sum(name not in bad for name in images.names)


def _find_place(images: Images, work: Work, folder: Path) -> _Place:
    identity = work.identify(images)
    return _Place(images, identity, folder / f"portion-{identity[:24]}.safetensors")


def _settle_size(folder: Path, work: Work, images: Images, n_workers: int, size: int | None) -> int:
    """Images of a portion: as they were cut when the folder was begun, so that another cluster can go on from it.

    Raises:
        OptionError: fewer than one.
        OutputError: the folder can not be written.
    """
    if size is not None and size < 1:
        raise OptionError(f"a portion holds at least 1 image, found {size}.")
    n = len(images.names) if isinstance(images, ImageSet) else images.n_images
    plan = folder / f"plan-{work.identify(images)[:24]}.json"
    try:
        return int(json.loads(plan.read_text(encoding="utf-8"))["size"])
    except (OSError, ValueError, KeyError, TypeError):
        size = size or max(math.ceil(n / (A_WORKER * n_workers)), MIN_PORTION)
    with staged_files({"--ray": plan}, force=True) as (staged,):
        write_text(json.dumps({"schema": 1, "size": size}), staged, plan)
    return size


def _count_workers(ray: Any, address: str, cores: int) -> int:
    """How many workers of so many cores the cluster has now."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    found = [int(node["Resources"].get("CPU", 0)) for node in nodes]
    if sum(n // cores for n in found) < 1:
        raise OptionError(
            f"--ray {address}: no node of the cluster has {cores} core{'s' if cores > 1 else ''} for a worker; they "
            f"have {', '.join(map(str, found))}."
        )
    return sum(n // cores for n in found)


@contextmanager
def _connect(ray: Any, address: str) -> Iterator[None]:
    """A connection to the cluster, closed at the end where it was opened here."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
    os.environ.setdefault("RAY_worker_niceness", "0")  # nor do its workers wait for other programs, 15 by default
    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, and gRPC's
        text = " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
        raise OptionError(
            f"--ray {address}: no Ray cluster can be reached there ({text}); start one with `ray start --head`, or "
            f"give --ray {LOCAL}."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError(
            "--ray takes Ray: pip install 'corp-onnx[ray]' here and on every node of the cluster."
        ) from error
