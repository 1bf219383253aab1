"""What a prune will take, phase by phase, in images through the dense model: the plan of its progress.

Enters what is known before calibration; leaves `Phase`s by the names that the stages report under. The costs are first
guesses, made from runs of DeiT-Tiny and the demo model on two cores; measured times take their place as the run goes
(progress.py). Solving is counted in cubes: n^3 multiply-accumulates for n channels, over those of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.progress import ANSWERS, Phase
from corp_onnx.refit.stream import find_walk
from corp_onnx.search.amp import THRESHOLD_IMAGES
from corp_onnx.search.probes import PROBE_IMAGES
from corp_onnx.search.promise import N_REFITS, N_SKETCHES, N_TRIALS
from corp_onnx.search.splits import MAX_SPLITS
from corp_onnx.search.tokens import PROBE_SHARES
from corp_onnx.settings import Method, Threshold
from corp_onnx.tokens.metric import METRIC_IMAGES
from corp_onnx.tokens.sites import MergeSites
from corp_onnx.units import Unit

TAPPED = 2.0
"""An image whose inner tensors are exposed and folded into sums."""

COMPARED = 1.6
"""An image whose tokens are compared."""

GRADIENTS = 6.0
"""An image through PyTorch and back."""

WRITTEN = 10.0
"""A model that is rewritten and opened."""

SHARED = 60.0
"""A budget that is shared out, before the few best splits are made."""

TRACED, REFITTED = 5.0, 35.0
"""Cubes: of an error curve at every width, of a product solved again with its ridge chosen."""

WALKED = 3.0
"""An image in a refit: both streams, and sums."""

WEIGHED = 5.0
"""A stop of the walk: a few images from there to the end, disturbed."""

VERIFIED = 100.0
"""The checks: half a dozen models opened with tensors exposed, and a batch through each."""


def plan_phases(
    graph: Graph,
    blocks: Blocks,
    units: Sequence[Unit],
    sites: MergeSites,
    method: Method,
    n_images: int,
    n_held: int,
    n_folds: int = 0,
) -> tuple[Phase, ...]:
    """The phases of a prune from calibration on.

    Args:
        n_images: for the moments.
        n_held: held back.
        n_folds: that choose as well, on the images for the moments (search/folds.py).
    """
    cubes = sum(unit.width**3 for unit in units if unit.n_heads is None) / max(graph.cost.total, 1)
    rank = [Phase("rank", GRADIENTS * n_images)] if method.rank == "taylor" else []
    compare = [Phase("compare tokens", COMPARED * min(METRIC_IMAGES, n_images))] if sites.sites else []
    refits = _plan_refits(blocks, method, n_images, cubes)
    n_judged = n_images if n_folds else n_held
    curves = TRACED * cubes if method.rank == "obs" or method.searches_widths else 0.0  # an order alone takes no time
    return (
        *rank,
        Phase("calibrate", TAPPED * n_images),
        *compare,
        *_repeat([Phase("trace", WRITTEN / 2 + curves), *_plan_probes(units, sites, method, n_images)], n_folds),
        *_plan_search(sites, method, min(PROBE_IMAGES, n_images), n_judged, n_folds or 1, refits=bool(refits)),
        *_repeat(refits, min(n_folds, 1)),
        Phase("verify", VERIFIED),
        Phase("measure", (TAPPED + 1) * n_held + WRITTEN),
    )


def _plan_probes(units: Sequence[Unit], sites: MergeSites, method: Method, n_images: int) -> list[Phase]:
    """One an MLP and width asked for, one a unit, a few a merge site; each runs half of the model in the mean."""
    each = min(PROBE_IMAGES, n_images) / 2 + WRITTEN
    if isinstance(method.widths, Threshold):
        each = min(THRESHOLD_IMAGES, n_images) / 2 + WRITTEN
        return [Phase("probe units", each * sum(math.log2(len(unit.widths(method)) + 1) for unit in units), ANSWERS)]
    if not method.searches_widths:
        return []
    wanted = [site for site in sites.sites if not method.merge_blocks or site.block in method.merge_blocks]
    tokens = Phase("probe tokens", each * len(wanted) * len(PROBE_SHARES), ANSWERS)
    return [Phase("probe units", each * len(units), ANSWERS), *([tokens] if wanted else [])]


def _repeat(phases: Sequence[Phase], n_more: int) -> list[Phase]:
    """The same, so many times more."""
    return [replace(phase, times=phase.times + n_more) for phase in phases]


def _plan_search(
    sites: MergeSites, method: Method, n_probes: int, n_held: int, n_searches: int, *, refits: bool
) -> list[Phase]:
    """Once for a budget; for a promise every model that is made before a refit, or without one."""
    if not method.has_budget:
        return []
    n_asked = MAX_SPLITS * (n_probes + WRITTEN) if sites.sites else 0.0
    judged = n_held + WRITTEN if method.promises else 0.0
    times = (N_SKETCHES if refits else N_TRIALS) if method.promises else 1
    return [Phase("search", n_searches * (SHARED + n_asked) + judged, "search", times)]


def _plan_refits(blocks: Blocks, method: Method, n_images: int, cubes: float) -> list[Phase]:
    """The weights of tokens are found inside the first refit."""
    stops = find_walk(blocks).stops
    if not method.refits or not stops:
        return []
    cost = WALKED * n_images + REFITTED * cubes + WRITTEN * len(stops)
    refit = Phase("refit", cost, "refit", N_REFITS if method.promises else 1)
    return [refit, *([Phase("weigh tokens", WEIGHED * len(stops))] if method.weigh_tokens else [])]
