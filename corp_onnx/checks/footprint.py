"""What a prune will hold in memory at the most, before it works.

Enters what is to be pruned, with how many images; leaves a `Footprint`, for `diet.py` to keep to a limit with. What
several stages need (images, residual streams, regressors) lies on a shelf, in memory or in a file. With R what the
process holds already, W the bytes of the weights, S those of a solution (the last products of all units in float64) and
T those of the tensors that calibration exposes for one image, each phase needs, besides the shelf, about

    calibrate   R + 2 W + 1.5 sums + tiles + 3 T batch   a session, what it exposes, and sums in both precisions
    probe       R + sums + 4 S + 4 W + T batch           the splits of a budget, and a rewritten model with its session,
                                                         several if small; 2 S if large
    refit       R + sums + 2 S + T batch + the larger of 2 W + fold sums and 4 W
    check       R + sums + 2 S + 10 W                    two rewritten models and the finished one, open; 4 W if large
    measure     R + sums + 2 S + 4 W + 4 T batch         both models, exposed

with S in place of 2 S where nothing is refitted, of fractions the part of it that is left, and 2 S more where a promise
keeps the best of its trials. Where the weights lie outside of the model's file, which ONNX Runtime maps, it is 1.1 W in
place of 2 W, 2 W of 4 W and in the last phases 1.7 and 2.4 W. Where memory is short, solutions lie in files, and both
models are measured one after the other, with 1.7 W and 3 T. In passes "sums" is what one pass fills, and later the two
largest. The factors are what ONNX Runtime and the C library were seen to take (docs/reliability.md), on the upper side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from corp_onnx.blocks import Blocks
from corp_onnx.calibrate.data import KEPT_SHARE, Calibration
from corp_onnx.calibrate.groups import DOUBLE, FLOAT, finished_bytes, largest_bytes, pass_bytes
from corp_onnx.checks.sides import INNER_IMAGES
from corp_onnx.checks.sides import KNOWN_BYTES as SIDES_BYTES
from corp_onnx.checks.verify import SMALL_MODEL
from corp_onnx.graph import Graph, input_dims
from corp_onnx.graph.external import list_locations
from corp_onnx.images import ImageSet
from corp_onnx.images.folder import MAX_KEPT_BYTES
from corp_onnx.memory import ARENA, AT_START, resident_bytes
from corp_onnx.refit.parts import N_FOLDS
from corp_onnx.refit.stream import KNOWN_BYTES, Stop, find_walk
from corp_onnx.search.evaluator import count_beside
from corp_onnx.search.folds import N_FOLDS as CROSSED
from corp_onnx.search.probes import PROBE_IMAGES
from corp_onnx.search.splits import MAX_SPLITS
from corp_onnx.settings import Fractions, Method
from corp_onnx.threads import choose_size
from corp_onnx.units import Unit, gather_taps

OPENED, REWRITTEN = 2.0, 4.0
"""Times the weights: a session; a rewritten model and its session."""

OPENED_OUTSIDE, REWRITTEN_OUTSIDE = 1.1, 2.0
"""The same of weights that lie outside of the model's file, which ONNX Runtime maps."""

BOTH_OUTSIDE, ONE_OUTSIDE = 2.4, 1.7
"""Of the last phase then: both models open, or one after the other. A model that is written for a check holds its new
weights once, and the products that errors of units are measured with are two thirds of a Vision Transformer's."""

EXPOSED, MEASURED = 3.0, 4.0
"""Times what is exposed: ONNX Runtime's buffers grow by doubling, and what it gives is a copy."""

SUMMED, TOTAL = 1.5, 1.5
"""Times a fold's sums, besides themselves: of each that a call fills (in float32 as well, and moments are made of it),
or of all together, and one matrix of every call that judges a ridge."""

IN_TURN = 2
"""Solutions at a time, where splits are tried one after the other."""

LOOKED_AT = 2
"""Of the largest moments, that are in memory at a time where they lie in a file."""

CALIBRATE, CHECK, MEASURE = "calibrate", "check", "measure"
"""The phase that fills sums, all others hold what they became; and the last two."""

