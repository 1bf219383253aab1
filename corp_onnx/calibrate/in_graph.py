"""The sums of units made inside the graph of the model, where it runs on a device with a memory of its own.

Enters images; leaves running sums as `moments/sums.py` makes them, up to float32 rounding. Activations never leave the
device, and neither do sums before the end: a run adds a batch to accumulators that stay there, in float64
(run/reduced.py). To bring them to the host every few thousand tokens would cost more than to make them.
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
from corp_onnx.moments.tiles import State, inside, under
from corp_onnx.run.reduced import SumPen, open_reduced
from corp_onnx.units import Unit

LOOK_EVERY = 64
"""Images between two looks at the small sums of every unit: what is no number is found long before the end."""


class GraphSums:
    """Sums of units that one session makes together."""

    def __init__(self, graph: Graph, units: Sequence[Unit], provider: str = "cpu") -> None:
        pen = SumPen(graph)
        self._graph = graph
        self._sums = {str(unit.key): unit.write_sum(pen) for unit in units}
        self._shaped = {key: [name for name in pen.shaped if _is_of(key, name)] for key in self._sums}
        self._reduced = open_reduced(pen, provider=provider)
        self._n_unseen = 0

    @property
    def running(self) -> list[_OneSum]:
        """Those of every unit; `update` is not theirs, all of them grow by `fill`. None is kept here: the device's
        memory is to be free as soon as nobody asks."""
        return [_OneSum(self, key, found) for key, found in self._sums.items()]

    def fill(self, images: Images, batch_size: int) -> Iterator[int]:
        """Add images.

        Yields:
            how many, after every batch.

        Raises:
            NonFiniteError: a tensor holds NaN or Inf; when that is looked for.
        """
        for feeds, n_real in self._reduced.stream(images, batch_size):
            if any(found.n_pivot and found.pivot is None for found in self._sums.values()):
                self._find_pivots(feeds, n_real)
            self._add(feeds, n_real)
            yield n_real

    def read(self, key: str) -> dict[str, np.ndarray]:
        """The sums of a unit, on the host."""
        return {name: self._reduced.read(f"{key}/{name}") for name in self._sums[key].shapes}

    def resume(self, key: str, sums: Mapping[str, np.ndarray]) -> None:
        """Set the sums of a unit, whose pivot is known."""
        for name, array in sums.items():
            self._reduced.write(f"{key}/{name}", array)
        self._set_pivot(key)

    def _add(self, feeds: Mapping[str, np.ndarray], n_real: int) -> None:
        shapes = self._reduced.run(feeds, n_real)
        for key, found in self._sums.items():
            found.count([shapes[name] for name in self._shaped[key]], self._real(feeds, n_real))
        self._n_unseen += n_real
        if self._n_unseen >= LOOK_EVERY:
            self._n_unseen = 0
            for key, found in self._sums.items():
                found.require_finite(self._reduced.read(f"{key}/{found.watched}"))

    def _find_pivots(self, feeds: Mapping[str, np.ndarray], n_real: int) -> None:
        """The mean of the first batch, which goes through the model once more for it."""
        shapes = self._reduced.run(feeds, n_real)
        for key, found in self._sums.items():
            if found.n_pivot:
                n_rows = int(shapes[key][0] * self._real(feeds, n_real))
                with np.errstate(over="ignore", invalid="ignore"):
                    found.pivot = (self._reduced.read(f"{key}/total") / n_rows).astype(np.float32)
                self._set_pivot(key)
        self._reduced.clear()

    def _set_pivot(self, key: str) -> None:
        pivot = self._sums[key].pivot
        if pivot is not None:
            self._reduced.write_pivot(f"{key}/pivot", pivot)

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
        return self.found.result(self.together.read(self.key))

    def state(self) -> State:
        """What is known on the host, and the sums."""
        return {**under("host", self.found.state()), **under("sums", self.together.read(self.key))}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.found.restore(inside("host", state))
        self.together.resume(self.key, inside("sums", state))


def _is_of(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}/")
