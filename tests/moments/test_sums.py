"""Running sums against the plain sums of the same numbers in float64, whatever the cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments.sums import ChannelSum, CrossSum, LogitSum, PooledSum

FLOAT32 = 2e-5  # float32 batch Grams of a few hundred tokens


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99), weighted=st.booleans())
def test_channel_sums_do_not_depend_on_the_cut(cuts, seed, weighted):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(60, 7)) * 3 + rng.normal(size=7) * 5).astype(np.float32)
    weights = rng.uniform(0.5, 9, size=60).astype(np.float32) if weighted else np.ones(60, dtype=np.float32)
    running = ChannelSum(7)
    for part in np.split(np.arange(60), sorted(cuts)):
        running.update(x[part], weights[part] if weighted else None)
    moments, wide, w = running.result(), x.astype(np.float64), weights.astype(np.float64)
    mean = w @ wide / w.sum()
    np.testing.assert_allclose(moments.count, w.sum(), rtol=1e-6)
    np.testing.assert_allclose(moments.mean, mean, rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(
        moments.covariance, ((wide - mean).T * w) @ (wide - mean) / w.sum(), rtol=1e-4, atol=1e-3 * FLOAT32 + 1e-4
    )
    np.testing.assert_array_equal(moments.gram, moments.gram.T)


def test_a_large_mean_does_not_eat_the_covariance():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(2000, 5)) + 300).astype(np.float32)
    running = ChannelSum(5)
    running.update(x[:1000])
    running.update(x[1000:])
    error = np.abs(running.result().covariance - np.cov(x.astype(np.float64), rowvar=False, ddof=0)).max()
    assert error < 1e-5
    plain = (x.T @ x).astype(np.float64) / 2000  # what the pivot is for: without it the error is over 1e-3
    mean = x.mean(axis=0, dtype=np.float64)
    assert np.abs(plain - np.outer(mean, mean) - np.cov(x.astype(np.float64), rowvar=False, ddof=0)).max() > 1e-3


def test_a_weight_counts_a_token_that_many_times():
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    weights = np.tile([1.0, 4.0], 10).astype(np.float32)
    weighted, repeated = ChannelSum(4), ChannelSum(4)
    weighted.update(x, weights)
    repeated.update(np.repeat(x, weights.astype(int), axis=0))
    np.testing.assert_allclose(weighted.result().gram, repeated.result().gram, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weighted.result().total, repeated.result().total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("batch", [0, 1])
def test_a_bad_number_is_named(bad, batch):
    x = np.random.default_rng(0).normal(size=(2, 10, 4)).astype(np.float32)
    x[batch, 3, 2] = bad
    running = ChannelSum(4, name="blocks.3 Gelu")
    for part in x[:batch]:
        running.update(part)
    with pytest.raises(NonFiniteError, match=r"blocks\.3 Gelu holds NaN or Inf"):
        running.update(x[batch])


def test_nothing_seen_is_an_error():
    running = ChannelSum(4, name="blocks.3 Gelu")
    running.update(np.zeros((0, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"at least one token of blocks\.3 Gelu, found none"):
        running.result()
    with pytest.raises(InputError, match="at least one image for the tensor, found none"):
        LogitSum(2, 4).result()


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 50), seed=st.integers(0, 99))
def test_cross_sums_are_those_of_the_numbers(cut, seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(50, n)).astype(np.float32) + 2 for n in (6, 3))
    w = rng.uniform(0.5, 4, size=50).astype(np.float32)
    running = CrossSum(6, 3)
    running.update(x[:cut], y[:cut], w[:cut])
    running.update(x[cut:], y[cut:], w[cut:])
    moments = running.result()
    x, y, w = (a.astype(np.float64) for a in (x, y, w))
    for found, expected in (
        (moments.count, w.sum()),
        (moments.x_total, w @ x),
        (moments.x_gram, (x.T * w) @ x),
        (moments.y_total, w @ y),
        (moments.y_energy, w @ y**2),
        (moments.cross, (y.T * w) @ x),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_bad_target_is_named():
    running = CrossSum(2, 2, name="blocks.3 fc2")
    with pytest.raises(NonFiniteError, match=r"the target of blocks\.3 fc2 holds NaN"):
        running.update(np.zeros((3, 2), dtype=np.float32), np.full((3, 2), np.nan, dtype=np.float32))


def naive_logit_moments(q: np.ndarray, k: np.ndarray) -> dict[str, np.ndarray]:
    """Image by image and head by head, as section 3.3 of the paper says it."""
    n_images, _, n_heads, d_head = q.shape
    sums = {name: np.zeros((n_heads, d_head, d_head)) for name in ("q_gram", "k_gram", "k_centred_gram")}
    energy = np.zeros((n_heads, d_head))
    for b in range(n_images):
        for h in range(n_heads):
            centred = k[b, :, h] - k[b, :, h].mean(axis=0)
            sums["q_gram"][h] += q[b, :, h].T @ q[b, :, h]
            sums["k_gram"][h] += k[b, :, h].T @ k[b, :, h]
            sums["k_centred_gram"][h] += centred.T @ centred
            for j in range(d_head):
                energy[h, j] += np.linalg.norm(q[b, :, h, j]) ** 2 * np.linalg.norm(k[b, :, h, j]) ** 2
    return sums | {"logit_energy": energy}


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 4), seed=st.integers(0, 99))
def test_logit_sums_are_those_of_the_paper_and_do_not_depend_on_the_cut(cut, seed):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(4, 9, 3, 5)).astype(np.float32)
    k = (rng.normal(size=(4, 6, 3, 5)) + 2 * rng.normal(size=(4, 1, 3, 5))).astype(np.float32)
    running = LogitSum(3, 5)
    running.update(q[:cut], k[:cut])
    running.update(q[cut:], k[cut:])
    moments = running.result()
    assert (moments.n_images, moments.n_tokens, moments.n_key_tokens) == (4, 36, 24)
    for name, expected in naive_logit_moments(q.astype(np.float64), k.astype(np.float64)).items():
        np.testing.assert_allclose(getattr(moments, name), expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("side", [0, 1])
def test_a_bad_query_or_key_is_named(side):
    q_and_k = np.zeros((2, 1, 4, 2, 3), dtype=np.float32)
    q_and_k[side, 0, 1, 1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"blocks\.0 q and k holds NaN"):
        LogitSum(2, 3, name="blocks.0 q and k").update(*q_and_k)


@pytest.mark.parametrize("weighted", [True, False])
def test_pooled_batches_are_added_up_together(weighted, monkeypatch):
    """Seven images of five tokens, three at a time and the last one when the result is asked for."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(35, 4)).astype(np.float32), rng.normal(size=(35, 3)).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=35).astype(np.float32) if weighted else None
    seen: list[int] = []
    add = CrossSum.update
    monkeypatch.setattr(CrossSum, "update", lambda self, *a: (seen.append(len(a[0])), add(self, *a))[1])
    pooled = PooledSum(CrossSum(4, 3), 3)
    for i in range(0, 35, 5):
        pooled.update(1, x[i : i + 5], y[i : i + 5], None if weights is None else weights[i : i + 5])
    found = pooled.result()
    assert seen == [15, 15, 5]
    whole = CrossSum(4, 3)
    whole.update(x, y, weights)
    expected = whole.result()
    assert found.count == pytest.approx(expected.count)
    np.testing.assert_allclose(found.x_gram, expected.x_gram, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.cross, expected.cross, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.y_energy, expected.y_energy, rtol=1e-4)
    assert pooled.result().count == found.count  # nothing is counted twice


def test_a_large_batch_does_not_wait():
    pooled = PooledSum(ChannelSum(2), 3)
    pooled.update(4, np.ones((4, 2), np.float32))
    with pytest.raises(NonFiniteError):
        pooled.update(3, np.full((3, 2), np.nan, np.float32))
