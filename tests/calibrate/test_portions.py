"""Calibration in portions: each is a value that can be sent, kept and taken up again; together they are the whole."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import images_of
from packed import pack_parquet, pack_tar, read_files
from photos import write_bad_files, write_photos
from samples import OPERATOR, fixture_path

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.portions import (
    Work,
    collect_portion,
    cut_images,
    describe_work,
    find_portion,
    keep_portion,
    merge_portions,
)
from corp_onnx.errors import ImageError, ModelError
from corp_onnx.graph import Graph, load_model
from corp_onnx.images import Images, open_images
from corp_onnx.images.recipe import Recipe
from corp_onnx.moments import Moments, pack_moments
from corp_onnx.run.probe import probe_graph
from corp_onnx.threads import CORES, count_cores
from corp_onnx.units import Unit, list_units

EIGHT = Recipe(size=(8, 8))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return probe_graph(load_model(fixture_path(OPERATOR)))


@pytest.fixture(scope="module")
def units(graph: Graph) -> tuple[Unit, ...]:
    return list_units(find_blocks(graph), ("mlp", "qk", "vo"))


@pytest.fixture
def work(graph: Graph, units: tuple[Unit, ...]) -> Work:
    return describe_work(graph.model, units, 4, "cpu")


def numbers(moments: Moments | None) -> list[np.ndarray]:
    assert moments is not None
    return [array for _, unit in moments.entries for array in pack_moments(unit).values()]


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_portions_together_are_the_whole(graph: Graph, units: tuple[Unit, ...], work: Work, tmp_path: Path) -> None:
    """Of every source; sent as to another process. The bound is that of moments/sums.py, twice."""
    write_photos(tmp_path / "photos", 11)
    files = read_files(tmp_path / "photos")
    sources: list[Images] = [
        open_images(tmp_path / "photos", EIGHT),
        open_images(pack_parquet(files, tmp_path / "parquet"), EIGHT),
        open_images(pack_tar(files, tmp_path / "tar"), EIGHT),
    ]
    whole = numbers(collect_moments(graph, units, sources[0], batch_size=4))
    sources.append(images_of(graph, 11))
    for images in sources:
        parts = cut_images(images, 4)
        assert [part.n_images for part in parts] == [4, 4, 3]
        assert len({work.identify(part) for part in parts}) == 3
        done = [collect_portion(sent(work), sent(part.alone())) for part in parts]
        found = merge_portions(work.units, [one.moments for one in done if one.moments is not None])
        assert found.keys() == tuple(str(unit.key) for unit in units)
        expected = whole if images is not sources[-1] else numbers(collect_moments(graph, units, images, batch_size=4))
        for one, other in zip(numbers(found), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_a_kept_portion_is_taken_up_where_its_images_are_the_same(work: Work, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 5)
    write_bad_files(tmp_path / "photos")
    images = open_images(tmp_path / "photos", EIGHT)
    path, identity = tmp_path / "kept" / "a.safetensors", work.identify(images)
    first = collect_portion(work, images.alone())
    assert {skip.name for skip in first.skipped} >= {"cut.jpg", "cut.png"}
    keep_portion(first, identity, path)
    found = find_portion(path, identity)
    assert found is not None
    assert (found.images, found.skipped) == (first.images, first.skipped)
    for one, other in zip(numbers(found.moments), numbers(first.moments), strict=True):
        np.testing.assert_array_equal(one, other)
    again = collect_portion(work, images.alone(), known=found.images)
    assert (again.is_known, again.moments) == (True, None)
    write_photos(tmp_path / "photos", 1, first=40)
    (tmp_path / "photos" / "040.png").replace(tmp_path / "photos" / "002.png")
    anew = collect_portion(work, images.alone(), known=found.images)
    assert not anew.is_known
    assert anew.moments is not None
    assert find_portion(path, "another") is None
    path.write_bytes(path.read_bytes()[:-9])
    assert find_portion(path, identity) is None


def test_a_portion_without_an_image_is_empty(work: Work, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    images = open_images(tmp_path / "photos", EIGHT)
    for file in (tmp_path / "photos").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    found = collect_portion(work, images.alone())
    assert found.moments is None
    assert [skip.name for skip in found.skipped] == ["000.png", "001.png"]
    keep_portion(found, "x", tmp_path / "a.safetensors")
    kept = find_portion(tmp_path / "a.safetensors", "x")
    assert kept is not None
    assert kept.moments is None
    with pytest.raises(ImageError, match="none of the images can be read; give others"):
        merge_portions(work.units, [])


def test_the_model_is_read_where_it_lies_or_sent(work: Work, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    images = open_images(tmp_path / "photos", EIGHT).alone()
    expected = numbers(collect_portion(work, images).moments)
    away = replace(work, path=tmp_path / "nowhere" / "m.onnx")
    for one, other in zip(numbers(collect_portion(away, images).moments), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ModelError, match=r"m.onnx: can not be read here, and is too large to be sent or has"):
        collect_portion(replace(away, content=None), images)
    (tmp_path / "m.onnx").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"m.onnx: is another file here than where the calibration was started"):
        collect_portion(replace(away, path=tmp_path / "m.onnx", content=None), images)
    external = load_model(fixture_path("timm_vit_ts17_external"))
    assert describe_work(external, (), 4, "cpu").content is None


def test_images_that_a_worker_can_not_read(work: Work, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    images = open_images(tmp_path / "photos", EIGHT).alone()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match=r"photos: no such folder"):
        collect_portion(work, images)


def test_a_worker_keeps_to_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert count_cores() == 64
    monkeypatch.setenv(CORES, "2")
    assert count_cores() == 2
    monkeypatch.setenv(CORES, "many")
    assert count_cores() == 64
