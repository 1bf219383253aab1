"""Calibrate once: what a file knows is not found out again, no byte changes, and files are bound to their images."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import FIXED, OPERATOR, TEXT, fixture_path, write_photos

import corp_onnx.case
import corp_onnx.search.statistics
import corp_onnx.solve.obs
import corp_onnx.units.mlp
from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.checkpoint import Checkpoint
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.calibrate.data import open_for_model
from corp_onnx.calibrate.file import IMAGES, Contents
from corp_onnx.calibration import calibrate_model, default_calibration, merge_calibrations
from corp_onnx.cli import main
from corp_onnx.errors import ImageError, InputError, MissingExtraError, OptionError, OutputError
from corp_onnx.findings import read_findings
from corp_onnx.graph import load_model
from corp_onnx.moments import unpack_moments
from corp_onnx.progress import Moment, Run
from corp_onnx.prune import prune_model
from corp_onnx.run import outputs
from corp_onnx.run.probe import probe_graph
from corp_onnx.settings import Preprocessing
from corp_onnx.tensor_file import read_tensors, write_tensors
from corp_onnx.units import list_units

MODEL = fixture_path(OPERATOR)
N_PHOTOS = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", N_PHOTOS)


@pytest.fixture(scope="module")
def calibration(photos: Path) -> Path:
    path = photos.parent / "c.safetensors"
    calibrate_model(MODEL, photos, path)
    return path


def forbid(patch: pytest.MonkeyPatch) -> None:
    """Whoever collects moments, orders channels, or asks the dense model what its outputs are, fails."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("found out again")

    patch.setattr(corp_onnx.search.statistics, "collect_moments", fail)
    patch.setattr(corp_onnx.search.statistics, "learn_metrics", fail)
    patch.setattr(corp_onnx.units.mlp, "rank_obs", fail)
    patch.setattr(corp_onnx.case, "open_session", fail)


