"""The sums of units made inside the graph of the model, where it runs on a device with a memory of its own.

Enters images; leaves running sums as `moments/sums.py` makes them, up to float32 rounding. Activations never leave the
device: a run adds a batch to accumulators that stay there, and every few thousand tokens they come to the host and go
on in float64 (moments/gathered.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.moments import AnyMoments
from corp_onnx.moments.gathered import GatheredSum
from corp_onnx.moments.tiles import FLUSH_ROWS, State, inside, under
from corp_onnx.run.reduced import SumPen, open_reduced
from corp_onnx.units import Unit


class GraphSums:
    """Sums of units that one session makes together.

    Attributes:
        running: of every unit; `update` is not theirs, all of them grow by `fill`.
    """

    def __init__(self, graph: Graph, units: Sequence[Unit], provider: str = "cpu") -> None:
        pen = SumPen(graph)
        self._graph = graph
        self._sums = {str(unit.key): unit.write_sum(pen) for unit in units}
        self._shaped = {key: [name for name in pen.shaped if _is_of(key, name)] for key in self._sums}
        self._reduced = open_reduced(pen, provider=provider)
        self._n_recent = 0
        self.running = [_OneSum(self, key, found) for key, found in self._sums.items()]

    def fill(self, images: Images, batch_size: int) -> Iterator[int]:
        """Add images.

        Yields:
            how many, after every batch.

        Raises:
            NonFiniteError: a tensor holds NaN or Inf; when it comes to the host.
        """
        for feeds, n_real in self._reduced.stream(images, batch_size):
            if any(found.n_pivot and found.pivot is None for found in self._sums.values()):
                self._find_pivots(feeds, n_real)
            self._add(feeds, n_real)
            yield n_real

    def flush(self) -> None:
        """All that is on the device goes into float64 on the host."""
        if self._n_recent:
            for key, found in self._sums.items():
                found.take(self.recent(key))
            self._reduced.clear()
            self._n_recent = 0

    def recent(self, key: str) -> dict[str, np.ndarray]:
        """The accumulators of a unit, on the host."""
        return {name: self._reduced.read(f"{key}/{name}") for name in self._sums[key].shapes}

    def resume(self, key: str, recent: Mapping[str, np.ndarray], n_recent: int) -> None:
        """Set the accumulators of a unit, of so many tokens together with all others."""
        self._n_recent = n_recent
        for name, array in recent.items():
            self._reduced.write(f"{key}/{name}", array)
        pivot = self._sums[key].pivot
        if pivot is not None:
            self._reduced.write(f"{key}/pivot", pivot)

    @property
    def n_recent(self) -> int:
        """Tokens that are in the accumulators."""
        return self._n_recent

    def _add(self, feeds: Mapping[str, np.ndarray], n_real: int) -> None:
        shapes = self._reduced.run(feeds, n_real)
        self._n_recent += max(
            found.count([shapes[name] for name in self._shaped[key]], self._real(feeds, n_real))
            for key, found in self._sums.items()
        )
        if self._n_recent >= FLUSH_ROWS:
            self.flush()

    def _find_pivots(self, feeds: Mapping[str, np.ndarray], n_real: int) -> None:
        """The mean of the first batch, which goes through the model once more for it."""
        shapes = self._reduced.run(feeds, n_real)
        for key, found in self._sums.items():
            if found.n_pivot:
                n_rows = int(shapes[key][0] * self._real(feeds, n_real))
                with np.errstate(over="ignore", invalid="ignore"):
                    found.pivot = (self._reduced.read(f"{key}/total").astype(np.float64) / n_rows).astype(np.float32)
                self._reduced.write(f"{key}/pivot", found.pivot)
        self._reduced.clear()

    def _real(self, feeds: Mapping[str, np.ndarray], n_real: int) -> Fraction:
        """The part of a batch that is no filling."""
        return Fraction(n_real, self._graph.n_images if self._graph.fixed_batch else len(next(iter(feeds.values()))))


@dataclass(frozen=True, slots=True, eq=False)
class _OneSum:
    """That of one unit, as a running sum."""

    together: GraphSums
    key: str
    found: GatheredSum

    def update(self, *values: Any) -> None:
        raise NotImplementedError("sums in a graph are filled together")

    def result(self) -> AnyMoments:
        """The moments of everything seen."""
        self.together.flush()
        return self.found.result()

    def state(self) -> State:
        """What is on the host, and what is not yet."""
        recent, n_recent = self.together.recent(self.key), np.array([self.together.n_recent])
        return {**under("host", self.found.state()), **under("recent", recent), "n_recent": n_recent}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.found.restore(inside("host", state))
        self.together.resume(self.key, inside("recent", state), int(state["n_recent"][0]))


def _is_of(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}/")
