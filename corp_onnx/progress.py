"""How far a whole run is, and how long it still takes: one owner for every verb.

A verb opens a `Run` on what its caller gave (`follow`), tells it the phases that it will go through (`plan`), each with
a cost relative to one image through the model, and enters and leaves them; inside a phase a `Step` counts. With s_k the
seconds that a unit of cost took so far in work of kind k, what is left is

    sum over planned phases of s_k * cost    +    of the phases that are open: by their count, and by the plan until
                                                  the count has come far enough

s_k of a kind that has not been met yet is that of `ANSWERS`, which most of a prune is made of, or of all work so far.
Entering a phase strikes out what was planned before it: a search that ends early takes its rest with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

Count: TypeAlias = Callable[[int], None]
"""Called with the number of things that have just been done."""

ANSWERS = "answers"
"""The kind of work that others are measured by: a model is written and answers images."""

FULL_TRUST = 0.25
"""Of a phase: from here on its own count says how long it takes, before that the plan does in part."""

MIN_COUNTED = 0.02
"""Of a phase: so much must be counted before it says how fast its kind of work goes; first runs are slow."""

OVERDUE = 0.1
"""Of the time that a phase has taken: what it is said to need still where it should be over already."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run that is to come.

    Attributes:
        cost: of one time, relative to one image through the model.
        kind: of the work; phases of a kind take about the same time for the same cost. Empty: its own.
        times: that it happens at most.
    """

    name: str
    cost: float
    kind: str = ""
    times: int = 1

    @property
    def work(self) -> str:
        """The kind of its work."""
        return self.kind or self.name


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run is.

    Attributes:
        stage: the phase, as `search 3 of at most 7`.
        done: things counted in it; 0 where it does not count.
        total: things that there are; 0 where it does not count.
        things: what they are.
        seconds: since the run began.
        stage_seconds: since the phase began.
        left: seconds that the whole run still takes; None where nothing tells.
    """

    stage: str
    done: int
    total: int
    things: str
    seconds: float
    stage_seconds: float
    left: float | None

    @property
    def share(self) -> float | None:
        """Of the whole run's time that is over."""
        return None if self.left is None else self.seconds / max(self.seconds + self.left, 1e-9)


