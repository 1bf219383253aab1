"""What is measured, each a function from files to rows of plain values (they go into JSON as they are).

    time_models       latency, throughput, speed-up over the first file         corp_onnx.bench
    time_graphs       the same where CUDA replays a whole run: no kernel waits for the host
    count_kernels     operators by the provider that ran them, fused attentions ONNX Runtime's profiler
    time_calibration  the paper's sums beside plain inference                   corp_onnx.calibrate
    compare_sums      those sums beside the host's
    time_pruning      a whole `prune`, stage by stage                           corp_onnx.prune

A provider that could not be started is an error: ONNX Runtime would take the CPU in silence.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corp_onnx.bench.bench import bench_models
from corp_onnx.bench.values import BenchRow
from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.operators import ATTENTIONS
from corp_onnx.images.arrays import ArraySet, make_arrays
from corp_onnx.latency.turns import Schedule, paired_ratio, summarise, time_turns
from corp_onnx.options import choose_settings
from corp_onnx.prune import prune_model
from corp_onnx.run.feeds import ELEMENT_TYPES
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.runtime import import_runtime, make_options, require_provider, resolve_provider
from corp_onnx.run.sessions import open_session
from corp_onnx.settings import PAPER
from corp_onnx.threads import few_blas_threads
from corp_onnx.units import Unit, list_units

Row = dict[str, Any]

WARMUP = 4
"""Batches before plain inference is timed."""

MEMORY_PERIOD = 100
"""Milliseconds between two looks at the GPU's memory."""


def time_models(
    files: Mapping[str, Path], provider: str, batches: Sequence[int], seconds: float, threads: int | None = None
) -> list[Row]:
    """Every file at every batch size, in turns; speed-ups are over the first one, round by round.

    Times are without transfers where the provider has a memory of its own; those with them stand beside.
    """
    measured = bench_models(
        list(files.values()), batches=batches, providers=[provider], threads=threads, seconds=seconds
    )
    names = {str(path): name for name, path in files.items()}
    macs = {model.path: model.macs for model in measured.models}
    first = macs[str(next(iter(files.values())))] or 1
    return [
        {"model": names[row.model], "macs": round((macs[row.model] or 0) / first, 4), **_read_speed(row)}
        for row in measured.rows
    ]


def _read_speed(row: BenchRow) -> Row:
    """One row of a benchmark; milliseconds of a batch, and images in a second."""
    speed = row.resident or row.speed
    found: Row = {
        "batch": row.batch,
        "rounds": row.rounds,
        "p50_ms": 1e3 * speed.latency.p50,
        "q1_ms": 1e3 * speed.latency.q1,
        "q3_ms": 1e3 * speed.latency.q3,
        "images_s": speed.throughput,
        "with_transfers_ms": 1e3 * row.speed.latency.p50,
    }
    for name, ratio in (("speedup", speed.speedup), ("with_transfers_speedup", row.speed.speedup)):
        if ratio is not None:
            found |= {name: ratio.median, f"{name}_q1": ratio.q1, f"{name}_q3": ratio.q3}
    return found


def time_graphs(files: Mapping[str, Path], provider: str, batches: Sequence[int], seconds: float) -> list[Row]:
    """As `time_models`, on the device alone, every run captured once as a CUDA graph and replayed.

    Starting a kernel costs the host more than many kernels take on a large GPU; a graph is started once for all.
    """
    rows: list[Row] = []
    for batch in batches:
        runs = [_capture(path, provider, batch) for path in files.values()]
        times = time_turns(runs, Schedule(seconds=seconds))
        for i, name in enumerate(files):
            latency, ratio = summarise(times[:, i]), paired_ratio(times[:, 0], times[:, i])
            found: Row = {
                "model": name, "batch": batch, "rounds": len(times), "p50_ms": 1e3 * latency.p50,
                "q1_ms": 1e3 * latency.q1, "q3_ms": 1e3 * latency.q3, "images_s": batch / latency.p50,
            }  # fmt: skip
            rows.append(
                found | ({"speedup": ratio.median, "speedup_q1": ratio.q1, "speedup_q3": ratio.q3} if i else {})
            )
    return rows


