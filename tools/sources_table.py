"""Images in shards beside a folder of the same files, and a local Ray cluster beside one process; in turns.

    .venv-ray/bin/python tools/sources_table.py deit_tiny.onnx --calib photos/ [--rounds 5] [--images 256] [--no-ray]

Reading is one pass over all images, opened anew, with decoding and cropping. With `--list N`, how long it takes to list
and to draw from a folder of N links to one image.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.cluster import collect_on_cluster
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.graph import load_model
from corp_onnx.images import open_images
from corp_onnx.run.probe import probe_graph
from corp_onnx.threads import few_blas_threads
from corp_onnx.units import list_units

SHARD, GROUP = 128, 100
"""Images of a shard, and of a row group of it: what `datasets` writes."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--list", type=int, default=0)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--no-reading", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.list:
            list_many(Path(folder), given.list)
        if not given.no_reading:
            read_sources(given.calib, Path(folder), given.rounds)
        if not given.no_ray:
            use_cluster(given.model, given.calib, given.images, Path(folder), given.rounds)


def read_sources(photos: Path, folder: Path, rounds: int) -> None:
    """A pass over each kind of source."""
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    pack(files, folder)
    places = {"folder": photos, "Parquet": folder / "parquet", "tar": folder / "tar"}
    times = take_turns({name: lambda place=place: read_all(place) for name, place in places.items()}, rounds)
    show(f"one pass over {len(files)} photographs", times, "folder")


def read_all(place: Path) -> None:
    """Open and decode everything."""
    for _ in open_images(place).batches(8):
        pass


def pack(files: list[Path], folder: Path) -> None:
    """The files in Parquet and in tar shards."""
    for kind in ("parquet", "tar"):
        (folder / kind).mkdir()
    for i in range(0, len(files), SHARD):
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files[i : i + SHARD]]
        column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"image": column}), folder / "parquet" / f"{i:06d}.parquet", row_group_size=GROUP)
        with tarfile.open(folder / "tar" / f"{i:06d}.tar", "w") as tar:
            for cell in cells:
                member = tarfile.TarInfo(cell["path"])
                member.size = len(cell["bytes"])
                tar.addfile(member, io.BytesIO(cell["bytes"]))


def use_cluster(model: Path, photos: Path, n_images: int, folder: Path, rounds: int) -> None:
    """Two workers beside one process."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    graph = probe_graph(load_model(model))
    units = list_units(find_blocks(graph), ("mlp", "qk", "vo"))
    kept = iter(folder / f"kept{i}" for i in range(1000))

    def alone() -> None:
        with few_blas_threads():
            collect_moments(graph, units, open_images(photos, limit=n_images))

    def together() -> None:
        collect_on_cluster(graph, units, open_images(photos, limit=n_images), address="local", kept_in=next(kept))

    starts: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        starts.append(time.perf_counter() - started)
        if len(starts) < 2:
            ray.shutdown()
    print(f"a local cluster starts in {starts[-1]:.1f} s (the first time {starts[0]:.1f} s)")
    together()  # workers start, and each imports and probes
    times = take_turns({"one process": alone, "two workers": together}, rounds, warm=False)
    show(f"moments of {n_images} photographs", times, "one process")
    ray.shutdown()


def list_many(folder: Path, n: int) -> None:
    """A folder of n links, in 200 folders."""
    seed = folder / "seed.ppm"
    seed.write_bytes(b"P6 1 1 255\nabc")
    for i in range(n):
        place = folder / "many" / f"{i % 200:03d}"
        if i < 200:
            place.mkdir(parents=True)
        if i % 50_000 == 0:  # a file has so many links at most
            seed = folder / f"seed{i}.ppm"
            seed.write_bytes(b"P6 1 1 255\nabc")
        os.link(seed, place / f"{i}.ppm")
    for text, limit in ((f"512 of {n} files drawn", 512), (f"all of {n} files", None)):
        started = time.perf_counter()
        open_images(folder / "many", limit=limit)
        print(f"{text}: open after {time.perf_counter() - started:.2f} s")


def take_turns(runs: Mapping[str, Callable[[], None]], rounds: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of every run in every round; where there is need to warm up, a first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(not warm, rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - started)
                print(f"{name}: {times[name][-1]:.2f} s", file=sys.stderr)
    return times


def show(what: str, times: Mapping[str, list[float]], base: str) -> None:
    """A table in Markdown."""
    print(f"\n| {what} | seconds | least | most | over {base} (median of rounds) |\n|---|---|---|---|---|")
    for name, own in times.items():
        ratio = statistics.median(t / b for t, b in zip(own, times[base], strict=True))
        print(f"| {name} | {statistics.median(own):.2f} | {min(own):.2f} | {max(own):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
