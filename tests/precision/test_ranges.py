"""How far activations reach: against NumPy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import images_of, probed

from corp_onnx.errors import NonFiniteError
from corp_onnx.precision.products import list_products
from corp_onnx.precision.ranges import N_BINS, ReachSum, collect_reaches
from corp_onnx.run.tapped import open_tapped


def sum_up(*batches: np.ndarray) -> ReachSum:
    running = ReachSum()
    for batch in batches:
        running.add(batch)
    return running


def test_minmax_is_the_mean_over_batches() -> None:
    found = sum_up(np.array([-1.0, 4.0]), np.array([-3.0, 2.0])).result()
    assert found.measure("minmax") == (-2.0, 3.0)


@pytest.mark.parametrize("seed", range(4))
def test_percentile_covers_all_but_one_in_a_hundred_thousand(seed: int) -> None:
    """To a bin, whatever the order in which larger values come."""
    values = np.random.default_rng(seed).standard_cauchy(1_000_000).clip(-1e5, 1e5)
    batches = [values[i::7] for i in range(7)]
    expected = np.sort(np.abs(values))[-11]
    for order in (batches, batches[::-1]):
        reach = sum_up(*order).result()
        low, high = reach.measure("percentile")
        assert low == -high
        assert expected <= high <= expected + 2 * reach.limit / N_BINS
        assert reach.counts.sum() == values.size


def test_joining_bins_loses_nothing() -> None:
    """What was counted in two halves is what is counted at once, where the limits are the same."""
    small, large = np.linspace(0, 1, 501), np.array([16.0])
    reach = sum_up(small, large).result()
    expected = np.histogram(np.concatenate([small, large]), N_BINS, range=(0, reach.limit))[0]
    assert reach.limit == 16
    assert np.abs(np.cumsum(reach.counts) - np.cumsum(expected)).max() <= 1  # a value on an edge


def test_a_range_is_no_larger_than_the_values() -> None:
    low, high = sum_up(np.linspace(-0.17, 5, 1000)).result().measure("percentile")
    assert (low, high) == (pytest.approx(-0.17), 5)


def test_zeros_and_nothing() -> None:
    running = sum_up(np.zeros(5), np.zeros(0))
    assert running.result().measure("percentile") == (0.0, 0.0)
    running.add(np.array([3.0]))
    assert running.result().counts.sum() == 6
    assert running.result().measure("percentile") == (0.0, 3.0)


def test_of_a_model() -> None:
    """Every tensor that a product reads, whatever the batches."""
    graph, _ = probed("timm_vit_ts17_fused")
    names = [p.node.inputs[0] for p in list_products(graph) if not p.reason]
    images, counts = images_of(graph, 6), list[int]()
    found = collect_reaches(graph.model, names, images, batch_size=4, progress=counts.append)
    assert list(found) == list(dict.fromkeys(names))
    assert counts == [4, 2]
    (arrays, _), *_ = open_tapped(graph.model, names).stream(images, 6)
    for name, reach in found.items():
        assert reach.measure("percentile")[1] == pytest.approx(arrays[name].max(), rel=2 / N_BINS, abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(value: float) -> None:
    running = ReachSum("m.onnx: tensor 'hidden'")
    running.add(np.ones(3))
    with pytest.raises(NonFiniteError, match=r"^m\.onnx: tensor 'hidden' holds NaN or Inf on images to calibrate on"):
        running.add(np.array([1.0, value]))