def _capture(path: Path, provider: str, batch: int) -> Callable[[], None]:
    """A run of a model from the device's memory to it; its first call captures."""
    runtime, name = import_runtime(), resolve_provider(provider)
    device, extra = ("cuda", {"enable_cuda_graph": "1"}) if name == "CUDAExecutionProvider" else ("cpu", {})
    native = runtime.InferenceSession(str(path), make_options(None), providers=[(name, extra)])
    require_provider(native.get_providers()[0], provider)
    binding, value = native.io_binding(), runtime.OrtValue
    held = {k: value.ortvalue_from_numpy(v, device, 0) for k, v in random_feeds(load_model(path), batch).items()}
    for key, there in held.items():
        binding.bind_ortvalue_input(key, there)
    for output in native.get_outputs():
        shape = [axis if isinstance(axis, int) else batch for axis in output.shape]
        there = value.ortvalue_from_shape_and_type(shape, ELEMENT_TYPES[output.type], device, 0)
        binding.bind_ortvalue_output(output.name, there)
        held[output.name] = there

    def run() -> None:
        native.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def count_kernels(path: Path, provider: str, batch: int) -> Row:
    """What one run of a file was made of, by ONNX Runtime's profiler, and the milliseconds that its nodes took.

    On a GPU a node's time is what the host needs to start it, and no kernel's.

    Raises:
        OptionError: the provider could not be started.
    """
    runtime, name = import_runtime(), resolve_provider(provider)
    feeds = random_feeds(load_model(path), batch)
    with tempfile.TemporaryDirectory() as folder:
        options = make_options(None)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        native = runtime.InferenceSession(str(path), options, providers=[name])
        require_provider(native.get_providers()[0], provider)
        for _ in range(2):
            native.run(None, feeds)
        events = json.loads(Path(native.end_profiling()).read_text(encoding="utf-8"))
    return summarise_profile(events)


def summarise_profile(events: Sequence[Mapping[str, Any]]) -> Row:
    """Nodes by provider and operator, out of the events of a profile.

    A node that runs again counts once; a model whose profile tells of no node is an error of ours.
    """
    nodes: dict[str, tuple[str, str]] = {}
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "Node" and args.get("provider"):
            place = args.get("node_index", event["name"])
            nodes[f"{event['name']} {place}"] = args["provider"].removesuffix("ExecutionProvider"), args["op_name"]
    assert nodes, "the profile tells of no node"
    operators = Counter(op for _, op in nodes.values())
    return {
        "nodes": len(nodes),
        "by_provider": dict(Counter(provider for provider, _ in nodes.values())),
        "copies": sum(n for op, n in operators.items() if op.startswith("Memcpy")),
        "attentions_fused": sum(n for op, n in operators.items() if op in ATTENTIONS),
        "softmax": operators["Softmax"],
        "operators": dict(operators.most_common()),
        "on_cpu": sorted({op for provider, op in nodes.values() if provider == "CPU"}),
    }


def time_inference(path: Path, provider: str, images: np.ndarray, batch_size: int) -> float:
    """Seconds an image of the model alone, from host memory to host memory.

    Raises:
        OptionError: the provider could not be started.
    """
    session = open_session(path, provider=provider)
    name = session.inputs[0].name
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    for batch in batches[:WARMUP]:
        session.run(None, {name: batch})
    start = time.perf_counter()
    for batch in batches:
        session.run(None, {name: batch})
    return (time.perf_counter() - start) / len(images)


def make_images(path: Path, n_images: int) -> tuple[str, np.ndarray]:
    """(name of the model's input, noise for it)."""
    ((name, one),) = random_feeds(load_model(path), 1).items()
    return name, np.random.default_rng(0).standard_normal((n_images, *one.shape[1:]), np.float32)


def pose_sums(path: Path, n_images: int) -> tuple[Graph, tuple[Unit, ...], np.ndarray, ArraySet]:
    """(graph, units of the paper's preset, noise, the same as images): what sums are made of."""
    name, images = make_images(path, n_images)
    graph = probe_graph(load_model(path))
    return graph, list_units(find_blocks(graph), PAPER.units), images, make_arrays(path, {name: images})


