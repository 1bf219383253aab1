"""Few images that both fit and choose, without choosing on what was fitted: cross-fitting.

The calibration images are cut into N_FOLDS; the search of a fold knows the moments of the others and is asked on its
own. What such models keep together tells which size the model of all images may have: it saw more of them, so it keeps
at least as much in the mean. Enters a problem; leaves one for every fold.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from corp_onnx.images.open import find_sound
from corp_onnx.search.problem import Problem
from corp_onnx.search.statistics import collect_statistics

N_FOLDS = 2
"""A fold costs moments, curves and probes of its own, on a part of few images."""


def cut_folds(problem: Problem) -> tuple[Problem, ...]:
    """A problem for every fold, judged on images that its moments do not know; none of fewer than two images a fold."""
    images, p = problem.calibration, problem
    order = np.random.default_rng(p.seed).permutation(find_sound(images))
    if len(order) < 2 * N_FOLDS:
        return ()
    found: list[Problem] = []
    for i, fold in enumerate(np.array_split(order, N_FOLDS)):
        rest = images.select(np.sort(np.setdiff1d(order, fold)))
        findings = p.findings.part(f"fold {i} of seed {p.seed}")
        known = collect_statistics(
            p.graph, p.blocks, p.units, p.sites, p.method, rest, findings, batch_size=p.batch_size,
            provider=p.provider, room=p.room,
        )  # fmt: skip
        found.append(
            replace(
                p, moments=known.moments, importances=known.importances, metrics=known.metrics, calibration=rest,
                judging=images.select(np.sort(fold)), findings=findings,
            )
        )  # fmt: skip
    return tuple(found)
