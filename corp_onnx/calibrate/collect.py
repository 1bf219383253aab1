"""Graph + units + images -> Moments: the model runs on images with the tensors of every unit exposed.

Per batch the exposed activations are folded into running sums and forgotten; nothing of size tokens x width is kept.
Units of tokens: sums run over all images and tokens alike, class token and padding included.
"""

from __future__ import annotations

from collections.abc import Sequence

from corp_onnx.graph import Graph
from corp_onnx.images import Images
from corp_onnx.moments import Moments
from corp_onnx.moments.sums import PooledSum
from corp_onnx.progress import Count
from corp_onnx.run.tapped import Tapped, open_tapped
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
        batch_size: images at a time; a model of a smaller fixed batch is run for as many before they are added up. Has
            no effect on the result.

    Raises:
        NonFiniteError: an exposed tensor holds NaN or Inf; says which.
    """
    sums = _fill_sums(graph, units, images, batch_size, provider, progress)
    return Moments(tuple((str(unit.key), sums.pop(0).result()) for unit in units))  # no sum stays beside its moments


def _fill_sums(
    graph: Graph, units: Sequence[Unit], images: Images, batch_size: int, provider: str, progress: Count | None
) -> list[PooledSum]:
    sums = [PooledSum(unit.start_sum(), batch_size) for unit in units]
    for arrays, n_real in tap_units(graph, units, provider=provider).stream(images, batch_size):
        for unit, running in zip(units, sums, strict=True):
            running.update(n_real, *unit.read(arrays, graph, n_real))
        if progress:
            progress(n_real)
    return sums


def tap_units(graph: Graph, units: Sequence[Unit], *, provider: str = "cpu") -> Tapped:
    """A session of the model with everything exposed that the units' moments are made of."""
    taps = gather_taps(units)
    return open_tapped(graph.model, taps.tensors, products=list(taps.products.values()), provider=provider)
