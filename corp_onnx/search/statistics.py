"""What images tell of a model before any search: moments of units, ranks by gradients, how tokens are compared.

Each from the findings where it is there, else from the images, and then it is among the findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.checkpoint import Checkpoint
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.draw import TokenDraw
from corp_onnx.findings import Findings
from corp_onnx.gradients import collect_taylor
from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.moments import Moments, pack_moments, unpack_moments
from corp_onnx.progress import Count, Run
from corp_onnx.results import StageClock
from corp_onnx.settings import Method
from corp_onnx.tokens.metric import METRIC_IMAGES, learn_metrics
from corp_onnx.tokens.sites import MergeSites, TokenMetric
from corp_onnx.units import Unit

Collect: TypeAlias = Callable[[Sequence[Unit], Count], Moments]
"""The moments of some units from all images, which it counts."""

MOMENTS = "moments"
"""The stage under which findings have them."""


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What images told.

    Attributes:
        moments: of every unit, by its key as text.
        importances: of every MLP's channels, by the same; for the rank `taylor` only.
        metrics: how tokens are compared, by block; where they may merge.
    """

    moments: Moments
    importances: Mapping[str, np.ndarray] = field(default_factory=dict)
    metrics: Mapping[int, TokenMetric] = field(default_factory=dict)


def collect_statistics(
    graph: Graph, blocks: Blocks, units: Sequence[Unit], sites: MergeSites, method: Method, images: Images,
    findings: Findings, *, checkpoint: Checkpoint | None = None, room: int | None = None,
    collect: Collect | None = None, run: Run | None = None, clock: StageClock | None = None, **running: Any,
) -> Statistics:  # fmt: skip
    """What a method asks of some images.

    Args:
        sites: where tokens can merge; nowhere, where they are not to.
        findings: on these images.
        checkpoint: where moments are kept when the run is interrupted.
        room: bytes that running sums may take, as in `collect_moments`.
        collect: who collects moments in its place, as the workers of a cluster.
        running: `batch_size` and `provider`.
    """
    run, clock = run or Run(), clock or StageClock()
    importances: Mapping[str, np.ndarray] = {}
    if method.rank == "taylor":
        with clock.stage("rank"), run.enter("rank", images.n_images) as count:
            importances = findings.recall(
                "importances", {"units": [str(unit.key) for unit in units]},
                lambda: collect_taylor(graph, units, images, **running, progress=count),
            )  # fmt: skip
    if collect is None:
        draw = TokenDraw(method.tokens_per_image) if method.tokens_per_image else None
        collect = partial(_collect, graph, images, {**running, "checkpoint": checkpoint, "room": room, "draw": draw})
    with clock.stage("calibrate"), run.enter("calibrate", images.n_images) as count:
        moments = _recall_moments(findings, units, method, lambda missing: collect(missing, count))
    if not sites.sites:
        return Statistics(moments, importances)
    n_images = min(METRIC_IMAGES, images.n_images)
    with clock.stage("compare tokens"), run.enter("compare tokens", n_images) as count:
        packed = findings.recall(
            "metrics", {"kind": method.merge_metric, "blocks": [site.block for site in sites.sites]},
            lambda: _pack_metrics(
                learn_metrics(graph, blocks, sites, images, method.merge_metric, **running, progress=count)
            ),
        )  # fmt: skip
    return Statistics(moments, importances, _unpack_metrics(packed))


def _collect(graph: Graph, images: Images, options: Mapping[str, Any], units: Sequence[Unit], count: Count) -> Moments:
    return collect_moments(graph, units, images, progress=count, **options)


def _recall_moments(
    findings: Findings, units: Sequence[Unit], method: Method, collect: Callable[[Sequence[Unit]], Moments]
) -> Moments:
    """The moments of the units, of which those that are missing are collected together."""

    def find(unit: Unit) -> Mapping[str, np.ndarray] | None:
        return findings.find(f"{MOMENTS}/{unit.key}", method.sampling)

    if missing := [unit for unit in units if find(unit) is None]:
        for key, of_unit in collect(missing).entries:
            findings.keep(f"{MOMENTS}/{key}", method.sampling, pack_moments(of_unit))
    return Moments(tuple((str(unit.key), unpack_moments(find(unit) or {})) for unit in units))


def _pack_metrics(metrics: Mapping[int, TokenMetric]) -> dict[str, np.ndarray]:
    return {
        f"{block}.{name}": array
        for block, metric in metrics.items()
        for name in ("directions", "offset", "importance")
        if (array := getattr(metric, name)) is not None
    }


def _unpack_metrics(packed: Mapping[str, np.ndarray]) -> dict[int, TokenMetric]:
    by_block: dict[int, dict[str, np.ndarray]] = {}
    for name, array in packed.items():
        block, what = name.split(".")
        by_block.setdefault(int(block), {})[what] = array
    return {block: TokenMetric(**arrays) for block, arrays in by_block.items()}
