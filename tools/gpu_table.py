"""What pruning brings on a GPU: latency, what is fused, and what calibration costs there.

In: nothing; models of DeiT-Tiny's, DeiT-Base's and DeiT-III-Huge's shapes are made here, with random weights and the
widths that the search gave DeiT-Tiny on photographs (gpu/shapes.py). Out: a JSON record, written anew after every row,
so that a run that is broken off loses nothing; and a page of tables. Every job is a process of its own, and ends with
the run's minutes. Most telling first.

    python tools/gpu_table.py -o benchmarks/gpu.json --markdown benchmarks/gpu.md [--minutes 10]
    python tools/gpu_table.py --prepare models/             # only make the models, on a machine without a GPU
    python tools/gpu_table.py --models models/ -o ...       # with those
    python tools/gpu_table.py --page benchmarks/gpu.json --markdown benchmarks/gpu.md       # the page again

Needs corp-onnx[gpu] and CUDA's libraries (`pip install onnxruntime-gpu[cuda,cudnn]` brings them).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu.files import DENSE, FUSED, Variant, find_files, list_variants, prepare
from gpu.measures import (
    Row,
    compare_sums,
    count_kernels,
    time_calibration,
    time_graphs,
    time_models,
    time_pruning,
)
from gpu.page import write_page
from gpu.shapes import RECIPES

from corp_onnx.errors import CorpOnnxError
from corp_onnx.results import describe_environment
from corp_onnx.run.runtime import import_runtime, load_cuda

ROW = "ROW "
"""In front of a row on the stdout of a job."""

LIBRARIES = ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cufft")
"""Packages whose versions the record names where they are there."""

MAX_LOG = 600
"""Characters of what a failed job said last that its row keeps."""

EVERY = (DENSE, *RECIPES)
OWN = tuple(FUSED + name for name in (DENSE, "tensorrt 61.7%", "tensorrt 50%", "merged 50%"))
FEW = (DENSE, "generic 50%", "merged 50%", FUSED + DENSE, FUSED + "tensorrt 50%")
"""What is measured of a shape: all, those with ONNX Runtime's own attention, and of a large one a few."""


@dataclass(frozen=True)
class Job:
    """One process of a run.

    Attributes:
        kind: speed, graphs, kernels, calibration, sums or pruning.
        options: of the function of that kind.
    """

    kind: str
    shape: str
    precision: str = "float32"
    names: tuple[str, ...] = (DENSE,)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def variants(self) -> list[Variant]:
        """The files that it needs."""
        return list_variants(self.shape, self.precision, self.names)


