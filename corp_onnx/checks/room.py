"""Whether there is room for a verb that runs models as they are: how many images at a time keep to a limit.

Enters paths of ONNX files and a limit; leaves a batch, or a refusal that says what it takes. With R what the process
holds, W the bytes of a model's weights and A the most that is alive between its operators for one image,

    R + ARENA + sum of f W over the models that are open at once + (3 A + P) batch

where P is what products read of one image, of a verb that looks at all of it, and f is of the verb: as it was measured
for `inspect` and `convert` (benchmarks/calibration.md), a guess on the upper side for the others. `prune` and what goes
its way plan by phases (footprint.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from corp_onnx.calibrate.groups import FLOAT
from corp_onnx.errors import ModelError, OptionError
from corp_onnx.graph import Graph, load_model
from corp_onnx.graph.external import list_locations
from corp_onnx.memory import ARENA, AT_START, MARGIN, list_batches, release_memory, resident_bytes, write_size
from corp_onnx.run.probe import PROBE_IMAGES, probe_graph

TIMES = {"inspect": (4.0, 1.6), "evaluate": (3.0, 1.2), "bench": (3.0, 1.2), "convert": (6.0, 1.6)}
"""Of a verb, what it takes of a model's weights: where they lie in the file, and outside of it."""

ALIVE = 3.0
"""Times what is alive between operators: ONNX Runtime's buffers grow by doubling."""

PRODUCTS = frozenset({"MatMul", "Gemm"})

SUFFIX = ".onnx"


def fit_batch(
    verb: str, models: Sequence[Path], batch_size: int, limit: int | None, *, fewer: bool = True, exposes: bool = False
) -> int:
    """As many images at a time, or fewer, as keep to a limit.

    Args:
        models: that are open at once; files that are no ONNX models are not counted.
        batch_size: wanted.
        limit: bytes that a person allows; None is no limit.
        fewer: whether fewer images will do.
        exposes: whether it looks at what every product reads.

    Raises:
        OptionError: nothing does.
    """
    if limit is None:
        return batch_size
    weights = widest = 0.0
    for path in dict.fromkeys(path for path in models if path.suffix.lower() == SUFFIX):
        own, of_image = _measure(path, *TIMES[verb], exposes=exposes)
        weights, widest = weights + own, max(widest, of_image)
    release_memory()
    fixed = (resident_bytes() or AT_START) + ARENA + weights
    sizes = list_batches(batch_size) if fewer else [batch_size]
    for size in sizes:
        if MARGIN * (fixed + size * widest) <= limit:
            return size
    many = "one image" if sizes[-1] == 1 else f"{sizes[-1]} images"
    raise OptionError(
        f"--memory {write_size(limit)} is too little: to {verb} this takes about "
        f"{write_size(MARGIN * (fixed + sizes[-1] * widest))}, {many} at a time. Give at least that."
    )


def require_room(verb: str, models: Sequence[Path], limit: int | None, batch_size: int = 1) -> None:
    """As `fit_batch`, of a verb that takes no fewer images than it is told."""
    fit_batch(verb, models, batch_size, limit, fewer=False)


def _measure(path: Path, inside: float, outside: float, *, exposes: bool) -> tuple[float, float]:
    """(bytes that its weights take, bytes for one image); of a quantised model only its file counts."""
    try:
        graph = probe_graph(load_model(path))
    except ModelError:  # or one that can not be read at all, which the verb says better
        return inside * (path.stat().st_size if path.is_file() else 0), 0.0
    stored = FLOAT * graph.n_stored
    of_image = ALIVE * _count_alive(graph) + (_count_read(graph) if exposes else 0.0)
    stays = list_locations(graph.model.proto) and graph.float_type != "bfloat16"  # which runs as float32, from memory
    return (outside if stays else inside) * stored, of_image


def _count_alive(graph: Graph) -> float:
    """Bytes for one image that the operator with the most of them reads and makes."""
    computed = {name for node in graph.nodes for name in node.outputs}
    sizes = {name: FLOAT * math.prod(shape) for name, shape in graph.shapes.items() if name in computed}
    alive = (sum(sizes.get(name, 0) for name in {*node.inputs, *node.outputs}) for node in graph.nodes)
    return max(alive, default=0) / (graph.n_images or PROBE_IMAGES)


def _count_read(graph: Graph) -> float:
    """Bytes for one image that products with stored weights read."""
    products = (node for node in graph.nodes if node.op in PRODUCTS and graph.is_constant(node.inputs[1]))
    shapes = (graph.shapes.get(name, ()) for name in {node.inputs[0] for node in products})
    return FLOAT * sum(map(math.prod, shapes)) / (graph.n_images or PROBE_IMAGES)
