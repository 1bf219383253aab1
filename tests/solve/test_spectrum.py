"""Spectra against activations that were kept, and figures against cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from corp_onnx.moments.sums import ChannelSum, LogitSum
from corp_onnx.solve.qk import trace_logit_curve
from corp_onnx.solve.spectrum import (
    channel_spectrum,
    count_directions,
    effective_rank,
    logit_spectrum,
    value_spectrum,
)

RNG = np.random.default_rng(0)


def moments_of(x: np.ndarray) -> ChannelSum:
    found = ChannelSum(x.shape[1])
    found.update(x.astype(np.float32))
    return found


class TestFigures:
    @pytest.mark.parametrize("k", [1, 3, 8])
    def test_k_equal_directions_count_as_k(self, k: int) -> None:
        spectrum = np.array([2.5] * k + [0.0] * (8 - k))
        assert effective_rank(spectrum) == pytest.approx(k)
        assert count_directions(spectrum, 1.0) == k

    def test_a_geometric_spectrum_by_hand(self) -> None:
        """Shares 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits; three quarters are held by two."""
        spectrum = np.array([[4.0, 2.0, 1.0, 1.0]])
        assert effective_rank(spectrum) == pytest.approx(2**1.75)
        assert count_directions(spectrum, 0.75) == 2
        assert count_directions(spectrum, 0.76) == 3
        assert count_directions(spectrum) == 4

    def test_no_energy_is_no_direction(self) -> None:
        assert effective_rank(np.zeros((2, 4))).tolist() == [0, 0]
        assert count_directions(np.zeros(4)) == 0

    def test_neither_depends_on_the_scale(self) -> None:
        spectrum = np.sort(RNG.exponential(size=(3, 12)))[:, ::-1]
        np.testing.assert_allclose(effective_rank(spectrum), effective_rank(1e6 * spectrum))
        np.testing.assert_array_equal(count_directions(spectrum), count_directions(1e-6 * spectrum))


class TestSpectra:
    def test_of_channels_are_squared_singular_values_of_centred_tokens(self) -> None:
        x = RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 7)) + 5.0  # rank 3 about a mean
        found = channel_spectrum(moments_of(x).result())
        expected = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / len(x)
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
        assert count_directions(found, 0.9999) == 3

    def test_of_logits_are_those_of_their_matrices_side_by_side(self) -> None:
        """Pooled Grams: of one image it is the spectrum of its logits with every row centred."""
        q, k = RNG.normal(size=(2, 1, 9, 2, 4)).astype(np.float32)
        sums = LogitSum(2, 4)
        sums.update(q, k)
        moments = sums.result()
        found = logit_spectrum(moments.q_gram, moments.k_centred_gram)
        for h in range(2):
            logits = q[0, :, h] @ (k[0, :, h] - k[0, :, h].mean(axis=0)).T
            np.testing.assert_allclose(found[h], np.linalg.svd(logits, compute_uv=False)[:4] ** 2, rtol=1e-4, atol=1e-6)
        curve = trace_logit_curve(moments.q_gram, moments.k_centred_gram)
        np.testing.assert_allclose(found.sum(axis=0)[::-1].cumsum()[::-1], curve[:-1], rtol=1e-9)

    def test_of_values_are_those_of_what_a_head_writes(self) -> None:
        x, weight = RNG.normal(size=(300, 6)), RNG.normal(size=(5, 6))
        found = value_spectrum(weight, moments_of(x).result(), 2)
        for h in range(2):
            written = (x - x.mean(axis=0))[:, 3 * h : 3 * h + 3] @ weight[:, 3 * h : 3 * h + 3].T
            expected = np.linalg.svd(written, compute_uv=False)[:3] ** 2 / len(x)
            np.testing.assert_allclose(found[h], expected, rtol=1e-4)
