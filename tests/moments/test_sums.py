"""Running sums against the plain sums of the same numbers in float64, whatever the cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corp_onnx.errors import InputError, NonFiniteError
from corp_onnx.moments.sums import ChannelSum, CrossSum, LogitSum
from corp_onnx.moments.tiles import FLUSH_ROWS, TILE_ROWS, Product

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
    for part in x[: batch + 1]:
        running.update(part)
    with pytest.raises(NonFiniteError, match=r"blocks\.3 Gelu holds NaN or Inf"):
        running.result()
    with pytest.raises(NonFiniteError, match=r"blocks\.3 Gelu holds NaN or Inf"):  # at once, where a tile is full
        running.update(np.tile(x[batch], (TILE_ROWS, 1)))


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
        running.update(np.zeros((TILE_ROWS, 2), dtype=np.float32), np.full((TILE_ROWS, 2), np.nan, dtype=np.float32))


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
@pytest.mark.parametrize("cut", [1, 197, TILE_ROWS, 3 * TILE_ROWS + 1])
def test_the_cut_into_batches_changes_no_bit(weighted, cut):
    rng = np.random.default_rng(0)
    n = 4 * TILE_ROWS + 5
    x, y = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(n, 3)).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=n).astype(np.float32) if weighted else None
    whole, parts = CrossSum(4, 3), CrossSum(4, 3)
    whole.update(x, y, weights)
    for i in range(0, n, cut):
        parts.update(x[i : i + cut], y[i : i + cut], None if weights is None else weights[i : i + cut])
    expected, found = whole.result(), parts.result()
    for name in ("count", "x_total", "x_gram", "y_total", "y_energy", "cross"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert parts.result().count == found.count  # nothing is counted twice


@pytest.mark.parametrize("n_images", [1, 200])
def test_float32_costs_the_same_however_many_images_there_are(n_images):
    """The bound that sums.py states, against float64: it would grow with the images if nothing were flushed."""
    rng = np.random.default_rng(0)
    running, exact = ChannelSum(32), np.zeros((32, 32))
    mixed = rng.normal(size=(32, 32)).astype(np.float32)
    for _ in range(n_images):
        x = rng.normal(size=(1000, 32)).astype(np.float32) @ mixed
        running.update(x)
        exact += x.T.astype(np.float64) @ x
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert (np.abs(running.result().gram - exact) / scale).max() < 1e-6


def test_the_accumulator_is_flushed_before_ones_are_lost():
    """A 1 that is added to 2^24 in float32 is nothing."""
    product = Product(1, 1)
    product.add_square(np.full((1, 1), 4096, np.float32))
    product.add_square(np.zeros((FLUSH_ROWS - 1, 1), np.float32))
    product.add_square(np.ones((1, 1), np.float32))
    assert product.result()[0, 0] == 2.0**24 + 1


@pytest.mark.parametrize("cut", [1, 300, TILE_ROWS, 700, FLUSH_ROWS, FLUSH_ROWS + 900])
@pytest.mark.parametrize("kind", ["channels", "cross", "logits"])
def test_a_sum_goes_on_from_its_state_to_the_bit(kind, cut):
    """With rows that wait, behind a flush and before it; the state itself says nothing new afterwards."""
    rng = np.random.default_rng(0)
    make = {"channels": lambda: ChannelSum(6), "cross": lambda: CrossSum(6, 3), "logits": lambda: LogitSum(2, 3)}[kind]
    x, y = rng.normal(5, 1, size=(2, FLUSH_ROWS + 2000, 6)).astype(np.float32)
    weights = rng.uniform(1, 3, size=len(x)).astype(np.float32)

    def part(rows):
        if kind == "logits":
            return tuple(a[rows].reshape(1, -1, 2, 3) for a in (x, y))
        return (x[rows], weights[rows]) if kind == "channels" else (x[rows], y[rows, :3], weights[rows])

    whole, half, rest = make(), make(), make()
    for running in (whole, half):
        running.update(*part(slice(0, cut)))
    state = {name: array.copy() for name, array in half.state().items()}
    assert all(array.flags.c_contiguous for array in half.state().values())
    rest.restore(state)
    half.update(*part(slice(0, 9)))  # has no effect on the other
    for running in (whole, rest):
        running.update(*part(slice(cut, None)))
    expected, found = whole.result(), rest.result()
    for name in expected.__slots__:
        assert np.asarray(getattr(found, name)).tobytes() == np.asarray(getattr(expected, name)).tobytes(), name


def test_an_empty_sum_has_a_state():
    rest = ChannelSum(4)
    rest.restore(ChannelSum(4).state())
    rest.update(np.ones((3, 4), np.float32))
    assert rest.result().count == 3