CHECKS = 2
"""Of a small model, that hold a rewritten model each and run at once."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a prune holds.

    Attributes:
        phases: (name, whatever the batch, for each image of it), without the shelf.
        shelved: at the most of images and streams, in memory or in a file.
        units: whose sums are in the phases.
        solutions: by which phases are smaller with solutions in files.
        spared: by which `MEASURE` is smaller with one model open at a time, and
        beside: `CHECK` with one check.
        streams: of the dense model, that lie on the shelf then.
        n_moments: of every unit; folds have their own.
        aside: of solutions and moments, that lie in a file.
        is_passing: whether moments do, and sums may be filled in several passes.
    """

    phases: tuple[tuple[str, float, float], ...]
    shelved: float
    units: tuple[Unit, ...] = ()
    solutions: Mapping[str, float] = field(default_factory=dict)
    spared: float = 0.0
    beside: float = 0.0
    streams: float = 0.0
    n_moments: int = 1
    aside: float = 0.0
    is_passing: bool = False

    def in_turn(self) -> Footprint:
        """With one model measured at a time, one check behind the other, and solutions in files."""
        less = {MEASURE: (self.spared, EXPOSED / MEASURED), CHECK: (self.beside, 1.0)}
        parts = [(name, fixed, each, *less.get(name, (0.0, 1.0))) for name, fixed, each in self.phases]
        aside = self.solutions
        phases = tuple((name, fixed - s - aside.get(name, 0.0), each * share) for name, fixed, each, s, share in parts)
        most, shelved = max(aside.values(), default=0.0), max(self.shelved, self.streams)
        return replace(self, phases=phases, shelved=shelved, solutions={}, spared=0.0, beside=0.0, aside=most)

    def in_passes(self) -> Footprint:
        """With one unit in a pass, and the moments in a file."""
        filling, finished = pass_bytes(self.units), self.n_moments * finished_bytes(self.units)
        least = max((pass_bytes([unit]) for unit in self.units), default=0)
        looked_at = min(finished, LOOKED_AT * largest_bytes(self.units))
        phases = tuple(
            (name, fixed - (filling - least if name == CALIBRATE else finished - looked_at), each)
            for name, fixed, each in self.phases
        )
        return replace(self, phases=phases, aside=self.aside + finished, is_passing=finished > 0)

    def without_shelf(self, batch_size: int) -> float:
        """At the most, with all of the shelf in a file."""
        return max(fixed + batch_size * each for _, fixed, each in self.phases)

    def peak(self, batch_size: int, in_memory: float) -> float:
        """At the most, with so much of the shelf in memory."""
        return self.without_shelf(batch_size) + in_memory


