"""The smallest model that keeps a share of the dense model's answers, as far as held-back images can prove it.

A share counts as kept where the lower end of its interval reaches what was wanted (metrics/intervals.py): 19 of 20 is
not 95 %. Where there are too few images for that, however they answer, all of them have to agree, and the person is
told how many it takes: fewer images never make for a smaller model. The images that choose here are not those that the
report speaks of.

The search re-uses moments, curves and probes. Two one-shot models say how far off answers are at their sizes, and from
then on every trial, with its refit where there is one, says where the next has to be (aim.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from corp_onnx.errors import OptionError
from corp_onnx.metrics import open_tally
from corp_onnx.metrics.intervals import FEW_MEANS, images_needed, wilson_interval
from corp_onnx.metrics.judgement import Kept
from corp_onnx.results import TriedSize
from corp_onnx.search.aim import Aim, Trial
from corp_onnx.search.problem import Solution
from corp_onnx.search.search import Search
from corp_onnx.settings import Budget

N_TRIALS = 7
"""Models that are tried at most where there is no refit; each costs a rewrite and a run over the images that choose."""

N_REFITS = 3
"""The same with a refit, which costs about two calibrations."""

N_SKETCHES = 2
"""One-shot models that say where the first refit is worth trying."""

REFIT_GAIN = 1.3
"""Times as far off a one-shot model may be as the promise allows, where a refit follows: it takes back about four
tenths of the loss, which goes with the square."""

STEP = 0.006
"""Of the MACs: models are tried half or a whole one above where the promise is expected to hold just so, and none that
is smaller by less, so that what is found is within a percent of the smallest."""


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
    _distances: dict[float, float] = field(default_factory=dict)

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

    def distance(self, fraction: float) -> float:
        """How far off the answers at a fraction are, as probes and curves promise."""
        if fraction >= whole_fraction(self.search):
            return 0.0
        if fraction not in self._distances:
            self._distances[fraction] = math.sqrt(self.search.promise_loss("macs", fraction))
        return self._distances[fraction]

    def sketch(self, fraction: float) -> Trial:
        """A one-shot model."""
        with self.search.problem.run.enter("search"):
            trial = self._judge(fraction, [chooser.sketch("macs", fraction) for chooser in self.choosers])
            return replace(trial, solution=None)

    def one_shot(self, fraction: float) -> Trial:
        """A model that is written as it is."""
        with self.search.problem.run.enter("search"):
            return self._judge(fraction, [chooser.one_shot("macs", fraction) for chooser in self.choosers])

    def refitted(self, fraction: float) -> Trial:
        """A model with its refit."""
        with self.search.problem.run.enter("refit"):
            return self._judge(
                fraction, [chooser.refitted("macs", fraction) for chooser in self.choosers], refitted=True
            )

    def _judge(self, fraction: float, solutions: Sequence[Solution], *, refitted: bool = False) -> Trial:
        """The trial keeps the solution where that is one of the model that will be written."""
        judged = [c.judge_solution(solution) for c, solution in zip(self.choosers, solutions, strict=True)]
        loss = sum(j.loss * j.n_samples for j in judged) / sum(j.n_samples for j in judged)
        own = replace(solutions[0], expected_loss=solutions[0].expected_loss or loss)
        own = own if self.choosers[0] is self.search else None
        kept = join_kept([j.kept for j in judged])
        self.tried.append(TriedSize(float(fraction), kept.mean, self.score(kept), refitted=refitted))
        return Trial(fraction, loss, kept, own)

    def find(self) -> Solution:
        """The smallest kept fraction of the MACs found that keeps the promise on the images that choose.

        Raises:
            OptionError: no smaller model keeps that much.
        """
        whole = whole_fraction(self.search)
        aim = Aim(self.distance, self.score, self.wanted, smallest_fraction(self.search), whole, STEP)
        if self.search.refits:
            sketches = aim.sketch(self.sketch, N_SKETCHES)
            first = aim.next(sketches[-1:], REFIT_GAIN)
            best = aim.search(self.refitted, first, N_REFITS, sketches)
        else:
            best = aim.search(self.one_shot, (aim.smallest + whole) / 2, N_TRIALS)
        if best is None:
            if whole == 1.0:
                raise OptionError(self._describe_failure())
            return Solution({}, (), whole, self._describe(whole, None))
        return replace(best.solution or self._solve(best.fraction), notes=self._describe(best.fraction, best.kept))

    def _solve(self, fraction: float) -> Solution:
        """Of the model that will be written, where folds chose."""
        if self.search.refits:
            return self.search.refitted("macs", fraction)
        return self.search.expect(self.search.one_shot("macs", fraction))

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
    known = [kept.stretch for kept in several if kept.stretch is not None]
    stretch = np.concatenate(known) if len(known) == len(several) else None
    return replace(first, values=np.concatenate([kept.values for kept in several]), stretch=stretch)


def smallest_fraction(search: Search) -> float:
    """The kept fraction of the MACs with every unit at its smallest aligned width, and a little above for rounding."""
    return search.smallest_macs() / search.problem.graph.cost.total + 1e-9


def whole_fraction(search: Search) -> float:
    """The kept fraction of the MACs with every unit at full width: below 1 where tokens are left out."""
    return search.problem.cost.total / search.problem.graph.cost.total
