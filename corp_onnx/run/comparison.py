"""A converted model against the one it came from: on photographs, or on noise where there are none.

Enters two model files; leaves a `Comparison`. Both sides see the same batches, because a dynamically quantised model
measures its activations over a batch and answers an image a little differently beside other images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from onnx import TensorProto

from corp_onnx.errors import NonFiniteError
from corp_onnx.graph.model import Model, batch_kind
from corp_onnx.images import Images
from corp_onnx.images.open import spread_images
from corp_onnx.metrics import Judgement
from corp_onnx.progress import Count
from corp_onnx.results import CheckResult, Judged, OutputScore
from corp_onnx.run.noise import run_possible
from corp_onnx.run.outputs import LOOKED_AT, find_outputs
from corp_onnx.run.runner import open_runner
from corp_onnx.run.segments import open_segment
from corp_onnx.run.tapped import open_tapped

NOISE_IMAGES = 4
"""Rows of noise where the batch is dynamic."""

TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest accepted difference relative to the largest value, by the precision of the weights: a few hundred roundings
of that precision, since twelve blocks of them add up."""


@dataclass(frozen=True, slots=True)
class Comparison(Judged):
    """How far two models' answers are apart.

    Attributes:
        data: path of the images, or `noise`.
        n_images: images, or rows of noise.
        max_difference: max |z' - z| / max |z| over all outputs (noise) or over the first (images).
        logit_error: |z' - z| / |z| of the same.
        outputs: every output on images, against the source's; nothing on noise.
    """

    data: str
    n_images: int
    max_difference: float
    logit_error: float | None
    outputs: tuple[OutputScore, ...] = ()


def compare_on_images(
    source: Path,
    converted: Path,
    images: Images,
    data: str,
    *,
    batch_size: int,
    progress: Count | None = None,
) -> Comparison:
    """Every output of both models that has a row an image."""
    before, after = open_runner(source), open_runner(converted)
    outputs = find_outputs(before.session, before.session.stream(spread_images(images, LOOKED_AT), batch_size))
    judgement, largest, difference = Judgement(outputs.tasks, outputs.judged), 0.0, 0.0
    names = [tally.task.output for tally in judgement.tallies]
    for batch in images.batches(batch_size):
        expected, found = before.run(batch, names), after.run(batch, names)
        judgement.add(found, expected)
        first = names[0]
        largest = max(largest, float(np.abs(expected[first]).max()))
        difference = max(difference, float(np.abs(found[first] - expected[first]).max()))
        if progress is not None:
            progress(len(batch))
    return Comparison(
        data=data,
        n_images=judgement.n_samples,
        max_difference=difference / (largest or 1.0),
        logit_error=judgement.first.relative_error,
        outputs=judgement.scores(),
    )


def compare_on_noise(source: Model, converted: Model, *, once: bool = False) -> Comparison:
    """Every output of both models on noise (token ids are ones); a float16 input is fed the rounded noise.

    Args:
        once: both graphs as they stand, without the passes of ONNX Runtime (`start_session`).

    Raises:
        NonFiniteError: the source's own answers are not finite.
    """
    n_images = batch_kind(source) or NOISE_IMAGES
    feeds, expected = run_possible(source, n_images, open_tapped(source, [], once=once).run)
    expected = {name: array.copy() for name, array in expected.items()}  # what ONNX Runtime gives keeps its session
    after = open_tapped(converted, [], once=once)
    halves = {i.name for i in after.session.inputs if i.dtype == np.float16}
    found = after.run({k: v.astype(np.float16) if k in halves else v for k, v in feeds.items()})
    bad = next((name for name, array in expected.items() if not np.isfinite(array.astype(np.float64)).all()), None)
    if bad is not None:
        raise NonFiniteError(f"{source.path}: output '{bad}' holds NaN or Inf on noise, which nothing compares with.")
    z, z_new = join_outputs(expected), join_outputs(found)
    if z.shape != z_new.shape or not np.isfinite(z_new).all():
        return Comparison("noise", n_images, float("inf"), None)
    error = float(np.linalg.norm(z_new - z) / (np.linalg.norm(z) or 1.0))
    return Comparison("noise", n_images, float(np.abs(z_new - z).max() / (np.abs(z).max() or 1.0)), error)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|; infinite where shapes differ or a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / scale


def run_outputs(
    model: Model, feeds: Mapping[str, np.ndarray], provider: str = "cpu",
    given: Mapping[str, np.ndarray] | None = None, *, once: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Every output of a model by its name, in the model's order.

    Args:
        given: integer tensors of the graph that are to be these instead of what it computes.
        once: as in `start_session`.
    """
    if not given:
        return open_tapped(model, [], provider=provider, once=once).run(feeds)
    types = dict.fromkeys(given, int(TensorProto.INT64))
    names = [o.name for o in model.proto.graph.output]
    return open_segment(model, types, [], names, given=list(given), provider=provider, once=once).run(
        {}, {**feeds, **given}
    )


def run_whole(
    model: Model, feeds: Mapping[str, np.ndarray], provider: str = "cpu", given: Mapping[str, np.ndarray] | None = None
) -> Float64[np.ndarray, " n"]:
    """Every output in one row of a model that is asked once; `given` as for `run_outputs`."""
    return join_outputs(run_outputs(model, feeds, provider, given, once=True))


def join_outputs(outputs: Mapping[str, np.ndarray]) -> Float64[np.ndarray, " n"]:
    """Outputs in one row."""
    return np.concatenate([o.astype(np.float64).ravel() for o in outputs.values()])


def compare_arrays(name: str, found: np.ndarray, expected: np.ndarray, precision: str, detail: str) -> CheckResult:
    """A check that two results are the same within the rounding of a precision."""
    difference, tolerance = relative_difference(found, expected), TOLERANCE[precision]
    return CheckResult(name, bool(difference <= tolerance), difference, tolerance, detail)


def read_choices(
    model: Model, names: Sequence[str], feeds: Mapping[str, np.ndarray], provider: str = "cpu"
) -> dict[str, np.ndarray]:
    """What a model chooses for a batch: integer tensors of its graph (`Pass.choices`), for `run_whole`."""
    if not names:
        return {}
    arrays = open_tapped(model, names, provider=provider, once=True).run(feeds)
    return {name: arrays[name].astype(np.int64) for name in names}


def compare_answers(
    name: str, found: Model, expected: Model, feeds: Mapping[str, np.ndarray], precision: str, detail: str,
    provider: str = "cpu", choices: Sequence[str] = (),
) -> CheckResult:  # fmt: skip
    """A check that two models give the same outputs for a batch.

    Args:
        choices: integer tensors of both that rounding may turn: the second takes those of the first.
    """
    given = read_choices(found, choices, feeds, provider)
    pair = run_whole(found, feeds, provider, given), run_whole(expected, feeds, provider, given)
    return compare_arrays(name, *pair, precision, detail)
