"""Graph + units + images -> Moments: the model runs on images with the tensors of every unit exposed.

Per batch the exposed activations are folded into running sums and forgotten; nothing of size tokens x width is kept.
Units of tokens: sums run over all images and tokens alike, class token and padding included.
"""

from __future__ import annotations

from collections.abc import Sequence

from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.moments import Moments
from corp_onnx.progress import Count
from corp_onnx.run.pace import choose_pace
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
) -> Moments:
    """The moments of every unit over a set of images, by the unit's key as text.

    Args:
        graph: of the dense model, from `probe_graph`.
        units: what to expose.
        images: unlabelled; float32 or what the model's input takes.
        batch_size: images at a time, in calls side by side (run/pace.py). Has no effect on the result.

    Raises:
        NonFiniteError: an exposed tensor holds NaN or Inf; says which.
    """
    pace = choose_pace(batch_size, graph.n_images if graph.fixed_batch else None, provider)
    tapped = tap_units(graph, units, provider=provider, threads=pace.threads)
    sums = [unit.start_sum() for unit in units]

    def add_up(at: int) -> None:
        for (arrays,), n_real in batches:
            sums[at].update(*units[at].read(arrays, graph, n_real))

    with Crew() as crew:
        for batches in stream_together([tapped], images, pace, crew):
            crew.map(add_up, range(len(units)))
            if progress:
                progress(sum(n_real for _, n_real in batches))
    return Moments(tuple((str(unit.key), sums.pop(0).result()) for unit in units))  # no sum stays beside its moments


def tap_units(
    graph: Graph, units: Sequence[Unit], also: Sequence[str] = (), *, provider: str = "cpu", threads: int | None = None
) -> Tapped:
    """A session of the model with everything exposed that the units' moments are made of, and other tensors."""
    taps = gather_taps(units)
    return open_tapped(
        graph.model, [*taps.tensors, *also], products=list(taps.products.values()), provider=provider, threads=threads,
        types=graph.types,
    )  # fmt: skip
