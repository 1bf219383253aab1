"""Graph + units + images -> Moments: the model runs on images with the tensors of every unit exposed.

Per batch the exposed activations are folded into running sums and forgotten; nothing of size tokens x width is kept.
Units of tokens: sums run over all images and tokens alike, class token and padding included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from corp_onnx.calibrate.checkpoint import Checkpoint, Done
from corp_onnx.graph import Graph
from corp_onnx.images import Images, ImageSet
from corp_onnx.images.open import find_sound
from corp_onnx.moments import Moments
from corp_onnx.moments.sums import RunningSum
from corp_onnx.progress import Count
from corp_onnx.run.pace import Pace, choose_pace
from corp_onnx.run.tapped import Tapped, open_tapped, stream_together
from corp_onnx.threads import Crew
from corp_onnx.units import Unit, gather_taps


def collect_moments(
    graph: Graph,
    units: Sequence[Unit],
    images: Images,
    *,
    batch_size: int = 8,
    provider: str = "cpu",
    progress: Count | None = None,
    checkpoint: Checkpoint | None = None,
) -> Moments:
    """The moments of every unit over a set of images, by the unit's key as text.

    Args:
        graph: of the dense model, from `probe_graph`.
        units: what to expose.
        images: unlabelled; float32 or what the model's input takes.
        batch_size: images at a time, in calls side by side (run/pace.py). Has no effect on the result.
        checkpoint: where the run is kept when it is interrupted, and what it goes on from. It stays there afterwards:
            whoever keeps the moments removes it.

    Raises:
        NonFiniteError: an exposed tensor holds NaN or Inf; says which.
        InputError: the checkpoint is of something else.
        OutputError: it can not be written.
    """
    pace = choose_pace(batch_size, graph.n_images if graph.fixed_batch else None, provider)
    sums = [unit.start_sum() for unit in units]
    about = _describe_sums(units, pace)
    done = checkpoint.resume(sums, about) if checkpoint else Done()
    if progress and done.n_images:
        progress(done.n_images)
    rest = _leave_out(images, done)
    for n_real in _fill_sums(sums, graph, units, rest, pace, provider):
        if progress:
            progress(n_real)
        if checkpoint:
            done = Done(done.n_images + n_real, images.skipped)
            checkpoint.keep(sums, done, about)
    return Moments(tuple((str(unit.key), sums.pop(0).result()) for unit in units))  # no sum stays beside its moments


def _fill_sums(
    sums: Sequence[RunningSum], graph: Graph, units: Sequence[Unit], images: Images, pace: Pace, provider: str
) -> Iterator[int]:
    """Add all images to the sums of the units.

    Yields:
        how many were added, whenever every sum holds the same images.
    """
    tapped = tap_units(graph, units, provider=provider, threads=pace.threads)

    def add_up(at: int) -> None:
        for (arrays,), n_real in batches:
            sums[at].update(*units[at].read(arrays, graph, n_real))

    with Crew() as crew:
        for batches in stream_together([tapped], images, pace, crew):
            crew.map(add_up, range(len(units)))
            yield sum(n_real for _, n_real in batches)


def _describe_sums(units: Sequence[Unit], pace: Pace) -> dict[str, str]:
    """What has to be as it was for sums to go on to the bit: the units, and where images are cut into calls."""
    return {
        "units": " ".join(str(unit.key) for unit in units),
        "images at a time": f"{pace.n_batches} x {pace.batch_size}",
        "threads of a call": str(pace.threads),
    }


def _leave_out(images: Images, done: Done) -> Images:
    """The images that are not in the sums yet; none of the others is decoded."""
    if not done.n_images:
        return images
    if isinstance(images, ImageSet):
        images.know_skipped(done.skipped)
    return images.select(find_sound(images)[done.n_images :])


def tap_units(
    graph: Graph, units: Sequence[Unit], also: Sequence[str] = (), *, provider: str = "cpu", threads: int | None = None
) -> Tapped:
    """A session of the model with everything exposed that the units' moments are made of, and other tensors."""
    taps = gather_taps(units)
    return open_tapped(
        graph.model, [*taps.tensors, *also], products=list(taps.products.values()), provider=provider, threads=threads,
        types=graph.types,
    )  # fmt: skip
