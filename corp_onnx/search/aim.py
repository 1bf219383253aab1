"""The smallest share of a model that keeps a promise, in few trials: each says how far off the next may be.

A trial is a model that was made and judged. It knows of every image how many times as far off its answers may be until
the image is lost (`Kept.stretched`), and so by how much the whole model may be further off, or has to be nearer, for
the promise to hold just so: a stretch t. How far off models of other sizes are, probes and error curves promise:

    distance(f) ~ sqrt(loss that is promised at f)

so the next trial is at the fraction whose distance is t times that of the last. What the promised distances are worth
is learnt from the trials: the measured loss of two of them says by which power of the promised distance it grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from corp_onnx.metrics.judgement import Kept
from corp_onnx.search.problem import Solution

MOST = 8.0
"""Times as far, or as near, that one trial is trusted to foresee."""

N_HALVINGS = 24
"""Of the search for a stretch or a fraction: finer than anything that can be measured."""

POWERS = (0.5, 2.0)
"""Of the promised distance, by which the measured one may grow; outside of that it is noise."""

LEAST = 1e-9
"""Of a distance: below it is rounding."""

BLUR = 0.02
"""Of the logarithm of a stretch: nearer trials know no better."""

CAUTION = 0.95
"""Of the distance that is aimed at by the last trial, where none kept the promise before: nearer to the dense model. If
that one does not either, there is one more, four times as cautious, before a person is refused."""

MARGIN = 0.5
"""Steps above where the promise is expected to hold just so that a trial is made; where none kept it before, and at the
last, twice as many."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A model that was made: its share of the MACs, its loss and what it keeps on the images that choose."""

    fraction: float
    loss: float
    kept: Kept
    solution: Solution | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """What trials are aimed at.

    Attributes:
        distance: how far off the answers at a fraction are, as probes promise, in a unit of its own; falls with it.
        score: of what is kept; has to reach what is wanted.
        wanted: by the score.
        smallest: the smallest fraction that there is.
        whole: where nothing is lost; not tried.
        step: fractions as near as that are the same.
    """

    distance: Callable[[float], float]
    score: Callable[[Kept], float]
    wanted: float
    smallest: float
    whole: float
    step: float

    def keeps(self, trial: Trial) -> bool:
        """Whether a trial keeps what is wanted."""
        return self.score(trial.kept) >= self.wanted

    def search(
        self, attempt: Callable[[float], Trial], first: float, n_trials: int, sketches: Sequence[Trial] = ()
    ) -> Trial | None:
        """The smallest that keeps what is wanted, of up to so many trials, or one more; None where none of them does.

        Ends early where the next trial would be no smaller than the best by a step.

        Args:
            attempt: makes and judges a model of a fraction.
            first: where to begin.
            sketches: models that tell how losses grow, and nothing else.
        """
        trials: list[Trial] = []
        best: Trial | None = None
        below, above = self.smallest, self.whole
        fraction = max(min(first, above - self.step), below)
        while True:
            trial = attempt(fraction)
            trials.append(replace(trial, solution=None))  # that of the best is enough, and large models have large ones
            if self.keeps(trial):
                best, above = trial, fraction
            else:
                trial, below = trials[-1], fraction
            n_left = n_trials - len(trials)
            if n_left < (1 if best else 0) or above - below < self.step:
                return best
            power = self._learn_power(trials if len(trials) > 1 else sketches)
            caution = 1.0 if n_left > 1 or best else CAUTION if n_left else CAUTION**4
            aimed = self.next(trials, caution, power)
            if best is not None and above - aimed < self.step:
                return best
            margin = (2 * MARGIN if n_left < 2 or best is None else MARGIN) * self.step
            fraction = aimed + margin if aimed > self.smallest else self.smallest
            if not below < fraction < above and not (best is trial and fraction == below):
                fraction = (below + above) / 2

    def sketch(self, attempt: Callable[[float], Trial], n_trials: int) -> list[Trial]:
        """Models that are made to learn from: each nearer to where the promise holds just so."""
        found = [attempt((self.smallest + self.whole) / 2)]
        while len(found) < n_trials:
            fraction = self.next(found[-1:])
            if abs(fraction - found[-1].fraction) < self.step or fraction > self.whole - self.step:
                break
            found.append(attempt(fraction))
        return found

    def next(self, trials: Sequence[Trial], times: float = 1.0, power: float = 1.0) -> float:
        """The fraction at which the promise is expected to hold just so.

        Args:
            trials: that are asked; the nearer one was, the more it counts.
            times: of the distance that is aimed at.
            power: of the promised distance by which the measured one grows.
        """
        stretches = np.log([self.stretch(trial.kept) for trial in trials])
        distances = np.log([max(self.distance(trial.fraction), LEAST) for trial in trials])
        aims = distances + (stretches + math.log(times)) / power
        wanted = math.exp(np.average(aims, weights=1 / (stretches**2 + BLUR**2)))
        low, high = self.smallest, self.whole
        if self.distance(low) <= wanted:
            return low
        for _ in range(N_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.distance(middle) <= wanted else (middle, high)
            if high - low < self.step / 8:
                break
        return high

    def stretch(self, kept: Kept) -> float:
        """How many times as far off a model may be that keeps just what is wanted; above 1 where more is kept."""
        low, high = -math.log(MOST), math.log(MOST)
        for _ in range(N_HALVINGS):
            middle = (low + high) / 2
            holds = self.score(kept.stretched(math.exp(middle))) >= self.wanted
            low, high = (middle, high) if holds else (low, middle)
        return math.exp(low)

    def _learn_power(self, trials: Sequence[Trial]) -> float:
        """By which power of the promised distance the measured one grows; 1 where nothing tells."""
        known = sorted((t for t in trials if t.loss > 0 and self.distance(t.fraction) > 0), key=lambda t: t.fraction)
        if len(known) < 2:
            return 1.0
        first, last = known[0], known[-1]
        promised = math.log(self.distance(first.fraction) / self.distance(last.fraction))
        if promised <= 0:
            return 1.0
        return float(np.clip(math.log(first.loss / last.loss) / 2 / promised, *POWERS))
