"""Moments as values: means and covariances of made-up numbers, merging, and the file they are kept in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from corp_onnx.errors import InputError, OutputError
from corp_onnx.moments.values import (
    ChannelMoments,
    CrossMoments,
    LogitMoments,
    Moments,
    load_moments,
    merge_moments,
    save_moments,
)


def channel_moments(x: np.ndarray) -> ChannelMoments:
    return ChannelMoments(len(x), x.sum(axis=0), x.T @ x)


def cross_moments(x: np.ndarray, y: np.ndarray) -> CrossMoments:
    return CrossMoments(len(x), x.sum(axis=0), x.T @ x, y.sum(axis=0), np.square(y).sum(axis=0), y.T @ x)


def logit_moments(rng: np.random.Generator, n_images: int = 3) -> LogitMoments:
    grams, energy = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(2, 4))
    return LogitMoments(n_images, 7 * n_images, 5 * n_images, *grams, energy)


def test_mean_covariance_and_energy_are_those_of_the_numbers(rng):
    x = rng.normal(size=(40, 6)) + 3
    moments = channel_moments(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0))
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False, ddof=0), atol=1e-12)
    np.testing.assert_allclose(moments.energy, np.square(x).mean(axis=0))


def test_cross_covariance_is_that_of_the_numbers(rng):
    x, y = rng.normal(size=(40, 6)) + 3, rng.normal(size=(40, 2)) - 1
    expected = (y - y.mean(axis=0)).T @ (x - x.mean(axis=0)) / 40
    np.testing.assert_allclose(cross_moments(x, y).cross_covariance, expected, atol=1e-12)
    np.testing.assert_allclose(cross_moments(x, y).regressor.covariance, np.cov(x.T, ddof=0), atol=1e-12)


def test_merged_moments_are_those_of_all_tokens(rng):
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 2))
    merged = merge_moments(channel_moments(x[:7]), channel_moments(x[7:]))
    assert_equal_moments(merged, channel_moments(x))
    assert_equal_moments(merge_moments(cross_moments(x[:7], y[:7]), cross_moments(x[7:], y[7:])), cross_moments(x, y))


def test_merged_logit_moments_add_every_sum(rng):
    a, b = logit_moments(rng, 3), logit_moments(rng, 2)
    merged = merge_moments(a, b)
    assert (merged.n_images, merged.n_tokens, merged.n_key_tokens) == (5, 35, 25)
    for name in ("q_gram", "k_gram", "k_centred_gram", "logit_energy"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(a, name) + getattr(b, name), err_msg=name)
    assert_equal_moments(merged, merge_moments(b, a))


def test_moments_of_two_models_or_kinds_do_not_merge(rng):
    a, b = channel_moments(rng.normal(size=(9, 6))), channel_moments(rng.normal(size=(9, 5)))
    with pytest.raises(InputError, match=r"expected moments of one model, found total of shapes \(6,\) and \(5,\)"):
        merge_moments(a, b)
    with pytest.raises(InputError, match="moments of one kind, found ChannelMoments and LogitMoments"):
        merge_moments(a, logit_moments(rng))


def test_shapes_are_checked_on_construction():
    # with jaxtyping's hook on, its own check comes first
    with pytest.raises((ValueError, TypeError), match=r"expected an array of shape \(3, 3\), found|Type-check error"):
        ChannelMoments(1, np.zeros(3), np.zeros((2, 2)))


def test_what_is_saved_is_what_is_loaded(rng, tmp_path):
    x, y = rng.normal(size=(9, 6)), rng.normal(size=(9, 2))
    moments = Moments(
        (
            ("block 0/mlp", channel_moments(x)),
            ("qk", logit_moments(rng)),
            ("cross", cross_moments(x, y)),
        )
    )
    save_moments(moments, tmp_path / "moments.bin")
    loaded = load_moments(tmp_path / "moments.bin")
    assert loaded.keys() == moments.keys() == ("block 0/mlp", "qk", "cross")
    assert "qk" in loaded
    assert len(loaded) == 3
    for key, unit in moments.entries:
        assert_equal_moments(loaded[key], unit, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.bin"]


def test_a_key_stands_once(rng):
    unit = channel_moments(rng.normal(size=(9, 6)))
    with pytest.raises(ValueError, match="every unit key once"):
        Moments((("a", unit), ("a", unit)))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_an_input_error(tmp_path, content):
    (tmp_path / "moments.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"expected moments written by corp-onnx in .*moments\.npz"):
        load_moments(tmp_path / "moments.npz")


def test_a_missing_file_a_plain_array_and_a_future_schema_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="collect them anew"):
        load_moments(tmp_path / "absent.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="expected moments written by corp-onnx"):
        load_moments(tmp_path / "array.npy")
    np.savez(tmp_path / "future.npz", schema=np.array(2))
    with pytest.raises(InputError, match=r"expected moments of schema 1 .* found 2"):
        load_moments(tmp_path / "future.npz")


def test_an_unwritable_destination_is_an_output_error_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match=r"can not write the moments to .*taken"):
        save_moments(Moments(()), tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(OutputError, match="choose a writable destination"):
        save_moments(Moments(()), tmp_path / "absent" / "moments.npz")


def assert_equal_moments(found, expected, rtol=1e-12):
    assert type(found) is type(expected)
    for field in dataclasses.fields(expected):
        value = getattr(expected, field.name)
        np.testing.assert_allclose(getattr(found, field.name), value, rtol=rtol, atol=rtol, err_msg=field.name)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