class TestFile:
    def test_the_default_name_and_what_is_said(self, photos: Path, tmp_path: Path) -> None:
        model = shutil.copy(MODEL, tmp_path / "m.onnx")
        result = calibrate_model(model, photos)
        assert result.path == str(default_calibration(Path(model))) == str(tmp_path / "m.calibration.safetensors")
        assert (result.n_images, result.n_choosing, result.n_held_out) == (18, 0, 6)  # few: they choose in folds
        assert "moments" in result.found
        assert result.size_bytes == Path(result.path).stat().st_size
        with pytest.raises(OutputError, match="exists already"):
            calibrate_model(model, photos)

    @pytest.mark.long
    def test_a_budget_and_a_promise_find_everything(
        self, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forbid(monkeypatch)
        for i, budget in enumerate(({"macs": 0.8}, {"params": 0.9}, {"min_agreement": 0.5})):
            result = prune_model(MODEL, output=tmp_path / f"{i}.onnx", calibration=calibration, **budget)
            assert result.calibration.n_images == 18
            assert result.calibration.path.endswith("photos")

    @pytest.mark.long
    def test_a_cache_changes_no_byte(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, first, second = (tmp_path / f"{name}.onnx" for name in ("plain", "first", "second"))
        prune_model(MODEL, photos, plain, macs=0.8)
        prune_model(MODEL, photos, first, macs=0.8, cache=tmp_path / "cache")
        (kept,) = (tmp_path / "cache").iterdir()
        before = kept.stat().st_mtime_ns
        forbid(monkeypatch)
        prune_model(MODEL, photos, second, macs=0.8, cache=tmp_path / "cache")
        assert plain.read_bytes() == first.read_bytes() == second.read_bytes()
        assert kept.stat().st_mtime_ns == before
        third = tmp_path / "third.onnx"  # a file of the cache is a calibration file
        prune_model(MODEL, output=third, macs=0.8, calibration=kept)
        assert third.read_bytes() == plain.read_bytes()

    def test_a_held_back_image_that_is_gone_is_left_out(self, photos: Path, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(photos, tmp_path / "moved"))
        path = tmp_path / "c.safetensors"
        calibrate_model(MODEL, moved, path)
        (source,) = Contents.from_json(read_findings(path).about[IMAGES]).sources
        held_back = source.reporting
        (moved / str(held_back[0])).unlink()
        found = prune_model(MODEL, output=tmp_path / "o.onnx", calibration=path, preset="paper")
        assert found.held_out.n_images == len(held_back) - 1

    def test_answers_that_are_large_are_not_kept(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those of a map; its outputs are told apart anew."""
        monkeypatch.setattr(outputs, "ANSWERS_BYTES", 8)
        options = {"preset": "paper", "cache": tmp_path / "cache"}
        first = prune_model(MODEL, photos, tmp_path / "a.onnx", **options)
        (kept,) = (tmp_path / "cache").iterdir()
        assert not [name for name in read_tensors(kept).arrays if name.startswith("answers/")]
        assert prune_model(MODEL, photos, tmp_path / "b.onnx", **options).notes == first.notes

    def test_a_damaged_file_is_a_sentence(self, calibration: Path, tmp_path: Path) -> None:
        whole = read_tensors(calibration)
        broken = tmp_path / "c.safetensors"

        def refuse(arrays: dict[str, np.ndarray], metadata: dict[str, str], sentence: str) -> None:
            write_tensors(broken, arrays, metadata)
            with pytest.raises(InputError, match=sentence):
                prune_model(MODEL, output=tmp_path / "o.onnx", calibration=broken, macs=0.8)

        arrays, metadata = dict(whole.arrays), dict(whole.metadata)
        refuse(arrays, {k: v for k, v in metadata.items() if k != "about.images"}, "does not say which images")
        refuse(arrays, metadata | {"about.images": '{"sources": [{"path": 3}]}'}, "does not say which images")
        fewer = {k: v for k, v in arrays.items() if not k.endswith("ChannelMoments.total")}
        refuse(fewer, metadata, "the stored moments are damaged")
        assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]

    def test_another_model_is_refused(self, calibration: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="was made of another model"):
            prune_model(fixture_path(FIXED), output=tmp_path / "o.onnx", calibration=calibration, macs=0.8)
        assert not list(tmp_path.iterdir())

    def test_the_images_may_move_and_must_stay_the_same(self, photos: Path, calibration: Path, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(photos, tmp_path / "moved"))
        prune_model(MODEL, moved, tmp_path / "o.onnx", calibration=calibration, macs=0.8)
        contents = Contents.from_json(read_findings(calibration).about[IMAGES])
        shutil.copy(moved / str(contents.sources[0].fitting[1]), moved / str(contents.sources[0].fitting[0]))
        with pytest.raises(ImageError, match=r"the images in .*moved are not those that it was made from"):
            prune_model(MODEL, moved, tmp_path / "p.onnx", calibration=calibration, macs=0.8)
        shutil.rmtree(moved)
        with pytest.raises(ImageError, match=r"no such folder or file|are not those"):
            prune_model(MODEL, moved, tmp_path / "p.onnx", calibration=calibration, macs=0.8)

    def test_what_says_otherwise_is_refused(self, photos: Path, calibration: Path, tmp_path: Path) -> None:
        for options in ({"n_images": 3}, {"mean": (0.5, 0.5, 0.5)}):
            with pytest.raises(OptionError, match="says which images it is of"):
                prune_model(MODEL, output=tmp_path / "o.onnx", calibration=calibration, **options)
        with pytest.raises(OptionError, match="give --calib DIR, or --calibration FILE"):
            prune_model(MODEL, output=tmp_path / "o.onnx")
        with pytest.raises(OptionError, match="--calibration names the file and --cache looks for one"):
            prune_model(MODEL, photos, tmp_path / "o.onnx", calibration=calibration, cache=tmp_path)

    def test_without_images_that_choose_there_is_no_promise(self, photos: Path, tmp_path: Path) -> None:
        path = tmp_path / "c.safetensors"
        result = calibrate_model(MODEL, photos, path, choosing=False)
        assert (result.n_images, result.n_choosing, result.n_held_out) == (19, 0, 5)
        with pytest.raises(OptionError, match="none is left to choose a size by a promise: give --macs"):
            prune_model(MODEL, output=tmp_path / "o.onnx", calibration=path)
        assert prune_model(MODEL, output=tmp_path / "o.onnx", calibration=path, macs=0.8).calibration.n_held_out == 5

    def test_damaged_photographs_stay_left_out(self, photos: Path, tmp_path: Path) -> None:
        some = Path(shutil.copytree(photos, tmp_path / "some"))
        for name in ("003.png", "007.png"):
            (some / name).write_bytes((some / name).read_bytes()[:80])
        path = tmp_path / "c.safetensors"
        first = calibrate_model(MODEL, some, path, choosing=False)
        result = prune_model(MODEL, output=tmp_path / "o.onnx", calibration=path, macs=0.8)
        assert result.calibration.n_images == first.n_images
        assert {name for name, _ in result.calibration.skipped} <= {"003.png", "007.png"}

    @pytest.mark.long
    def test_arrays(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        ids = rng.integers(0, 50, (20, 16))
        np.savez(tmp_path / "x.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
        path, model = tmp_path / "c.safetensors", fixture_path(TEXT)
        calibrate_model(model, tmp_path / "x.npz", path)
        prune_model(model, output=tmp_path / "o.onnx", calibration=path, macs=0.8)
        arrays = dict(np.load(tmp_path / "x.npz"))
        calibrate_model(model, arrays, path, force=True)
        with pytest.raises(ImageError, match="was made from arrays in memory; give them again"):
            prune_model(model, output=tmp_path / "p.onnx", calibration=path, macs=0.8)
        prune_model(model, arrays, tmp_path / "p.onnx", calibration=path, macs=0.8)


class TestResume:
    def test_an_interrupted_calibration_ends_with_the_same_bytes(
        self, photos: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "c.safetensors"
        monkeypatch.setattr(corp_onnx.case, "Checkpoint", partial(Checkpoint, every=0.0))

        def stop(moment: Moment) -> None:
            if moment.stage == "calibrate" and moment.done >= 16:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate_model(MODEL, photos, path, progress=Run(watch=stop))
        assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors.checkpoint"]
        seen: list[int] = []
        run = Run(watch=lambda moment: seen.append(moment.done) if moment.stage == "calibrate" else None)
        calibrate_model(MODEL, photos, path, progress=run)
        assert next(n for n in seen if n) >= 8
        assert path.read_bytes() == calibration.read_bytes()
        assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]

    def test_what_is_left_of_other_images_is_no_hindrance(self, photos: Path, tmp_path: Path) -> None:
        path = tmp_path / "c.safetensors"
        (tmp_path / "c.safetensors.checkpoint").write_bytes(b"of something else")
        calibrate_model(MODEL, photos, path)
        assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


class TestCluster:
    def test_ray_is_not_installed(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtraError, match=r"--ray takes Ray: pip install 'corp-onnx\[ray\]'"):
            calibrate_model(MODEL, photos, tmp_path / "c.safetensors", ray="local")
        assert not list(tmp_path.iterdir())

    @pytest.mark.ray
    def test_workers_find_out_the_same(self, photos: Path, calibration: Path, tmp_path: Path) -> None:
        path = tmp_path / "c.safetensors"
        calibrate_model(MODEL, photos, path, ray="local")
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        found, expected = read_findings(path), read_findings(calibration)
        assert found.list_parts("moments") == expected.list_parts("moments")
        for stage in expected.list_parts("moments"):
            here, there = (findings.find(stage, {}) for findings in (found, expected))
            assert here is not None
            assert there is not None
            for name, array in there.items():
                np.testing.assert_allclose(here[name], array, atol=1e-6 * np.abs(array).max(), rtol=0)


class TestMerge:
    @pytest.mark.long
    def test_it_is_the_calibration_of_all_images(self, tmp_path: Path) -> None:
        folders = [tmp_path / "a", tmp_path / "b"]
        for i, folder in enumerate(folders):
            write_photos(folder, 10, seed=i + 1)
        files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
        for folder, file in zip(folders, files, strict=True):
            calibrate_model(MODEL, folder, file)
        merged = tmp_path / "c.safetensors"
        result = merge_calibrations(files, merged)
        assert (result.n_images, result.n_held_out) == (16, 4)
        graph = probe_graph(load_model(MODEL))
        units = list_units(find_blocks(graph), ("mlp", "qk", "vo"))
        contents = Contents.from_json(read_findings(merged).about[IMAGES])
        together = tmp_path / "all"
        together.mkdir()
        for i, source in enumerate(contents.sources):
            for name in source.fitting:
                shutil.copy(Path(source.path) / str(name), together / f"{i}{name}")
        images = open_for_model(graph.model, together, Preprocessing(), limit=None, seed=0, minimum=1)
        expected = collect_moments(graph, units, images)
        findings = read_findings(merged)
        for unit in units:
            found = unpack_moments(findings.find(f"moments/{unit.key}", {}) or {})
            for name in found.__dataclass_fields__:
                here, there = (np.asarray(getattr(of, name)) for of in (found, expected[str(unit.key)]))
                # tiles of tokens are added up in float32 about their own pivot (moments/sums.py)
                np.testing.assert_allclose(here, there, atol=1e-6 * np.abs(there).max(), rtol=0)
        pruned = prune_model(MODEL, output=tmp_path / "o.onnx", calibration=merged, macs=0.8)
        assert (pruned.calibration.n_images, pruned.calibration.n_held_out) == (16, 4)

    def test_what_does_not_go_together(self, calibration: Path, tmp_path: Path) -> None:
        other = tmp_path / "o.safetensors"
        calibrate_model(fixture_path(FIXED), write_photos(tmp_path / "a", 8, seed=3), other)
        with pytest.raises(InputError, match="of different models can not be merged"):
            merge_calibrations([calibration, other], tmp_path / "m")
        with pytest.raises(InputError, match="are in two of the calibrations; they would count twice"):
            merge_calibrations([calibration, calibration], tmp_path / "m")
        with pytest.raises(OptionError, match="takes two calibration files or more; found 1"):
            merge_calibrations([calibration], tmp_path / "m")
        assert not (tmp_path / "m").exists()


@pytest.mark.long
def test_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "c.safetensors", tmp_path / "d.safetensors"
    assert main(["calibrate", str(MODEL), "--calib", str(photos), "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_images"] == 18
    more = write_photos(tmp_path / "more", 8, seed=9)
    assert main(["calibrate", str(MODEL), "--calib", str(more), "-o", str(other)]) == 0
    assert "images: 6 to fit to, 2 held back" in capsys.readouterr().out
    assert main(["merge", str(path), str(other), "-o", str(tmp_path / "m")]) == 0
    assert "moments" in capsys.readouterr().out
    assert main(["prune", str(MODEL), "--calibration", str(tmp_path / "m"), "--macs", "0.8",
                      "-o", str(tmp_path / "o.onnx")]) == 0  # fmt: skip
    assert main(["prune", str(MODEL), "--macs", "0.8", "-o", str(tmp_path / "p.onnx")]) == 2
    assert "no images: give --calib DIR" in capsys.readouterr().err
    (tmp_path / "m").write_bytes(b"spoilt")
    assert main(["prune", str(MODEL), "--calibration", str(tmp_path / "m"), "--macs", "0.8",
                      "-o", str(tmp_path / "p.onnx")]) == 2  # fmt: skip
    assert "is no safetensors file" in capsys.readouterr().err
