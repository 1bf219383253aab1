"""What a prune will take, phase by phase, in images through the dense model: the plan of its progress.

Enters what is known before calibration; leaves `Phase`s by the names that the stages report under. The costs are first
guesses, made from runs of DeiT-Tiny, the demo model and models as wide as DeiT-III-Huge on two cores; measured times
take their place as the run goes (progress.py). What does not grow with an image is guessed in multiply-accumulates
(MACs), of which an image takes as many as the model says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from corp_onnx.blocks import Blocks
from corp_onnx.graph import Graph
from corp_onnx.progress import ANSWERS, Phase
from corp_onnx.refit.stream import find_walk
from corp_onnx.refit.token_weights import SENSITIVITY_IMAGES
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

WRITTEN_BLOCK, WRITTEN_WEIGHT = 8.5e8, 400.0
"""A model that is rewritten and opened, in MACs: for every block its nodes, for every parameter its bytes."""

SHARED = 2e9
"""A budget that is shared out, before the few best splits are made: MACs for every unit."""

FINISHED = 600.0
"""A number of a unit's moments that leaves the sums: MACs."""

TRACED, REFITTED, DECOMPOSED = 5.0, 5.0, 5.0
"""Of n channels, in n^3 MACs: an error curve at every width, a product solved again with its ridge chosen, a
spectrum."""

REFIT_SUMMED = 23_000.0
"""Of n channels, in n^2 MACs: what is done with their sums before that."""

STRETCHED = 2e9
"""A stretch of the model that is opened, in MACs."""

WALKED = 3.0
"""An image in a refit: both streams, and sums."""

WEIGHED = 0.6
"""An image at a stop of the walk: from there to the end, disturbed."""

CHECKED, VERIFIED = 8, 20.0
"""The checks: models that are written and opened with tensors exposed, and images through them."""


def plan_phases(
    graph: Graph,
    blocks: Blocks,
    units: Sequence[Unit],
    sites: MergeSites,
    method: Method,
    n_images: int,
    n_held: int,
    n_folds: int = 0,
    n_passes: int = 1,
) -> tuple[Phase, ...]:
    """The phases of a prune from calibration on.

    Args:
        n_images: for the moments.
        n_held: held back.
        n_folds: that choose as well, on the images for the moments (search/folds.py).
        n_passes: over these, each of which ends behind its part of the network (calibrate/groups.py).
    """
    price = Price(graph, blocks, units)
    rank = [Phase("rank", GRADIENTS * n_images)] if method.rank == "taylor" else []
    compare = [Phase("compare tokens", COMPARED * min(METRIC_IMAGES, n_images))] if sites.sites else []
    refits = _plan_refits(blocks, method, n_images, price)
    n_judged = n_images if n_folds else n_held
    curves = price.cubes(TRACED) if method.rank == "obs" or method.searches_widths else 0.0  # an order takes no time
    return (
        *rank,
        Phase("calibrate", TAPPED * n_images * (n_passes + 1) / 2 + price.squares(FINISHED)),
        *compare,
        *_repeat([Phase("trace", price.written / 2 + curves), *_plan_probes(units, sites, method, n_images, price)],
                 n_folds),
        *_plan_search(sites, method, min(PROBE_IMAGES, n_images), n_judged, n_folds or 1, price, refits=bool(refits)),
        *_repeat(refits, min(n_folds, 1)),
        Phase("verify", CHECKED * price.written + VERIFIED),
        Phase("measure", (TAPPED + 1) * n_held + price.written),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Price:
    """What costs the same for any images, in images."""

    graph: Graph
    blocks: Blocks
    units: Sequence[Unit]

    def of(self, macs: float) -> float:
        """Images of as many multiply-accumulates."""
        return macs / max(self.graph.cost.total, 1)

    @property
    def written(self) -> float:
        """Of a model that is rewritten and opened."""
        return self.of(WRITTEN_BLOCK * len(self.blocks.blocks) + WRITTEN_WEIGHT * self.graph.n_parameters)

    def cubes(self, each: float) -> float:
        """Of what solving takes, so many times the cube of every unit's channels."""
        return self._sum_widths(each, 3)

    def squares(self, each: float) -> float:
        """The same of the square."""
        return self._sum_widths(each, 2)

    def _sum_widths(self, each: float, power: int) -> float:
        return self.of(each * sum(unit.width**power for unit in self.units if unit.n_heads is None))


def _plan_probes(units: Sequence[Unit], sites: MergeSites, method: Method, n_images: int, price: Price) -> list[Phase]:
    """One an MLP and width asked for, one a unit, a few a merge site; each runs half of the model in the mean."""
    each = min(PROBE_IMAGES, n_images) / 2 + price.written
    if isinstance(method.widths, Threshold):
        each = min(THRESHOLD_IMAGES, n_images) / 2 + price.written
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
    sites: MergeSites, method: Method, n_probes: int, n_held: int, n_searches: int, price: Price, *, refits: bool
) -> list[Phase]:
    """Once for a budget; for a promise every model that is made before a refit, or without one."""
    if not method.has_budget:
        return []
    n_asked = price.of(SHARED * len(price.units)) + (MAX_SPLITS * (n_probes + price.written) if sites.sites else 0.0)
    judged = n_held + price.written if method.promises else 0.0
    times = (N_SKETCHES if refits else N_TRIALS) if method.promises else 1
    return [Phase("search", n_searches * n_asked + judged, "search", times)]


def _plan_refits(blocks: Blocks, method: Method, n_images: int, price: Price) -> list[Phase]:
    """The weights of tokens are found inside the first refit."""
    stops = find_walk(blocks).stops
    if not method.refits or not stops:
        return []
    solved = price.cubes(REFITTED) + price.squares(REFIT_SUMMED)
    cost = WALKED * n_images + solved + price.of(STRETCHED * len(stops)) + price.written
    refit = Phase("refit", cost, "refit", N_REFITS if method.promises else 1)
    weighed = WEIGHED * min(SENSITIVITY_IMAGES, n_images) * len(stops)
    return [refit, *([Phase("weigh tokens", weighed)] if method.weigh_tokens else [])]
