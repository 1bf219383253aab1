"""Some tokens of every image: which, and that sums of them are those of all but for the draw."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import open_for_model
from corp_onnx.calibrate.draw import TokenDraw
from corp_onnx.cli.main import main
from corp_onnx.errors import OptionError
from corp_onnx.graph import load_model
from corp_onnx.moments import ChannelMoments, LogitMoments, pack_moments
from corp_onnx.prune import prune_model
from corp_onnx.run.probe import probe_graph
from corp_onnx.settings import Preprocessing
from corp_onnx.units import list_units


def test_a_draw_depends_on_the_place_of_an_image_alone() -> None:
    rows = np.arange(3 * 10 * 2).reshape(3 * 10, 2)
    draw = TokenDraw(4)
    (together,) = draw.take((rows,), 3, 5)
    apart = [draw.take((rows[10 * i : 10 * i + 10],), 1, 5 + i)[0] for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    assert together.shape == (12, 2)
    assert len({tuple(part[:, 0] % 20) for part in apart}) > 1
    four = np.zeros((3, 10, 2, 2))
    assert draw.take((four,), 3, 0)[0] is four
    assert TokenDraw(10).take((rows,), 3, 0)[0].shape == rows.shape


def test_sums_are_of_fewer_tokens_and_mean_the_same(tmp_path: Path) -> None:
    graph = probe_graph(load_model(fixture_path(OPERATOR)))
    images = open_for_model(graph.model, write_photos(tmp_path, 64), Preprocessing(), limit=None, seed=0, minimum=1)
    units = list_units(find_blocks(graph), ("mlp", "qk", "vo"))
    collect = partial(collect_moments, graph, units, images)
    whole, some = collect(), collect(draw=TokenDraw(6))
    again = collect(draw=TokenDraw(6), batch_size=3)
    for unit in units:
        a, b, c = (moments[str(unit.key)] for moments in (whole, some, again))
        if isinstance(a, LogitMoments):
            assert pack_moments(a).keys() == pack_moments(b).keys()
            np.testing.assert_allclose(a.q_gram, b.q_gram, rtol=1e-4, atol=1e-3)
            continue
        assert isinstance(a, ChannelMoments)
        assert isinstance(b, ChannelMoments)
        assert isinstance(c, ChannelMoments)
        assert (b.count, c.count) == (64 * 6, 64 * 6)
        np.testing.assert_allclose(b.gram, c.gram, rtol=1e-4, atol=1e-4 * np.abs(b.gram).max())
        spread = np.sqrt(np.diagonal(a.covariance) / b.count)
        assert (np.abs(a.mean - b.mean) < 6 * spread + 1e-6).all()


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 16)
    model = fixture_path(OPERATOR)
    prune_model(model, photos, tmp_path / "a.onnx", macs=0.8, tokens_per_image=4, cache=tmp_path / "cache")
    prune_model(model, photos, tmp_path / "b.onnx", macs=0.8, cache=tmp_path / "cache")
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "b.onnx").read_bytes()
    with pytest.raises(OptionError, match="--tokens-per-image must be 1 or more; found 0"):
        prune_model(model, photos, tmp_path / "c.onnx", macs=0.8, tokens_per_image=0)
    arguments = ["calibrate", str(model), "--calib", str(photos), "--tokens-per-image", "4", "--ray", "local"]
    assert main(arguments) == 2
    assert "--tokens-per-image is of sums in this process" in capsys.readouterr().err