@dataclass(slots=True, eq=False)
class Step:
    """A phase that is open, which counts: call it with the number of things just done."""

    phase: Phase
    label: str
    total: int
    things: str
    planned: bool
    told: Callable[[Step], None]
    done: int = 0
    seconds: float = 0.0
    since: float = 0.0
    is_muted: bool = False
    first: tuple[int, float] | None = None
    """Things done when it counted for the first time, and its seconds by then."""

    def __call__(self, n: int = 1) -> None:
        """So many more are done."""
        self.at(self.done + n, self.total)

    def at(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        self.done, self.total = done, total
        if not self.is_muted:
            self.told(self)

    @property
    def share(self) -> float:
        """Of what it counts, that is done."""
        return min(self.done / self.total, 1.0) if self.total else 0.0

    def left(self, expected: float, spent: float) -> float:
        """Seconds that are left of it: by the plan at first, by its count later, without what came before that."""
        share = self.share
        if not share:
            return max(expected - spent, OVERDUE * spent)
        counted = spent * (1 - share) / share
        if self.first is not None and self.done > self.first[0]:
            counted = (spent - self.first[1]) / (self.done - self.first[0]) * max(self.total - self.done, 0)
        trust = min(share / FULL_TRUST, 1.0)
        return (1 - trust) * max(expected - spent, 0.0) + trust * counted


@dataclass(frozen=True, slots=True)
class _Pace:
    """Seconds and cost of the work of one kind so far."""

    seconds: float = 0.0
    cost: float = 0.0

    def after(self, seconds: float, cost: float) -> _Pace:
        return _Pace(self.seconds + seconds, self.cost + cost)


@dataclass(slots=True, eq=False)
class Run:
    """A run as its stages report it; without `watch` nobody looks.

    Args:
        watch: called with every `Moment` at which a phase begins or counts, from the thread that works.
        clock: monotonic seconds.
        hear: called with every warning that need not wait for the end.
        note: called with what a person may like to know meanwhile.

    Attributes:
        warned: those warnings.
    """

    watch: Callable[[Moment], None] | None = None
    clock: Callable[[], float] = time.monotonic
    hear: Callable[[str], None] | None = None
    note: Callable[[str], None] | None = None
    warned: list[str] = field(default_factory=list)
    _began: float | None = None
    _plan: list[Phase] = field(default_factory=list)
    _times: dict[str, tuple[int, int]] = field(default_factory=dict)
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _spent: dict[str, float] = field(default_factory=dict)
    _open: list[Step] = field(default_factory=list)

    def plan(self, phases: Sequence[Phase]) -> None:
        """What is to come, in order, in place of what was planned before."""
        self._plan = [replace(phase, times=1) for phase in phases for _ in range(phase.times)]
        self._times = {phase.name: (0, phase.times) for phase in phases}

    def expect(self, phase: Phase, per_cost: float) -> float:
        """Seconds that a phase takes, all its times together, as far as this run tells.

        Those that it took, where it came once and is over; else by the pace of its kind, or of `ANSWERS`.

        Args:
            per_cost: seconds of a unit of cost, where neither has been met.
        """
        if phase.times == 1 and phase.name in self._spent:
            return self._spent[phase.name]
        known = next((self._paces[kind] for kind in (phase.work, ANSWERS) if kind in self._paces), _Pace())
        pace = known.seconds / known.cost if known.cost else per_cost
        return phase.times * phase.cost * pace

    def warn(self, sentences: Iterable[str]) -> None:
        """What a person should know before the work is done: minutes can be saved. Each is said once."""
        for sentence in sentences:
            if sentence not in self.warned:
                self.warned.append(sentence)
                if self.hear is not None:
                    self.hear(sentence)

    def inform(self, sentence: str) -> None:
        """What a person may like to know before the work is done, and is no warning."""
        if self.note is not None:
            self.note(sentence)

    @contextmanager
    def enter(self, name: str, total: int = 0, things: str = "images") -> Iterator[Step]:
        """A phase, until it is left.

        Inside another phase, one of the same name counts for that, one that is not planned is part of it and counts
        nothing, and one that is planned stops the other's clock.

        Args:
            total: things that it will count; 0 where it does not.
        """
        outer = self._open[-1] if self._open else None
        if outer is not None and outer.phase.name == name:
            outer.at(0, total)
            outer.things = things
            yield outer
            return
        step = self._begin(name, total, things, is_inner=outer is not None)
        if step.is_muted:
            yield step
            return
        if outer is not None:
            outer.seconds += self.clock() - outer.since
        self._open.append(step)
        self._tell()
        try:
            yield step
        finally:
            self._leave(step)

    def report(self, name: str, done: int, total: int, things: str) -> None:
        """A phase of work that names its phases itself, and when it counts: the phase before ends where the name is
        another."""
        last = self._open[-1] if self._open else None
        if last is None or last.phase.name != name:
            if last is not None:
                self._leave(last)
            last = self._begin(name, total, things, is_inner=False)
            self._open.append(last)
        last.at(done, total)

    @property
    def moment(self) -> Moment | None:
        """Where it is; None before the first phase and between two."""
        steps, now = tuple(self._open), self.clock()  # another thread may ask, while the run goes on
        if not steps or self._began is None:
            return None
        step, spent = steps[-1], _spent(steps, now)
        return Moment(
            step.label, step.done, step.total, step.things, now - self._began, spent[-1], self._left(steps, spent)
        )

    def _begin(self, name: str, total: int, things: str, *, is_inner: bool) -> Step:
        now = self.clock()
        self._began = now if self._began is None else self._began
        place = next((i for i, phase in enumerate(self._plan) if phase.name == name), None)
        if place is None:
            return Step(Phase(name, 0.0), name, total, things, False, self._hear, since=now, is_muted=is_inner)
        phase = self._plan.pop(place)
        if not is_inner:
            del self._plan[:place]
        n, most = self._times[name]
        self._times[name] = (n + 1, most)
        label = name if most == 1 else f"{name} {n + 1} of at most {most}"
        return Step(phase, label, total, things, True, self._hear, since=now)

    def _leave(self, step: Step) -> None:
        now = self.clock()
        if self._open[-1] is step:
            self._open.pop()
        if self._open:
            self._open[-1].since = now
        step.seconds += now - step.since
        self._spent[step.phase.name] = self._spent.get(step.phase.name, 0.0) + step.seconds
        if step.planned:
            pace = self._paces.get(step.phase.work, _Pace())
            self._paces[step.phase.work] = pace.after(step.seconds, step.phase.cost)

    def _hear(self, step: Step) -> None:
        if step.done and step.first is None:
            step.first = (step.done, step.seconds + self.clock() - step.since)
        self._tell()

    def _tell(self) -> None:
        if self.watch is not None and (moment := self.moment) is not None:
            self.watch(moment)

    def _left(self, steps: Sequence[Step], spent: Sequence[float]) -> float | None:
        """Seconds that the whole run still takes."""
        paces = dict(self._paces)  # those of the phases that are over, and of what is counted in those that are open
        for step, seconds in zip(steps, spent, strict=True):
            if step.planned and step.share >= MIN_COUNTED:
                expected = _expect(step.phase, paces) if _is_measured(paces) else seconds / step.share
                before = paces.get(step.phase.work, _Pace())
                paces[step.phase.work] = before.after(seconds + step.left(expected, seconds), step.phase.cost)
        if not _is_measured(paces):
            return None
        left = sum(_expect(phase, paces) for phase in tuple(self._plan))
        for step, seconds in zip(steps, spent, strict=True):
            left += step.left(_expect(step.phase, paces) if step.planned else 0.0, seconds)
        return left


def _spent(steps: Sequence[Step], now: float) -> list[float]:
    """Seconds of every open phase without those inside it; the clock of the last alone goes on."""
    return [step.seconds + (now - step.since if step is steps[-1] else 0.0) for step in steps]


def _is_measured(paces: dict[str, _Pace]) -> bool:
    return any(pace.cost for pace in paces.values())


def _expect(phase: Phase, paces: dict[str, _Pace]) -> float:
    """Seconds that a phase takes as a whole."""
    for kind in (phase.work, ANSWERS):
        if kind in paces and paces[kind].cost:
            return phase.cost * paces[kind].seconds / paces[kind].cost
    return phase.cost * sum(p.seconds for p in paces.values()) / sum(p.cost for p in paces.values())


Progress: TypeAlias = Callable[[str, int, int], None] | Run
"""What the functions of the package take to tell how far they are: a function (stage, done, total), which is called
whenever a phase begins or counts, `total` 0 where it does not count; or a `Run`, whose `watch` gets a `Moment` with the
estimate of the whole run. Both are called from the thread that works."""


def follow(progress: Progress | None) -> Run:
    """The run that a caller follows."""
    if isinstance(progress, Run):
        return progress
    if progress is None:
        return Run()
    return Run(lambda moment: progress(moment.stage, moment.done, moment.total))
