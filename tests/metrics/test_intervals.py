"""Intervals against their definitions, and how often they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corp_onnx.metrics.intervals import (
    images_needed,
    kept_interval,
    mean_interval,
    paired_interval,
    wilson_interval,
)

Z = 1.959963984540054


class TestWilson:
    @given(st.integers(1, 300), st.floats(0, 1))
    def test_its_ends_are_where_a_share_would_be_z_errors_away(self, n, share) -> None:
        """The definition: p0 is in the interval while |p - p0| <= z sqrt(p0 (1 - p0) / n)."""
        count = round(share * n)
        for end in wilson_interval(count, n):
            if 0 < end < 1:
                assert abs(count / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), rel=1e-6)

    def test_twenty_of_twenty_prove_84_percent(self) -> None:
        assert wilson_interval(20, 20) == (pytest.approx(0.8389, abs=1e-4), 1.0)
        assert wilson_interval(0, 20) == (0.0, pytest.approx(1 - 0.8389, abs=1e-4))

    def test_more_confidence_is_wider(self) -> None:
        assert wilson_interval(90, 100, 0.99)[0] < wilson_interval(90, 100, 0.5)[0] < 0.9

    @pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
    def test_its_lower_end_holds(self, share) -> None:
        """Exactly, over all counts: never in less than 95 of 100 draws above the truth."""
        n = 80
        missed = 0.0
        for count in range(n + 1):
            chance = math.comb(n, count) * share**count * (1 - share) ** (n - count)
            missed += chance * (wilson_interval(count, n)[0] > share)
        assert missed < 0.05


class TestImagesNeeded:
    def test_all_agree(self) -> None:
        """n / (n + z^2) >= wanted."""
        assert images_needed(0.95) == math.ceil(0.95 * Z**2 / 0.05)

    def test_a_share_above_what_is_wanted(self) -> None:
        n = images_needed(0.9, 0.95)
        assert n is not None
        assert wilson_interval(0.95 * n, n)[0] >= 0.9 > wilson_interval(0.95 * (n - 1), n - 1)[0]

    def test_a_share_below_is_never_proven(self) -> None:
        assert images_needed(0.95, 0.95) is None


class TestMean:
    def test_normal_values(self) -> None:
        values = np.random.default_rng(0).normal(3.0, 2.0, 200)
        found = mean_interval(values)
        assert found is not None
        half = Z * values.std(ddof=1) / math.sqrt(200)
        assert found == (
            pytest.approx(values.mean() - half, abs=half / 5), pytest.approx(values.mean() + half, abs=half / 5)
        )  # fmt: skip

    def test_a_long_tail_reaches_further_to_its_side(self) -> None:
        """Cosines: most of them near 1, a few far below."""
        values = 1 - np.random.default_rng(1).exponential(0.02, 40) ** 2 * 20
        found = mean_interval(values)
        assert found is not None
        assert values.mean() - found[0] > found[1] - values.mean()

    def test_it_holds_about_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(2)
        draws = rng.beta(20, 1, (150, 60))
        held = [low <= 20 / 21 <= high for low, high in filter(None, map(mean_interval, draws))]
        assert np.mean(held) > 0.88

    def test_the_same_values_give_the_same_interval(self) -> None:
        values = np.random.default_rng(3).random(50)
        assert mean_interval(values) == mean_interval(values.copy())

    def test_what_does_not_vary_and_what_is_alone(self) -> None:
        assert mean_interval(np.full(5, 0.75)) == (0.75, 0.75)
        assert mean_interval(np.array([0.5])) is None

    def test_of_many_images_it_is_the_normal_one(self) -> None:
        values = np.random.default_rng(4).random(5000)
        found = mean_interval(values)
        assert found is not None
        assert found[1] - found[0] == pytest.approx(2 * Z * values.std(ddof=1) / math.sqrt(5000))

    def test_what_is_kept_is_a_share_or_a_mean(self) -> None:
        ones = np.ones(20)
        assert kept_interval(ones, True) == wilson_interval(20, 20)
        assert kept_interval(ones, False) == (1.0, 1.0)


class TestPaired:
    def test_no_difference_lies_in_the_middle(self) -> None:
        low, high = paired_interval(7, 7, 400)
        assert low == pytest.approx(-high)

    def test_pairs_are_surer_than_two_models_apart(self) -> None:
        """Models that differ on 10 of 400 images: the difference is known better than either share."""
        low, high = paired_interval(2, 8, 400)
        assert low < -6 / 400 < high < 0.0 + 0.005
        apart = wilson_interval(384, 400)
        assert high - low < apart[1] - apart[0]
