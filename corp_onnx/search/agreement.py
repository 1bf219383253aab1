"""The smallest model that keeps a share of the dense model's answers, on held-back images.

The search re-uses moments, curves and probes; a step costs a rewrite and a run over the held-back images, and a refit
where it has to be exact.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from corp_onnx.errors import OptionError
from corp_onnx.search.problem import Solution
from corp_onnx.search.search import Search

N_SEARCH = 7
"""Bisections of the kept fraction by agreement of the one-shot solution: to less than one percent of the MACs."""

N_REFIT_SEARCH = 3
"""Refits that the search may spend; each costs about two calibrations."""

FIRST_STEP = 0.02
"""Of the MACs, below the whole model: where the search with refits begins if one-shot agreement ends above."""

MIN_STEP = 0.005
"""Of the MACs; a finer search is below what alignment to 8 can follow."""


def search_agreement(search: Search, wanted: float) -> Solution:
    """The smallest kept fraction of the MACs found whose agreement on the held-back images is at least `wanted`.

    First by bisection without refit; then, where there is a refit, by up to N_REFIT_SEARCH solutions with it below
    that, guided by what the refit gained: the smallest that still agrees is taken.

    Raises:
        OptionError: no smaller model agrees that much.
    """
    low, high = smallest_fraction(search), whole_fraction(search)
    curve = {high: 1.0}
    for _ in range(N_SEARCH):
        middle = (low + high) / 2
        curve[middle] = search.agreement(search.one_shot("macs", middle))
        low, high = (low, middle) if curve[middle] >= wanted else (middle, high)
    if not search.refits:
        if high == 1.0:
            raise OptionError(_nothing_found(search, wanted))
        return replace(search.one_shot("macs", high), notes=(_found(search, high, curve[high]),))
    return _search_refitted(search, wanted, curve, high)


def _search_refitted(search: Search, wanted: float, curve: dict[float, float], start: float) -> Solution:
    """Try refitted solutions from where one-shot agreement ends, going down while they agree, up when they do not."""
    fractions = np.array(sorted(curve))
    agreements = np.maximum.accumulate([curve[f] for f in fractions])
    below, above = smallest_fraction(search), whole_fraction(search)
    best: tuple[Solution, float] | None = None
    trial = min(start, above - FIRST_STEP)
    for _ in range(N_REFIT_SEARCH):
        solution = search.refitted("macs", trial)
        found = search.agreement(solution)
        if found >= wanted:
            best, above = (solution, found), trial
        else:
            below = trial
        gain = found - float(np.interp(trial, fractions, agreements))
        aim = float(np.interp(wanted - gain, agreements, fractions))
        trial = aim if below < aim < above else (below + above) / 2
        if above - below < MIN_STEP:
            break
    if best is None and whole_fraction(search) == 1.0:
        raise OptionError(_nothing_found(search, wanted))
    solution, agreement = best or (Solution({}, (), whole_fraction(search)), 1.0)
    assert solution.kept_fraction is not None
    return replace(solution, notes=(_found(search, solution.kept_fraction, agreement),))


def smallest_fraction(search: Search) -> float:
    """The kept fraction of the MACs with every unit at its smallest aligned width, and a little above for rounding."""
    return search.smallest_macs() / search.problem.graph.cost.total + 1e-9


def whole_fraction(search: Search) -> float:
    """The kept fraction of the MACs with every unit at full width: below 1 where tokens are left out."""
    return search.problem.cost.total / search.problem.graph.cost.total


def _found(search: Search, fraction: float, agreement: float) -> str:
    n = search.judge.n_images
    return f"{fraction:.1%} of the MACs keep {agreement:.1%} of the answers on {n} held-back images."


def _nothing_found(search: Search, wanted: float) -> str:
    n = search.judge.n_images
    return (
        f"--min-agreement {wanted:g}: no smaller model agrees that much with the dense one on {n} held-back images. "
        "Ask for less, give more calibration images, or give --macs."
    )
