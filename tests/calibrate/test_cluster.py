"""A Ray cluster: what is said where there is none, and (make test-ray) a local one, of whose two workers one dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from photos import write_bad_files, write_photos
from samples import OPERATOR, fixture_path

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate import cluster, portions
from corp_onnx.calibrate.cluster import collect_on_cluster
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.errors import CorpOnnxError, ImageError, MissingExtraError, ModelError, OptionError
from corp_onnx.graph import Graph, load_model
from corp_onnx.images import ImageSet, open_images
from corp_onnx.images.recipe import Recipe
from corp_onnx.moments import Moments, pack_moments
from corp_onnx.run.probe import probe_graph
from corp_onnx.units import Unit, list_units

EIGHT = Recipe(size=(8, 8))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return probe_graph(load_model(fixture_path(OPERATOR)))


@pytest.fixture(scope="module")
def units(graph: Graph) -> tuple[Unit, ...]:
    return list_units(find_blocks(graph), ("mlp", "qk", "vo"))


def photos(folder: Path, n: int) -> ImageSet:
    write_photos(folder, n)
    found = open_images(folder, EIGHT)
    assert isinstance(found, ImageSet)
    return found


def numbers(moments: Moments) -> list[np.ndarray]:
    return [array for _, unit in moments.entries for array in pack_moments(unit).values()]


class FakeRay:
    """Tasks run here and now; what is waited for is done last in, first out, as no cluster promises another order."""

    class exceptions:  # noqa: N801
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause: Any = None

    def __init__(self, fails: Any = None) -> None:
        self.fails, self.n_tasks, self.most = fails, 0, 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **_: Any) -> Any:
        return lambda task: SimpleNamespace(remote=lambda *arguments: self._start(task, arguments))

    def _start(self, task: Any, arguments: Any) -> Any:
        self.n_tasks += 1
        return lambda: task(*arguments)

    def wait(self, references: list[Any], num_returns: int) -> Any:
        self.most = max(self.most, len(references))
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: Any) -> Any:
        if self.fails:
            raise self.fails
        return reference()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setenv("CORP_ONNX_CORES", "")  # a task sets it
    ray = FakeRay()
    monkeypatch.setattr(cluster, "_import_ray", lambda: ray)
    return ray


class TestWithoutRay:
    def test_what_is_missing_is_said(
        self, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtraError, match=r"--ray takes Ray: pip install 'corp-onnx\[ray\]' here and on"):
            collect_on_cluster(graph, units, photos(tmp_path / "p", 2), address="local", kept_in=tmp_path)

    def test_the_order_of_the_images_counts_and_not_who_is_done_first(
        self, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, fake: FakeRay
    ) -> None:
        images = photos(tmp_path / "p", 30)
        write_bad_files(tmp_path / "p")
        images = open_images(tmp_path / "p", EIGHT)
        seen: list[int] = []
        found = collect_on_cluster(
            graph, units, images, address="local", kept_in=tmp_path / "kept", size=7, progress=seen.append
        )
        parts = [collect_moments(graph, units, part) for part in portions.cut_images(images, 7)]
        expected = portions.merge_portions([str(unit.key) for unit in units], parts)
        for one, other in zip(numbers(found), numbers(expected), strict=True):
            np.testing.assert_array_equal(one, other)
        assert sum(seen) == images.n_images == 30
        assert fake.most == 4  # two workers, two portions for each
        assert {"cut.jpg", "cut.png"} <= {skip.name for skip in images.skipped}

    @pytest.mark.usefixtures("fake")
    def test_a_driver_that_died_goes_on(
        self, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also with portions of the size that it was begun with; what is damaged or of other images is done anew."""
        images = photos(tmp_path / "p", 20)
        kept: list[Path] = []
        keep = cluster.keep_portion

        def die(collected: Any, identity: str, path: Path) -> None:
            if len(kept) == 3:
                raise KeyboardInterrupt
            keep(collected, identity, path)
            kept.append(path)

        monkeypatch.setattr(cluster, "keep_portion", die)
        with pytest.raises(KeyboardInterrupt):
            collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept", size=4)
        monkeypatch.setattr(cluster, "keep_portion", keep)
        n_collected: list[int] = []
        real = portions.collect_moments
        monkeypatch.setattr(portions, "collect_moments", lambda *a, **k: n_collected.append(1) or real(*a, **k))
        kept[0].write_bytes(b"damaged")
        found = collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept")
        assert len(n_collected) == 3
        fresh = collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "fresh", size=4)
        for one, other in zip(numbers(found), numbers(fresh), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_every_worker_fails(self, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, fake: FakeRay) -> None:
        images = photos(tmp_path / "p", 4)
        fake.fails = fake.exceptions.RayError("The worker died unexpectedly.\nmore")
        with pytest.raises(CorpOnnxError, match=r"the images 000.png to 003.png lost 4 workers one after the other \("):
            collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept")
        fake.fails = fake.exceptions.RayTaskError()
        fake.fails.cause = ModuleNotFoundError("No module named 'corp_onnx'")
        with pytest.raises(MissingExtraError, match=r"a worker can not import what it needs \(No module named"):
            collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept")

    def test_model_and_images_that_a_worker_can_not_read(
        self, units: tuple[Unit, ...], tmp_path: Path, fake: FakeRay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tmp_path / "m.onnx"
        model.write_bytes(fixture_path(OPERATOR).read_bytes())
        graph = probe_graph(load_model(model))
        images = photos(tmp_path / "p", 4)
        (tmp_path / "p").rename(tmp_path / "q")
        with pytest.raises(ImageError, match=r"on worker .+: .+/p: no such folder"):
            collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept")
        (tmp_path / "q").rename(tmp_path / "p")
        monkeypatch.setattr(portions, "MAX_SENT", 0)
        real = fake.put
        fake.put = lambda value: (model.unlink(), real(value))[1]  # type: ignore[method-assign]
        monkeypatch.setattr(cluster, "_run_portion", gone(model, cluster._run_portion))
        with pytest.raises(ModelError, match=r"on worker .+: .+m.onnx: can not be read here, and is too large"):
            collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept")

    def test_numbers_out_of_range(self, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, fake: FakeRay) -> None:
        images = photos(tmp_path / "p", 2)
        with pytest.raises(OptionError, match="--ray auto: no node of the cluster has 3 cores for a worker; they"):
            collect_on_cluster(graph, units, images, address="auto", kept_in=tmp_path, cores=3)
        with pytest.raises(OptionError, match="a portion holds at least 1 image, found 0"):
            collect_on_cluster(graph, units, images, address="auto", kept_in=tmp_path, size=0)
        assert fake.n_tasks == 0


def gone(model: Path, task: Any) -> Any:
    def run(*arguments: Any) -> Any:
        model.unlink(missing_ok=True)
        return task(*arguments)

    return run


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield found
    found.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
class TestRay:
    def test_one_of_two_workers_is_killed_and_nothing_is_lost(
        self, ray: Any, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, flag = photos(tmp_path / "p", 40), tmp_path / "killed"
        task = cluster._run_portion

        def die_once(*arguments: Any) -> Any:
            if "020.png" in list(arguments[2].names) and not flag.exists():
                flag.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return task(*arguments)

        monkeypatch.setattr(cluster, "_run_portion", die_once)
        seen: list[int] = []
        found = collect_on_cluster(
            graph, units, images, address="local", kept_in=tmp_path / "kept", size=6, progress=seen.append
        )
        assert flag.exists()
        assert sum(seen) == 40
        whole = numbers(collect_moments(graph, units, images))
        monkeypatch.setenv("CORP_ONNX_CORES", "1")  # as a worker: the same calls of the same size
        parts = [collect_moments(graph, units, part) for part in portions.cut_images(images, 6)]
        same = numbers(portions.merge_portions([str(unit.key) for unit in units], parts))
        for one, alike, other in zip(numbers(found), same, whole, strict=True):
            np.testing.assert_array_equal(one, alike)
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())
        assert ray.is_initialized()  # it was not ours to close

    def test_a_portion_that_kills_every_worker(
        self, ray: Any, graph: Graph, units: tuple[Unit, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert ray
        monkeypatch.setattr(cluster, "MAX_RETRIES", 1)
        monkeypatch.setattr(cluster, "_run_portion", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(CorpOnnxError, match=r"--ray local: the images 000.png to 003.png lost 2 workers one"):
            collect_on_cluster(graph, units, photos(tmp_path / "p", 4), address="local", kept_in=tmp_path / "kept")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_no_cluster_at_an_address(graph: Graph, units: tuple[Unit, ...], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.shutdown()
    with pytest.raises(OptionError, match=r"--ray auto: no Ray cluster can be reached there \(.+\); start one"):
        collect_on_cluster(graph, units, photos(tmp_path / "p", 2), address="auto", kept_in=tmp_path)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_our_own_is_closed(graph: Graph, units: tuple[Unit, ...], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.shutdown()
    images = photos(tmp_path / "p", 9)
    found = collect_on_cluster(graph, units, images, address="local", kept_in=tmp_path / "kept")
    for one, other in zip(numbers(found), numbers(collect_moments(graph, units, images)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())
    assert not ray.is_initialized()
