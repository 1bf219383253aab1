"""The smallest model that keeps a share of the dense model's answers, as far as held-back images can prove it.

A share counts as kept where the lower end of its interval reaches what was wanted (metrics/intervals.py): 19 of 20 is
not 95 %. Where there are too few images for that, however they answer, all of them have to agree, and the person is
told how many it takes: fewer images never make for a smaller model. The images that choose here are not those that the
report speaks of.

The search re-uses moments, curves and probes; a step costs a rewrite and a run over the images that choose, and a refit
where it has to be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corp_onnx.errors import OptionError
from corp_onnx.metrics import open_tally
from corp_onnx.metrics.intervals import FEW_MEANS, images_needed, wilson_interval
from corp_onnx.metrics.judgement import Kept
from corp_onnx.results import TriedSize
from corp_onnx.search.problem import Solution
from corp_onnx.search.search import Search
from corp_onnx.settings import Budget

N_SEARCH = 7
"""Bisections of the kept fraction by what one-shot solutions keep: to less than one percent of the MACs."""

N_REFIT_SEARCH = 3
"""Refits that the search may spend; each costs about two calibrations."""

FIRST_STEP = 0.02
"""Of the MACs, below the whole model: where the search with refits begins if the one-shot search ends above."""

MIN_STEP = 0.005
"""Of the MACs; a finer search is below what alignment to 8 can follow."""


@dataclass(frozen=True, slots=True, eq=False)
class PromiseSearch:
    """Searches for what a promise needs.

    Attributes:
        search: of the model that will be written.
        choosers: those whose solutions are tried: the search itself, or its folds where images are few (folds.py).
        budget: what is to be kept.
        confidence: of the interval whose lower end counts.
        tried: the sizes tried so far, in order.
    """

    search: Search
    choosers: tuple[Search, ...]
    budget: Budget
    confidence: float
    tried: list[TriedSize] = field(default_factory=list)

    @property
    def n_images(self) -> int:
        """Images that choose."""
        return sum(chooser.judge.n_images for chooser in self.choosers)

    @property
    def is_share(self) -> bool:
        """Whether an image keeps its answer or does not; else a part of it, as of tokens, or is similar."""
        return all(open_tally(task).is_share for task in self.search.judge.tasks)

    @property
    def n_needed(self) -> int:
        """Images that it takes to prove a share that all of them keep, or a mean."""
        needed = images_needed(self.budget.value, confidence=self.confidence) if self.is_share else None
        return needed or FEW_MEANS

    @property
    def is_provable(self) -> bool:
        """Whether there are enough images."""
        return self.n_images >= self.n_needed

    @property
    def wanted(self) -> float:
        """What the lower end has to reach: what was asked, or the most that so few images can prove."""
        n = self.n_images
        most = wilson_interval(n, n, self.confidence)[0] if self.is_share else 1.0
        return min(self.budget.value, most)

    def score(self, kept: Kept) -> float:
        """What has to reach it."""
        interval = kept.interval(self.confidence)
        return kept.mean if interval is None else interval[0]

    def one_shot(self, fraction: float) -> Kept:
        """What one-shot solutions of a fraction keep."""
        kept = join_kept([chooser.kept(chooser.one_shot("macs", fraction)) for chooser in self.choosers])
        self.tried.append(TriedSize(float(fraction), kept.mean, self.score(kept), refitted=False))
        return kept

    def refitted(self, fraction: float) -> tuple[Solution | None, Kept]:
        """(the model's own refitted solution, where it was made, what such solutions keep)."""
        solutions = [chooser.refitted("macs", fraction) for chooser in self.choosers]
        pairs = zip(self.choosers, solutions, strict=True)
        kept = join_kept([chooser.kept(solution) for chooser, solution in pairs])
        self.tried.append(TriedSize(float(fraction), kept.mean, self.score(kept), refitted=True))
        return (solutions[0] if self.choosers[0] is self.search else None), kept

    def find(self) -> Solution:
        """The smallest kept fraction of the MACs found that keeps the promise on the images that choose.

        First by bisection without refit; then, where there is a refit, by up to N_REFIT_SEARCH solutions with it below
        that, guided by what the refit gained: the smallest that still keeps it is taken.

        Raises:
            OptionError: no smaller model keeps that much.
        """
        low, high = smallest_fraction(self.search), whole_fraction(self.search)
        tried: dict[float, Kept] = {}
        curve = {high: 1.0}
        for _ in range(N_SEARCH):
            middle = (low + high) / 2
            with self.search.problem.run.enter("search"):
                tried[middle] = self.one_shot(middle)
            curve[middle] = self.score(tried[middle])
            low, high = (low, middle) if curve[middle] >= self.wanted else (middle, high)
        if self.search.refits:
            return self._refine(curve, high)
        if high == 1.0:
            raise OptionError(self._describe_failure())
        solution = self.search.expect(self.search.one_shot("macs", high))
        return replace(solution, notes=self._describe(high, tried.get(high)))

    def _refine(self, curve: dict[float, float], start: float) -> Solution:
        """Try refitted solutions from where the one-shot search ends, down while they keep it, up when they do not."""
        fractions = np.array(sorted(curve))
        scores = np.maximum.accumulate([curve[f] for f in fractions])
        below, above = smallest_fraction(self.search), whole_fraction(self.search)
        best: tuple[float, Solution | None, Kept] | None = None
        trial = min(start, above - FIRST_STEP)
        for _ in range(N_REFIT_SEARCH):
            with self.search.problem.run.enter("refit"):
                solution, kept = self.refitted(trial)
            found = self.score(kept)
            if found >= self.wanted:
                best, above = (trial, solution, kept), trial
            else:
                below = trial
            gain = found - float(np.interp(trial, fractions, scores))
            aim = float(np.interp(self.wanted - gain, scores, fractions))
            trial = aim if below < aim < above else (below + above) / 2
            if above - below < MIN_STEP:
                break
        if best is None:
            if whole_fraction(self.search) == 1.0:
                raise OptionError(self._describe_failure())
            whole = whole_fraction(self.search)
            return Solution({}, (), whole, self._describe(whole, None))
        fraction, solution, kept = best
        return replace(solution or self.search.refitted("macs", fraction), notes=self._describe(fraction, kept))

    def _describe(self, fraction: float, kept: Kept | None) -> tuple[str, ...]:
        """What was found, and where it falls short of a proof."""
        wanted, name = self.budget.value, f"--min-{self.budget.kind}"
        found = "all answers" if kept is None else self._spell(kept)
        notes = [f"{fraction:.1%} of the MACs keep {found} on the {self.n_images} images that chose the size."]
        if not self.is_provable:
            even, taken = (
                (", even if all of them agree", " The smallest model on which all of them agree is taken.")
                if self.is_share
                else ("", "")
            )
            notes.append(
                f"{name} {wanted:g} can not be proven by {self.n_images} images{even}: that takes {self.n_needed}."
                f"{taken}"
            )
        return tuple(notes)

    def _spell(self, kept: Kept) -> str:
        is_agreement = self.budget.kind == "agreement"
        return f"{kept.mean:.1%} of the answers" if is_agreement else f"a {kept.name} of {kept.mean:.3f}"

    def _describe_failure(self) -> str:
        return (
            f"--min-{self.budget.kind} {self.budget.value:g}: no smaller model keeps that much of the dense one on "
            f"{self.n_images} held-back images. Ask for less, give more calibration images, or give --macs."
        )


def join_kept(several: Sequence[Kept]) -> Kept:
    """What several models keep, each on images of its own."""
    first = several[0]
    return replace(first, values=np.concatenate([kept.values for kept in several]))


def smallest_fraction(search: Search) -> float:
    """The kept fraction of the MACs with every unit at its smallest aligned width, and a little above for rounding."""
    return search.smallest_macs() / search.problem.graph.cost.total + 1e-9


def whole_fraction(search: Search) -> float:
    """The kept fraction of the MACs with every unit at full width: below 1 where tokens are left out."""
    return search.problem.cost.total / search.problem.graph.cost.total