@few_blas_threads()
def time_calibration(path: Path, provider: str, n_images: int, batch_size: int) -> Row:
    """The sums of the paper's preset over noise beside plain inference: what a further image costs."""
    graph, units, images, given = pose_sums(path, n_images)
    done: list[tuple[float, int]] = []
    plain = [time_inference(path, provider, images, batch_size)]
    with watched_memory() as memory:
        start = time.perf_counter()
        collect_moments(
            graph, units, given, batch_size=batch_size, provider=provider,
            progress=lambda n: done.append((time.perf_counter(), n)),
        )  # fmt: skip
        end = time.perf_counter()
    plain.append(time_inference(path, provider, images, batch_size))  # before and behind: neighbours come and go
    behind = done[min(WARMUP, len(done) // 2) - 1 :]
    each = (behind[-1][0] - behind[0][0]) / sum(n for _, n in behind[1:])
    return {
        "provider": provider,
        "images": n_images,
        "batch": batch_size,
        "plain_ms_image": [1e3 * s for s in plain],
        "calibrate_ms_image": 1e3 * each,
        "calibrate_ratio": each / float(np.mean(plain)),
        "calibrate_s": end - start,
        "fixed_s": end - start - n_images * each,
        "gpu_mib": memory.most,
    }


@few_blas_threads()
def compare_sums(path: Path, provider: str, n_images: int, batch_size: int) -> Row:
    """The largest difference of an entry of a Gram on a provider from the CPU's, over sqrt(G_ii G_jj)."""
    graph, units, _, given = pose_sums(path, n_images)
    found, expected = (
        collect_moments(graph, units, given, batch_size=batch_size, provider=place) for place in (provider, "cpu")
    )
    largest = dict[str, float]()
    for key, there in found.entries:
        here = expected[key]
        for part in ("gram", "q_gram", "k_gram", "k_centred_gram"):
            if (one := getattr(there, part, None)) is not None:
                two = getattr(here, part)
                size = np.sqrt(np.diagonal(two, axis1=-2, axis2=-1))
                error = np.abs(one - two) / np.maximum(size[..., :, None] * size[..., None, :], np.finfo(float).tiny)
                largest[part] = max(largest.get(part, 0.0), float(error.max()))
    return {"provider": provider, "images": n_images, "batch": batch_size, "largest": largest}


def time_pruning(path: Path, provider: str, n_images: int, batch_size: int, **options: Any) -> Row:
    """`prune --preset paper` on noise, stage by stage, beside plain inference over as many images.

    Args:
        options: of `prune_model`, in place of the paper's preset.
    """
    _, images = make_images(path, n_images)
    plain = [time_inference(path, provider, images, batch_size)]
    settings = choose_settings(None, provider=provider, batch_size=batch_size, **(options or {"preset": "paper"}))
    with tempfile.TemporaryDirectory() as folder, watched_memory() as memory:
        start = time.perf_counter()
        result = prune_model(path, images, Path(folder) / "pruned.onnx", settings=settings)
        total = time.perf_counter() - start
    plain.append(time_inference(path, provider, images, batch_size))
    return {
        "provider": provider,
        "options": options or {"preset": "paper"},
        "images": n_images,
        "batch": batch_size,
        "calibrated": result.calibration.n_images,
        "plain_ms_image": [1e3 * s for s in plain],
        "total_s": total,
        "total_ratio": total / (n_images * float(np.mean(plain))),
        "stages_s": {stage.stage: stage.seconds for stage in result.stages},
        "gpu_mib": memory.most,
        "host_peak_mib": (result.peak_memory_bytes or 0) >> 20,
        "checks": {check.name: check.difference for check in result.checks},
    }


def project_seconds(calibration: Row, pruning: Row | None, n_images: int) -> float:
    """What a run over more images would take: what is paid by the image grows, the rest stays as in the run before."""
    each = 1e-3 * calibration["calibrate_ms_image"]
    if pruning is None:
        return calibration["fixed_s"] + each * n_images
    return pruning["total_s"] + each * (n_images - pruning["calibrated"])


@dataclass
class Memory:
    """MiB on the GPU that came on top while it was watched; None where nvidia-smi does not tell."""

    most: int | None = None
    samples: list[int] = field(default_factory=list)


@contextmanager
def watched_memory() -> Iterator[Memory]:
    """The GPU's memory while something runs."""
    memory = Memory()
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"-lms={MEMORY_PERIOD}"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield memory
        return
    assert process.stdout is not None
    reader = threading.Thread(target=_read_numbers, args=(process.stdout, memory.samples), daemon=True)
    reader.start()
    try:
        yield memory
    finally:
        process.terminate()
        process.wait()
        reader.join(timeout=1)
        process.stdout.close()
        if memory.samples:
            memory.most = max(memory.samples)


def _read_numbers(lines: Any, into: list[int]) -> None:
    for line in lines:
        with suppress(ValueError):
            into.append(int(line))
