"""Models of one shape, timed in turns at one place: a machine, a provider, a batch.

On a device with a memory of its own times are without the transfers between it and the host's, as `bench` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from jaxtyping import Float64

from corp_onnx.graph import Graph, Model
from corp_onnx.latency.table import Place
from corp_onnx.latency.turns import SESSION_CONFIG, Ratio, Schedule, paired_ratio, time_turns
from corp_onnx.run.device import DEVICES, bind_device
from corp_onnx.run.noise import fitting_feeds
from corp_onnx.run.runtime import resolve_provider
from corp_onnx.run.sessions import Session, open_session, start_session

TRIAL = Schedule(seconds=6.0)
"""How long a candidate and the dense model are timed: medians of a shared machine move by a percent."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Compared:
    """A model beside the dense one: median seconds of a batch each, and how many times as fast, round by round."""

    dense: float
    other: float
    speedup: Ratio
    rounds: int


@dataclass(frozen=True, slots=True, eq=False)
class Stopwatch:
    """Times models of one shape against each other at one place.

    Attributes:
        graph: of the dense model.
        provider: as a person types it.
    """

    graph: Graph
    provider: str
    place: Place

    @property
    def device(self) -> str | None:
        """The memory that is computed in; None is the host's."""
        return DEVICES.get(resolve_provider(self.provider))

    @property
    def feeds(self) -> Feeds:
        """A batch of noise."""
        axes = [self.graph.dims(name)[1:] for name in self.graph.inputs]
        return fitting_feeds(self.graph.model, self.place.batch, axes)

    def open(self, model: Model) -> Session:
        """A model file."""
        return open_session(
            model, provider=self.provider, threads=self.place.threads, config=SESSION_CONFIG, exact=False
        )

    def start(self, proto: onnx.ModelProto) -> Session:
        """A model rewritten from the dense one, in memory."""
        return start_session(proto, self.graph.model, self.provider, self.place.threads, SESSION_CONFIG, exact=False)

    def time(
        self, sessions: Sequence[Session], schedule: Schedule, progress: Callable[[int, int], None] | None = None
    ) -> Float64[np.ndarray, "rounds sessions"]:
        """Seconds of a batch through each."""
        feeds = self.feeds
        runs = [bind_run(session, feeds, self.device) for session in sessions]
        return time_turns(runs, schedule, progress=progress)

    def compare(self, other: Session) -> Compared:
        """A candidate beside the dense model."""
        seconds = self.time([self.open(self.graph.model), other], TRIAL)
        before, after = (float(s) for s in np.median(seconds, axis=0))
        return Compared(before, after, paired_ratio(seconds[:, 0], seconds[:, 1]), len(seconds))


def bind_run(session: Session, feeds: Feeds, device: str | None) -> Callable[[], object]:
    """A run on a batch, which a device has in its memory already, and where its outputs stay."""
    return partial(session.run, None, feeds) if device is None else bind_device(session, feeds, device).resident
