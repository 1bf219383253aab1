"""Dense against pruned on held-back images: the error of every unit, of the residual stream, and of the answers.

A unit's error is measured on the dense model's own activations, so that it says what this unit lost and not what came
in from before. Enters the dense graph, the units' plans and the written file; leaves `results` values.
"""

from __future__ import annotations

import numpy as np

from corp_onnx.blocks import Blocks
from corp_onnx.checks.disagreement import Disagreements
from corp_onnx.checks.sides import Asked, Side
from corp_onnx.checks.unit_errors import UnitErrors
from corp_onnx.findings import Findings
from corp_onnx.graph import Graph, Model
from corp_onnx.images import Images
from corp_onnx.metrics import Judgement
from corp_onnx.metrics.intervals import images_needed
from corp_onnx.metrics.judgement import Kept
from corp_onnx.progress import Count
from corp_onnx.results import CheckResult, HeldOut, Promise
from corp_onnx.run.outputs import Outputs
from corp_onnx.settings import CONFIDENCE, Budget
from corp_onnx.shelf import Shelf
from corp_onnx.tokens.liveness import TokenTrim
from corp_onnx.units.taps import read_tokens

MAX_SURPRISE = 3.0
"""Times the loss that the search saw; a refit whose rows do not correspond gives ten to a hundred times."""

CLASS_SLACK, SLACK = 0.05, 0.01
"""Added to that, of classes in nats, else in 1 - cosine or squared relative error: below it the two differ by which
images are asked."""


def measure_model(
    graph: Graph, blocks: Blocks, pruned: Model, images: Images, outputs: Outputs, errors: UnitErrors, *,
    apart: Disagreements | None = None, promised: Budget | None = None, confidence: float = CONFIDENCE,
    trim: TokenTrim | None = None, n_special: int = 0, batch_size: int = 8, provider: str = "cpu",
    shelf: Shelf | None = None, findings: Findings | None = None, progress: Count | None = None,
) -> HeldOut:  # fmt: skip
    """How far every output of the pruned file moved, and on the first images the error of the residual stream by depth.

    Args:
        errors: of the units that were planned, filled on the way.
        apart: which images moved most, filled on the way.
        promised: what was asked to be kept.
        trim: the tokens that the pruned file does not compute, from `LeaveOutTokens`; the others are compared.
        n_special: leading tokens that never merge; where others have, these are compared, or the mean of all.
        shelf: where the dense model's streams lie where there is no memory for both models; it goes first then.
        findings: what is known of the dense model on these images, or is to be; where others are measured on them too,
            all that it gives.

    Raises:
        NonFiniteError: an output of either model holds NaN or Inf.
    """
    streams = [b.stream for b in blocks.blocks if b.stream is not None]
    judgement, off = Judgement(outputs.tasks, outputs.judged), np.zeros((len(streams), 2))

    def compare(expected: Side, found: Side) -> None:
        judgement.add(found.answers, expected.answers)
        if apart is not None:
            apart.add(found.answers, expected.answers)
        errors.add(expected.energies)
        for row, name in zip(off, streams if expected.streams else (), strict=False):
            dense = expected.streams[name]
            pair = _match_tokens(dense if trim is None else trim.select(name, dense), found.streams[name], n_special)
            row += _compare_streams(*(read_tokens(array, graph, found.n_real) for array in pair))
        if progress:
            progress(found.n_real)

    asked = Asked(graph, pruned, errors, outputs, streams, images, batch_size, provider, findings or Findings())
    for expected, found in asked.ask(shelf):
        compare(expected, found)
    return HeldOut(
        n_images=judgement.n_samples,
        outputs=judgement.scores(confidence),
        promise=make_promise(judgement.kept, promised, confidence),
        loss=judgement.loss,
        stream_error=tuple(float(np.sqrt(e / r)) if r else 0.0 for e, r in off),
    )


def _compare_streams(reference: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Squares of the difference and of the reference."""
    difference = (found - reference).reshape(-1)
    return float(difference @ difference), float(np.vdot(reference, reference))


def _match_tokens(dense: np.ndarray, cut: np.ndarray, n_special: int) -> tuple[np.ndarray, np.ndarray]:
    """Both streams of the tokens that correspond: all, or behind a merge the special ones, or their mean."""
    if dense.shape == cut.shape:
        return dense, cut
    if n_special:
        return dense[:, :n_special], cut[:, :n_special]
    return dense.mean(axis=1, keepdims=True), cut.mean(axis=1, keepdims=True)


def make_promise(kept: Kept, promised: Budget | None, confidence: float = CONFIDENCE) -> Promise:
    """What may be said of other images, and what is missing for what was asked."""
    interval, n = kept.interval(confidence), len(kept.values)
    low, high = interval if interval is not None else (None, None)
    wanted = promised.value if promised is not None and promised.kind in ("agreement", "similarity") else None
    note = ""
    if wanted is not None and promised is not None and (low is None or low < wanted):
        needed = images_needed(wanted, kept.mean, confidence) if kept.is_share else None
        note = f"--min-{promised.kind} {wanted:g} is not proven by the {n} images that chose nothing" + (
            f": at this {kept.name} it takes {needed} of them." if needed else "; ask for less, or give more images."
        )
    return Promise(kept.name, kept.mean, low, high, confidence, n, wanted, note)


def check_expected(held: HeldOut, expected: float | None) -> CheckResult | None:
    """Whether the answers moved about as far as the search foresaw; None where it foresaw nothing.

    Args:
        expected: loss of the solution on the images that judged it, before a refit, which is to lower it.
    """
    if expected is None:
        return None
    allowed = MAX_SURPRISE * expected + (SLACK if held.agreement is None else CLASS_SLACK)
    detail = f"loss on images that chose nothing, {held.loss:.3g}, where the search saw {expected:.3g}"
    return CheckResult("expected", bool(held.loss <= allowed), held.loss, allowed, detail)