def predict_footprint(
    graph: Graph, blocks: Blocks, units: Sequence[Unit], method: Method, data: Calibration, limit: int | None = None,
    *, is_shared: bool = False,
) -> Footprint:  # fmt: skip
    """What a prune from calibration on will hold.

    Args:
        limit: bytes that a person allows.
        is_shared: whether another run on the same images follows.
    """
    weights = graph.n_stored * FLOAT
    n_moments, inside = 1 + (CROSSED if data.is_crossed else 0), not list_locations(graph.model.proto)
    sums = n_moments * finished_bytes(units)
    opened, rewritten = (OPENED, REWRITTEN) if inside else (OPENED_OUTSIDE, REWRITTEN_OUTSIDE)
    exposed = _tapped_bytes(graph, units)
    pixels = FLOAT * sum(math.prod(graph.dims(name)) for name in input_dims(graph.model)) / graph.n_images
    most = min(MAX_KEPT_BYTES, math.inf if limit is None else limit // KEPT_SHARE)
    crops = min(data.fitting.n_images * pixels / FLOAT, most) if isinstance(data.fitting, ImageSet) else 0
    base = (resident_bytes() or AT_START + weights) + ARENA + crops
    phases = [(CALIBRATE, base + opened * weights + pass_bytes(units), EXPOSED * exposed)]
    stops = find_walk(blocks).stops if method.refits else ()
    solved = _solved_bytes(units, method) * (2 if stops else 1)
    best = solved if method.promises else 0.0
    solutions = {CHECK: solved, MEASURE: solved}
    if method.searches_widths:
        n_beside = count_beside(graph, choose_size())
        solutions["probe"] = best + _solution_bytes(units) * (IN_TURN if n_beside == 1 else MAX_SPLITS)
        phases.append(("probe", base + sums + solutions["probe"] + n_beside * rewritten * weights, exposed))
    if stops:
        solutions["refit"], walking = best + solved, opened * weights + _fold_bytes(units)
        phases.append(("refit", base + sums + solutions["refit"] + max(walking, rewritten * weights), exposed))
    one, both = (REWRITTEN, REWRITTEN) if inside else (ONE_OUTSIDE, BOTH_OUTSIDE)
    is_small = graph.n_stored < SMALL_MODEL
    several = (min(choose_size(), CHECKS) - 1) * rewritten + opened  # the finished model stays open for all of them
    beside, finished = several * weights if is_small else 0.0, base + sums + solved
    phases.append((CHECK, finished + (both if is_small else one) * weights + beside, 0.0))
    phases.append((MEASURE, finished + both * weights, MEASURED * exposed))
    behind = [block.stream for block in blocks.blocks if block.stream is not None]
    n_inside = min(data.reporting.n_images, INNER_IMAGES)
    streams = FLOAT * sum(math.prod(graph.dims(name)) for name in behind) / graph.n_images * n_inside
    shelved = _shelved_bytes(graph, stops, method, data, pixels, is_shared=is_shared)
    if is_shared:
        shelved += min(SIDES_BYTES, streams + exposed * n_inside)
    spared = (both - one) * weights
    return Footprint(tuple(phases), shelved, tuple(units), solutions, spared, beside, streams, n_moments)


def _shelved_bytes(
    graph: Graph, stops: Sequence[Stop], method: Method, data: Calibration, pixels: float, *, is_shared: bool
) -> float:
    """Of images that the search keeps, and of the refit's images, streams and regressors."""
    n_fitting, n_judging = data.fitting.n_images, data.judging.n_images
    n_kept = min(PROBE_IMAGES, n_fitting) + (n_judging if method.promises or method.refits else 0)
    shelved = pixels * n_kept if method.searches_widths else 0.0
    if not stops:
        return shelved
    streams = max(math.prod(graph.dims(stop.residual.stream)) for stop in stops) / graph.n_images
    regressor = max(math.prod(graph.dims(stop.regressor)) for stop in stops) / graph.n_images
    known = min(KNOWN_BYTES, n_fitting * FLOAT * streams * len(stops)) if is_shared or method.promises else 0.0
    return shelved + n_fitting * (pixels + FLOAT * (4 * streams + regressor)) + known


def _fold_bytes(units: Sequence[Unit]) -> float:
    """What the sums of a refit take at the most."""
    fold = max((finished_bytes([unit]) + _solution_bytes([unit]) for unit in units if unit.n_regressors), default=0)
    n = min(choose_size(), N_FOLDS)
    return fold * (N_FOLDS + max(SUMMED * n, TOTAL + n))


def _solution_bytes(units: Sequence[Unit]) -> int:
    """Of their last weights in float64."""
    return DOUBLE * sum(unit.n_regressors * (unit.site.last.d_out if unit.site.last else 1) for unit in units)


def _solved_bytes(units: Sequence[Unit], method: Method) -> float:
    """What of that is left once widths are chosen: of fractions it is known, else at the most all of it."""
    rule = method.widths
    if not isinstance(rule, Fractions):
        return _solution_bytes(units)
    return sum((1 - unit.removed(rule)) * _solution_bytes([unit]) for unit in units)


def _tapped_bytes(graph: Graph, units: Sequence[Unit]) -> float:
    """Of everything that calibration exposes, for one image."""
    taps = gather_taps(units)
    names = dict.fromkeys([*taps.tensors, *taps.products])
    return FLOAT * sum(math.prod(graph.dims(name)) for name in names) / graph.n_images
