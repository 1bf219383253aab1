"""Softmax, divergence and ranks against naive oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import naive_kl, naive_rank

from corp_onnx.metrics.logits import (
    kl_divergence,
    log_softmax,
    rank_of_label,
    read_probabilities,
    stretch_to_change,
)

rows = st.lists(st.integers(-4, 4), min_size=3, max_size=3)


@given(st.lists(st.tuples(rows, rows, st.integers(0, 2)), min_size=1, max_size=6))
def test_metrics_are_those_of_the_naive_oracle(samples):
    reference = np.array([s[0] for s in samples], dtype=np.float64)
    logits = np.array([s[1] for s in samples], dtype=np.float64)
    labels = np.array([s[2] for s in samples])
    expected = [naive_kl(a, b) for a, b in zip(reference, logits, strict=True)]
    np.testing.assert_allclose(kl_divergence(reference, logits), expected, atol=1e-12)
    ranks = [naive_rank(row, label) for row, label in zip(logits, labels, strict=True)]
    assert rank_of_label(logits, labels).tolist() == ranks


def test_softmax_of_huge_logits_is_finite():
    huge = np.array([[1e300, 0.0, -1e300], [1e4, 1e4, 0.0]])
    found = log_softmax(huge)
    assert found[0, 0] == 0.0
    np.testing.assert_allclose(found[1, :2], -math.log(2))
    assert kl_divergence(huge, huge).tolist() == [0.0, 0.0]
    assert kl_divergence(np.array([[800.0, 0.0]]), np.array([[0.0, 800.0]]))[0] == pytest.approx(800.0)


def test_logits_of_probabilities_have_them_as_their_softmax():
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(np.exp(log_softmax(read_probabilities(p))), p, atol=1e-11)


def test_an_answer_changes_where_its_logits_are_so_many_times_as_far_off():
    """Against answers stretched step by step; at 1 it is what the model itself answers."""
    rng = np.random.default_rng(0)
    reference, logits = rng.standard_normal((2, 200, 5))
    logits = reference + 0.5 * logits
    found = stretch_to_change(reference, logits)
    first = reference.argmax(axis=-1)
    np.testing.assert_array_equal(found > 1, logits.argmax(axis=-1) == first)
    for times in (0.3, 0.9, 1.7, 40.0):
        same = (reference + times * (logits - reference)).argmax(axis=-1) == first
        np.testing.assert_array_equal(found > times, same)
    assert np.isinf(stretch_to_change(reference, reference)).all()
    assert np.isinf(stretch_to_change(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0]])))[0]
