"""How much a pruned model depends on its calibration: the same cut, again and again.

    depth   the error of every unit alone, and what accumulates in the residual stream
    images  32 calibration images, twice as many, and so on up to all; each holds the ones before
    seeds   several draws of half of the images
    shift   calibrated on images as they are, and changed; each judged on both

The images that judge were never calibrated on, and are the same for all rows of a study.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from corp_onnx.analyze.shift import SHIFTS, shift_images
from corp_onnx.analyze.subject import Cut, Subject
from corp_onnx.analyze.values import DepthRow, Study, StudyName, StudyRow
from corp_onnx.calibrate.data import open_for_model
from corp_onnx.checks.measure import measure_model
from corp_onnx.checks.unit_errors import UnitErrors
from corp_onnx.images import Images, ImageSource, split_holdout
from corp_onnx.images.open import find_sound
from corp_onnx.metrics.judgement import Judgement
from corp_onnx.moments import Moments
from corp_onnx.units import UnitKey

MakeImages: TypeAlias = Callable[[], Images]
"""Gives a set of images when it is asked for."""

FEWEST = 32
"""Calibration images that the study of their number begins with."""

AS_IS = "as they are"
"""Images without a shift."""

HELD_BACK = "held back"
"""Images of the same folder."""

JUDGING_SHARE = 0.25
"""Of another folder that judges; the rest calibrates."""


def run_study(name: StudyName, cut: Cut, n_seeds: int, shift_to: ImageSource | None) -> Study:
    """One study.

    Args:
        n_seeds: draws, in a study of seeds.
        shift_to: other images, in a study of shift; None changes the model's own.
    """
    if name == "depth":
        return study_depth(cut)
    if name == "images":
        return study_images(cut)
    return study_seeds(cut, n_seeds) if name == "seeds" else study_shift(cut, shift_to)


def study_depth(cut: Cut) -> Study:
    """The error of every unit on the dense model's activations, and of the stream behind every block."""
    s, moments = cut.subject, cut.subject.whole.moments
    solution = cut.solve(moments)
    errors = UnitErrors(s.graph, solution.plans)
    with tempfile.TemporaryDirectory() as folder, s.run.enter("judge", s.data.reporting.n_images) as count:
        pruned = cut.pose(moments).finish(solution.changes).write(s.graph, Path(folder) / "cut.onnx")
        held = measure_model(
            s.graph, s.case.blocks, pruned[-1], s.data.reporting, s.case.outputs, errors,
            batch_size=s.settings.batch_size, provider=s.settings.provider, shelf=None if s.has_room else s.shelf,
            progress=count,
        )  # fmt: skip
    found = errors.result()
    streams = [block.idx for block in s.case.blocks.blocks if block.stream is not None]
    behind = dict(zip(streams, held.stream_error, strict=True))
    rows = [_describe_block(block, found, behind.get(block)) for block in sorted({k.site.block for k in found})]
    return Study("depth", depth=tuple(rows), n_judged=held.n_images, kept_name=held.promise.metric)


def _describe_block(block: int, errors: dict[UnitKey, tuple[float, float]], stream: float | None) -> DepthRow:
    own = {key: pair for key, pair in errors.items() if key.site.block == block}
    solved, dropped = zip(*own.values(), strict=True)
    return DepthRow(block, tuple(map(str, own)), solved, dropped, stream)


def study_images(cut: Cut) -> Study:
    """By the number of calibration images; a set is the one before and as many again, so all cost one pass."""
    s = cut.subject
    fitting, evaluator = s.data.fitting, s.judge_on(s.data.reporting)
    order = np.random.default_rng(s.settings.seed).permutation(find_sound(fitting))
    rows: list[StudyRow] = []
    moments: Moments | None = None
    for start, end in _list_pieces(len(order)):
        piece = s.collect(fitting.select(np.sort(order[start:end])), cut.units)
        moments = piece if moments is None else s.join(moments, piece)
        rows.append(_describe(f"{end} images", HELD_BACK, end, s.settings.seed, evaluator.evaluate(cut.make(moments))))
    return Study("images", tuple(rows), n_judged=evaluator.n_images, kept_name=cut.kept_name)


def _list_pieces(n: int) -> list[tuple[int, int]]:
    """0..32, 32..64, 64..128 and so on to n; of fewer than 64, halves and quarters of them."""
    first = FEWEST if n >= 2 * FEWEST else max(1, n // 4)
    ends = [first]
    while ends[-1] * 2 < n:
        ends.append(ends[-1] * 2)
    return list(zip([0, *ends], [*ends, n], strict=True))


def study_seeds(cut: Cut, n_seeds: int) -> Study:
    """Draws of half of the calibration images, by their seed."""
    s = cut.subject
    fitting, evaluator = s.data.fitting, s.judge_on(s.data.reporting)
    sound = find_sound(fitting)
    n = max(1, len(sound) // 2)
    rows: list[StudyRow] = []
    for seed in range(s.settings.seed, s.settings.seed + n_seeds):
        drawn = np.sort(np.random.default_rng(seed).permutation(sound)[:n])
        moments = s.collect(fitting.select(drawn), cut.units)
        rows.append(_describe(f"seed {seed}", HELD_BACK, n, seed, evaluator.evaluate(cut.make(moments))))
    return Study("seeds", tuple(rows), n_judged=evaluator.n_images, kept_name=cut.kept_name)


def study_shift(cut: Cut, shift_to: ImageSource | None) -> Study:
    """Calibrated on images as they are and on others, judged on both."""
    s, seed = cut.subject, cut.subject.settings.seed
    own, judging = s.data.fitting, s.data.reporting
    others: dict[str, tuple[MakeImages, MakeImages]] = (
        _open_others(s, shift_to)
        if shift_to is not None
        else {name: _shift(own, judging, name, seed) for name in SHIFTS}
    )
    judges = {AS_IS: s.judge_on(judging)} | {name: s.judge_on(make()) for name, (_, make) in others.items()}
    rows: list[StudyRow] = []
    for name, make in {AS_IS: lambda: own, **{name: make for name, (make, _) in others.items()}}.items():
        fitted = make()
        made = cut.make(s.whole.moments if name == AS_IS else s.collect(fitted, cut.units))
        for judged in judges if name == AS_IS else (AS_IS, name):
            rows.append(_describe(name, judged, fitted.n_images, seed, judges[judged].evaluate(made)))
    return Study("shift", tuple(rows), n_judged=judging.n_images, kept_name=cut.kept_name)


def _shift(own: Images, judging: Images, name: str, seed: int) -> tuple[MakeImages, MakeImages]:
    """Images that fit and that judge, shifted when they are asked for: all shifts of all of them are a gigabyte."""
    return lambda: shift_images(own, name, seed), lambda: shift_images(judging, name, seed + 1)


def _open_others(subject: Subject, source: ImageSource) -> dict[str, tuple[MakeImages, MakeImages]]:
    """Other images, prepared as the model's own, split."""
    s = subject.settings
    images = open_for_model(
        subject.graph.model, source, s.preprocessing, limit=s.n_images, seed=s.seed, minimum=2
    )  # fmt: skip
    fitted, judged = split_holdout(images, JUDGING_SHARE, s.seed)
    return {"--shift-to": (lambda: fitted, lambda: judged)}


def _describe(fitted: str, judged: str, n: int, seed: int, judgement: Judgement) -> StudyRow:
    return StudyRow(fitted, judged, n, seed, judgement.loss, judgement.kept.mean)
