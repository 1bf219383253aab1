"""Graph + units + images -> Moments: the model runs on images with the tensors of every unit exposed.

Per batch the exposed activations are folded into running sums and forgotten; nothing of size tokens x width is kept.
Units of tokens: sums run over all images and tokens alike, class token and padding included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from corp_onnx.calibrate.checkpoint import Checkpoint, Done
from corp_onnx.calibrate.draw import TokenDraw
from corp_onnx.calibrate.finished import Entries, map_finished, write_finished
from corp_onnx.calibrate.groups import cut_groups
from corp_onnx.calibrate.in_graph import GraphSums
from corp_onnx.graph import Graph
from corp_onnx.images import Images, ImageSet
from corp_onnx.images.open import find_sound
from corp_onnx.moments import AnyMoments, Moments
from corp_onnx.moments.sums import RunningSum
from corp_onnx.progress import Count
from corp_onnx.run.device import DEVICES
from corp_onnx.run.pace import Pace, choose_pace
from corp_onnx.run.runtime import resolve_provider
from corp_onnx.run.tapped import Tapped, open_tapped, stream_together
from corp_onnx.threads import Crew
from corp_onnx.units import Unit, gather_taps

Reducer = Literal["host", "graph"]


def collect_moments(
    graph: Graph,
    units: Sequence[Unit],
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
    checkpoint: Checkpoint | None = None,
    room: int | None = None,
    reducer: Reducer | None = None,
    draw: TokenDraw | None = None,
) -> Moments:
    """The moments of every unit over a set of images, by the unit's key as text.

    Args:
        graph: of the dense model, from `probe_graph`.
        units: what to expose.
        images: unlabelled; float32 or what the model's input takes.
        batch_size: images at a time, in calls side by side (run/pace.py). Has no effect on the result.
        checkpoint: where the run is kept when it is interrupted, and what it goes on from. It stays there afterwards:
            whoever keeps the moments removes it.
        room: bytes that running sums may take: units that need more are collected in several passes (groups.py), and
            the moments' arrays are mapped, from a file without a name or from one beside the checkpoint.
        reducer: where activations are added up: on the host, or inside the graph, so that they stay on a device
            (in_graph.py). None is the graph where the provider is one with a memory of its own.
        draw: some tokens of every image in place of all; on the host.

    Raises:
        NonFiniteError: an exposed tensor holds NaN or Inf; says which.
        InputError: the checkpoint is of something else.
        OutputError: it, or what is mapped, can not be written.
    """
    reducer = reducer or ("host" if draw else choose_reducer(provider))
    fixed = graph.n_images if graph.fixed_batch else None
    pace = Pace(1, fixed or batch_size, None, 1) if reducer == "graph" else choose_pace(batch_size, fixed, provider)
    groups = cut_groups(units, room)
    if room is None:
        found = dict(_Pass(graph, units, images, pace, provider, reducer, draw, progress, checkpoint).collect())
    else:
        found = dict[str, AnyMoments]()
        for at, group in enumerate(groups):
            count = _share_progress(progress, at, len(groups), images.n_images)
            kept = checkpoint.at_pass(at) if checkpoint else None
            found.update(_Pass(graph, group, images, pace, provider, reducer, draw, count, kept).collect_aside())
    return Moments(tuple((str(unit.key), found[str(unit.key)]) for unit in units))


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """All images once, for some units."""

    graph: Graph
    units: Sequence[Unit]
    images: Images
    pace: Pace
    provider: str
    reducer: Reducer
    draw: TokenDraw | None
    progress: Count | None
    checkpoint: Checkpoint | None

    @property
    def about(self) -> dict[str, str]:
        """What has to be as it was for sums to go on to the bit: the units, and where images are cut into calls."""
        return {
            "units": " ".join(str(unit.key) for unit in self.units),
            "images at a time": f"{self.pace.n_batches} x {self.pace.batch_size}",
            "threads of a call": str(self.pace.threads),
            "reducer": self.reducer,
            "tokens of an image": "all" if self.draw is None else str(self.draw.n_tokens),
        }

    def collect(self) -> Entries:
        """The moments, in memory."""
        together = GraphSums(self.graph, self.units, self.provider) if self.reducer == "graph" else None
        sums: list[RunningSum] = [*together.running] if together else [unit.start_sum() for unit in self.units]
        done = self.checkpoint.resume(sums, self.about) if self.checkpoint else Done()
        if done.n_images:
            self._count(done.n_images)
        rest = _leave_out(self.images, done)
        for n_real in together.fill(rest, self.pace.batch_size) if together else self._fill(sums, rest, done.n_images):
            self._count(n_real)
            if self.checkpoint:
                done = Done(done.n_images + n_real, self.images.skipped)
                self.checkpoint.keep(sums, done, self.about)
        keys = [str(unit.key) for unit in self.units]
        if together:  # the sums are not on the host
            with Crew() as crew:
                return tuple(zip(keys, crew.map(lambda running: running.result(), sums), strict=True))
        return tuple((key, sums.pop(0).result()) for key in keys)  # no sum stays beside its moments

    def collect_aside(self) -> Entries:
        """The moments, in a file that is mapped."""
        if self.checkpoint:
            found = self.checkpoint.find_finished(self.about)
            if found is None:
                return self.checkpoint.keep_finished(self.collect(), self.about)
            self._count(self.images.n_images)
            return found
        with TemporaryDirectory(prefix="corp-onnx-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "moments.safetensors"
            write_finished(self.collect(), path, self.about)
            return map_finished(path, self.about)

    def _count(self, n_images: int) -> None:
        if self.progress:
            self.progress(n_images)

    def _fill(self, sums: Sequence[RunningSum], images: Images, first: int) -> Iterator[int]:
        """Add images to the sums.

        Args:
            first: place of the first of them among all images.

        Yields:
            how many were added, whenever every sum holds the same images.
        """
        units, graph = self.units, self.graph
        tapped = tap_units(graph, units, provider=self.provider, threads=self.pace.threads, whole=False)

        def add_up(at: int) -> None:
            place = first
            for (arrays,), n_real in batches:
                values = units[at].read(arrays, graph, n_real)
                sums[at].update(*(self.draw.take(values, n_real, place) if self.draw else values))
                place += n_real

        with Crew() as crew:
            for batches in stream_together([tapped], images, self.pace, crew):
                crew.map(add_up, range(len(units)))
                n_added = sum(n_real for _, n_real in batches)
                first += n_added
                yield n_added


def _share_progress(progress: Count | None, at: int, n_passes: int, n_images: int) -> Count | None:
    """Progress of one of several passes, so that all of them together count every image once."""
    if progress is None:
        return None
    seen = at * n_images

    def count(n: int) -> None:
        nonlocal seen
        before, seen = seen, seen + n
        progress(seen // n_passes - before // n_passes)

    return count


def _leave_out(images: Images, done: Done) -> Images:
    """The images that are not in the sums yet; none of the others is decoded."""
    if not done.n_images:
        return images
    if isinstance(images, ImageSet):
        images.know_skipped(done.skipped)
    return images.select(find_sound(images)[done.n_images :])


def choose_reducer(provider: str) -> Reducer:
    """Where sums are made on a provider: where activations are."""
    return "graph" if resolve_provider(provider) in DEVICES else "host"


def tap_units(
    graph: Graph,
    units: Sequence[Unit],
    also: Sequence[str] = (),
    *,
    provider: str = "cpu",
    threads: int | None = None,
    whole: bool = True,
) -> Tapped:
    """A session of the model with everything exposed that the units' moments are made of, and other tensors.

    Args:
        whole: as in `open_tapped`.
    """
    taps = gather_taps(units)
    return open_tapped(
        graph.model, [*taps.tensors, *also], products=list(taps.products.values()), provider=provider, threads=threads,
        types=graph.types, whole=whole,
    )  # fmt: skip