def list_jobs(provider: str, seconds: float) -> list[Job]:
    """The most telling first.

    Args:
        seconds: of every comparison at one batch size.
    """
    here, host = {"provider": provider}, {"provider": "cpu"}
    small, large = {**here, "batches": [1, 8], "seconds": seconds}, {**here, "batches": [32, 128], "seconds": seconds}
    some = {"n_images": 256, "batch_size": 8}
    fewer = {"n_images": 64, "batch_size": 8}
    both = (*EVERY, *OWN)
    return [
        Job("speed", "tiny", "float16", both, small),
        Job("speed", "tiny", "float16", both, large),
        Job("kernels", "tiny", "float16", both, {**here, "batch": 8}),
        Job("speed", "base", "float16", both, small),
        Job("speed", "base", "float16", both, large),
        *(Job("graphs", shape, "float16", both, {**small, "batches": [1, 8, 32]}) for shape in ("tiny", "base")),
        *(Job("calibration", "tiny", options={**where, **some}) for where in (here, host)),
        *(Job("calibration", "base", options={**where, **fewer}) for where in (here, host)),
        *(Job("calibration", shape, options={**here, "n_images": 256, "batch_size": 32}) for shape in ("tiny", "base")),
        Job("sums", "tiny", options={**here, **fewer}),
        Job("calibration", "huge", options={**here, "n_images": 128, "batch_size": 16}),
        *(Job("pruning", "tiny", options={**where, **some}) for where in (here, host)),
        Job("speed", "tiny", "float32", EVERY, {**small, "batches": [1, 8, 32]}),
        Job("pruning", "base", options={**here, **some}),
        Job("pruning", "huge", options={**here, "n_images": 128, "batch_size": 16}),
        Job("speed", "huge", "float16", FEW, {**small, "batches": [1, 8, 32]}),
        Job("pruning", "tiny", options={**here, **some, "macs": 0.617, "merge": "none"}),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what fits, write the record and the page."""
    args = _parse(argv)
    if args.job:
        return run_job(Job(**json.loads(args.job)), args.models)
    jobs = [job for job in list_jobs(args.provider, args.seconds) if _matches(job, args.only)]
    if args.prepare:
        prepare(args.prepare, [variant for job in jobs for variant in job.variants])
        return 0
    if args.page:
        record = json.loads(args.page.read_text(encoding="utf-8"))
    else:
        record = run_jobs(jobs, args)
    if args.markdown:
        args.markdown.write_text(write_page(record), encoding="utf-8")
    return 0 if any("error" not in row for row in record["rows"]) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"), help="the record (gpu.json)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the page")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the whole run (10)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a comparison at one batch size (5)")
    parser.add_argument("--provider", default="cuda", help="cuda; cpu tries the flow")
    parser.add_argument("--models", type=Path, default=Path("out/gpu"), help="folder of the models (out/gpu)")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="jobs with these, as: speed base")
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="make the models there, and nothing else")
    parser.add_argument("--page", type=Path, metavar="RECORD", help="only write the page of a record")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _matches(job: Job, words: Sequence[str]) -> bool:
    return {*words} <= {job.kind, job.shape, job.precision, str(job.options.get("provider"))}


def run_jobs(jobs: Sequence[Job], args: argparse.Namespace) -> dict[str, Any]:
    """The record, written after every row."""
    end = time.monotonic() + 60 * args.minutes
    record = {"schema": 1, **describe_machine(args.provider), "note": args.note, "rows": list[Row]()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if end - time.monotonic() < 1:
            print("no time left for the rest", flush=True)
            break
        start = time.monotonic()
        for row in watch_job(job, args.models, end):
            record["rows"].append({**_name(job), **row})
            args.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(json.dumps(record["rows"][-1])[:400], flush=True)
        print(f"-- {job.kind} {job.shape} {job.precision}: {time.monotonic() - start:.1f} s", flush=True)
    return record


def _name(job: Job) -> Row:
    return {"kind": job.kind, "shape": job.shape, "precision": job.precision}


def watch_job(job: Job, models: Path, end: float) -> Iterator[Row]:
    """The rows of a job in a process of its own; a row with `error` where that fails or is out of time.

    Args:
        end: when it is stopped, on the monotonic clock.
    """
    command = [sys.executable, __file__, "--models", str(models), "--job", json.dumps(asdict(job))]
    limit = max(end - time.monotonic(), 1.0)
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
            timer = threading.Timer(limit, process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(ROW):
                    yield json.loads(line.removeprefix(ROW))
            code = process.wait()
            timer.cancel()
        log.seek(0)
        said = log.read()[-MAX_LOG:]
    if code:
        late = f"stopped after {limit:.0f} s, when the run's minutes were over. "
        yield {"error": (late if time.monotonic() >= end else f"exit {code}. ") + said}


def run_job(job: Job, models: Path) -> int:
    """One job here; its rows go to stdout."""
    if job.options.get("provider") != "cpu":
        load_cuda()
    files = find_files(models, job.variants)
    try:
        for row in measure(job, files):
            print(ROW + json.dumps(row), flush=True)
    except CorpOnnxError as error:
        print(ROW + json.dumps({"error": str(error), **job.options}), flush=True)
    return 0


def measure(job: Job, files: dict[str, Path]) -> Iterator[Row]:
    """The rows of a job."""
    if job.kind == "speed":
        yield from time_models(files, **job.options)
    elif job.kind == "graphs":
        yield from time_graphs(files, **job.options)
    elif job.kind == "kernels":
        yield from ({"model": name, **count_kernels(path, **job.options)} for name, path in files.items())
    else:
        one = {"calibration": time_calibration, "sums": compare_sums, "pruning": time_pruning}[job.kind]
        yield from (one(path, **job.options) for path in files.values())


def describe_machine(provider: str) -> dict[str, Any]:
    """The GPU, the host, and what is installed."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "none"
    environment = asdict(describe_environment(provider))
    environment["versions"]["onnxruntime"] = import_runtime().__version__  # of several that are installed the one used
    libraries = {name: version for name in LIBRARIES if (version := _version(name))}
    return {"gpu": gpu, "cores": os.cpu_count(), "environment": environment, "libraries": libraries}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
