"""Memory: what is predicted by method, how a limit is kept, and that it changes no answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import probed
from samples import OPERATOR, fixture_path, listing, run_cli, weights_of, write_photos

from corp_onnx import memory, shelf
from corp_onnx.blocks import QkPair
from corp_onnx.calibrate.data import open_calibration
from corp_onnx.calibrate.groups import cut_groups, finished_bytes, largest_bytes, pass_bytes
from corp_onnx.checks import diet as diets
from corp_onnx.checks import footprint as room
from corp_onnx.checks.diet import choose_diet
from corp_onnx.checks.footprint import Footprint, predict_footprint
from corp_onnx.checks.preflight import choose_units
from corp_onnx.errors import OptionError, OutputError
from corp_onnx.options import choose_settings
from corp_onnx.prune import prune_model
from corp_onnx.refit.stream import find_walk
from corp_onnx.search.problem import Solution
from corp_onnx.search.search import Search
from corp_onnx.search.strategy import follow_method
from corp_onnx.shelf import Shelf

NAME = "timm_vit_ts17_unfused"
MIB = 2**20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 12)


def predicted(photos: Path, *, is_shared: bool = False, **options: Any) -> Footprint:
    graph, blocks = probed(NAME)
    settings = choose_settings(**options)
    data = open_calibration(graph.model, photos, settings)
    units = choose_units(graph, blocks, settings.method)
    return predict_footprint(graph, blocks, units, settings.method, data, is_shared=is_shared)


class TestPrediction:
    def test_phases_by_method(self, photos: Path) -> None:
        assert [name for name, *_ in predicted(photos).phases] == ["calibrate", "probe", "refit", "check", "measure"]
        paper = predicted(photos, preset="paper")
        assert [name for name, *_ in paper.phases] == ["calibrate", "check", "measure"]
        assert paper.shelved == 0

    def test_checks_of_a_small_model_run_at_once_where_there_is_room(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "resident_bytes", lambda: 0)
        monkeypatch.setattr(room, "choose_size", lambda: 2)
        more = (room.REWRITTEN + room.OPENED) * 4 * probed(NAME)[0].n_stored
        whole = predicted(photos)
        lean = whole.in_turn()
        fixed, one_by_one = ({name: fixed for name, fixed, _ in one.phases}["check"] for one in (whole, lean))
        assert fixed - one_by_one == pytest.approx(more + whole.solutions["check"])
        monkeypatch.setattr(room, "SMALL_MODEL", 1)
        assert {name: fixed for name, fixed, _ in predicted(photos).phases}["check"] == pytest.approx(fixed - more)

    def test_solutions_lie_in_files_where_memory_is_short(self, photos: Path) -> None:
        """By hand: weights of all last products in float64, before and behind the refit; a promise keeps its best trial
        as well."""
        graph, blocks = probed(NAME)
        weights = [s.linear.read_dense(graph)[0].nbytes for s in find_walk(blocks).stops]
        one = sum(weights)
        asked, promised = predicted(photos, macs=0.5), predicted(photos)
        assert asked.solutions == {"probe": 4 * one, "refit": 2 * one, "check": 2 * one, "measure": 2 * one}
        assert promised.solutions == {"probe": 6 * one, "refit": 4 * one, "check": 2 * one, "measure": 2 * one}
        lean = asked.in_turn()
        assert lean.aside == 4 * one
        for (name, fixed, _), (_, less, _) in zip(asked.phases, lean.phases, strict=True):
            if name in ("probe", "refit"):
                assert fixed - less == pytest.approx(asked.solutions[name])

    def test_batch_counts_what_is_exposed(self, photos: Path) -> None:
        """By hand: in each block the hidden channels, queries, keys and what the output projection reads."""
        graph, blocks = probed(NAME)
        exposed = 0
        for block in blocks.blocks:
            assert block.mlp is not None
            assert block.attention is not None
            assert isinstance(block.attention.qk, QkPair)
            assert block.attention.last is not None
            qkv = {block.attention.qk.q.projection, block.attention.qk.k.projection}
            for name in (block.mlp.hidden, *qkv, block.attention.last.input):
                exposed += 4 * np.prod(graph.dims(name)) // graph.n_images
        by_phase = {name: each for name, _, each in predicted(photos, macs=0.5).phases}
        assert by_phase["calibrate"] == pytest.approx(room.EXPOSED * exposed)

    def test_once_fractions_are_chosen_their_share_of_the_solutions_is_left(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(room, "resident_bytes", lambda: 0)
        graph, blocks = probed(NAME)
        units = choose_units(graph, blocks, choose_settings(preset="paper").method)
        solved = 8 * sum(unit.n_regressors * (unit.site.last.d_out if unit.site.last else 1) for unit in units)
        quarter, half = (
            {name: fixed for name, fixed, _ in predicted(photos, preset="paper", mlp=cut, attn=cut).phases}
            for cut in (0.75, 0.5)
        )
        assert half["measure"] - quarter["measure"] == pytest.approx(0.25 * solved)

    def test_one_model_at_a_time_exposes_for_one(self, photos: Path) -> None:
        both = predicted(photos, preset="paper")
        each, alone = ({name: one for name, _, one in made.phases} for made in (both, both.in_turn()))
        assert alone["measure"] == pytest.approx(each["measure"] * room.EXPOSED / room.MEASURED)
        assert alone["calibrate"] == each["calibrate"]

    def test_streams_stay_where_another_refit_may_follow(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(room, "SIDES_BYTES", 0)
        alone, shared = predicted(photos, macs=0.5), predicted(photos, is_shared=True, macs=0.5)
        n_fitting, (graph, blocks) = 10, probed(NAME)
        streams = [math.prod(graph.dims(s.residual.stream)) / graph.n_images for s in find_walk(blocks).stops]
        assert shared.shelved - alone.shelved == n_fitting * 4 * sum(streams)
        monkeypatch.setattr(room, "KNOWN_BYTES", 100)
        assert predicted(photos, is_shared=True, macs=0.5).shelved == alone.shelved + 100
        monkeypatch.setattr(room, "SIDES_BYTES", 7)
        assert predicted(photos, is_shared=True, preset="paper").shelved == 7

    def test_more_images_lie_on_the_shelf(self, photos: Path) -> None:
        assert predicted(photos, macs=0.5).shelved > predicted(photos, macs=0.5, n_images=6).shelved > 0


def made(fixed: float = 100, each: float = 10, shelved: float = 50) -> Footprint:
    return Footprint((("calibrate", fixed / 2, each), ("refit", fixed, each)), shelved)


class TestDiet:
    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diets, "MARGIN", 1.0)
        monkeypatch.setattr(diets, "available_bytes", lambda: 1000)
        monkeypatch.setattr(diets, "resident_bytes", lambda: 20)
        monkeypatch.setattr(diets, "free_bytes", lambda _: 60)

    def test_enough(self, tmp_path: Path) -> None:
        diet = choose_diet(made(), 8, None, tmp_path)
        assert (diet.batch_size, diet.shelf, diet.peak, diet.in_files) == (8, None, 230, 0)

    def test_files_first_then_fewer_images(self, tmp_path: Path) -> None:
        assert choose_diet(made(), 8, 200, tmp_path) == diets.Diet(8, 20, 200, 30)
        assert choose_diet(made(), 8, 150, tmp_path) == diets.Diet(4, 10, 150, 40)

    def test_little_memory_in_the_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diets, "available_bytes", lambda: 130)
        assert choose_diet(made(), 8, None, tmp_path) == diets.Diet(4, 10, 150, 40)
        monkeypatch.setattr(diets, "available_bytes", lambda: 30)  # nothing was asked for: it is tried
        assert choose_diet(made(), 8, None, tmp_path).batch_size == 1

    def test_a_limit_is_kept_with_a_margin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diets, "MARGIN", 1.25)
        assert choose_diet(made(), 8, 250, tmp_path) == diets.Diet(8, 20, 200, 30)

    def test_too_little_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=r"--memory 1 MiB is too little: to refit this model takes about 2 MiB, "
                                              "one image at a time and with everything else in files"):  # fmt: skip
            choose_diet(made(fixed=2 * MIB - 20), 8, MIB, tmp_path)

    def test_sums_in_passes_where_all_of_them_do_not_fit(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every phase is smaller by what lies in the file; the passes take what is left."""
        monkeypatch.setattr(diets, "free_bytes", lambda _: 2**40)
        whole = predicted(photos, macs=0.5)
        whole = replace(whole, shelved=0.0, phases=whole.phases[:1], solutions={})
        apart, least = whole.in_passes(), max(pass_bytes([unit]) for unit in whole.units)
        ((_, fixed, each),) = apart.phases
        assert whole.phases[0][1] - fixed == pass_bytes(whole.units) - least > 0
        diet = choose_diet(whole, 1, int(fixed + each + 0.5 * least), tmp_path)
        assert diet.sums == pytest.approx(1.5 * least, abs=2)
        assert diet.n_passes == len(cut_groups(whole.units, diet.sums)) > 1
        assert diet.in_files == finished_bytes(whole.units)
        assert f" in a file, the sums in {diet.n_passes} passes; " in diet.describe()
        enough = choose_diet(whole, 1, int(whole.without_shelf(1)), tmp_path)
        assert (enough.sums, enough.n_passes, enough.in_files) == (None, 1, 0)

    def test_folds_have_moments_of_their_own(self, photos: Path) -> None:
        """Of few images, which fit and choose: twice more, or in the file as well."""
        graph, blocks = probed(NAME)
        settings = choose_settings()
        data, units = open_calibration(graph.model, photos, settings), choose_units(graph, blocks, settings.method)
        assert data.is_crossed
        alone = predict_footprint(graph, blocks, units, settings.method, replace(data, is_crossed=False))
        crossed = predict_footprint(graph, blocks, units, settings.method, data)
        for (name, fixed, _), (_, less, _) in zip(crossed.phases, alone.phases, strict=True):
            more = 0 if name == "calibrate" else 2 * finished_bytes(units)
            assert fixed - less == pytest.approx(more, abs=2**20)  # what the process holds already moves
        for (_, fixed, _), (_, less, _) in zip(crossed.in_passes().phases, alone.in_passes().phases, strict=True):
            assert fixed == pytest.approx(less, abs=2**20)
        assert crossed.in_passes().aside - alone.in_passes().aside == 2 * finished_bytes(units)

    def test_later_phases_hold_two_moments_of_those_in_a_file(self, photos: Path) -> None:
        whole = predicted(photos, macs=0.5)
        for (name, fixed, _), (_, apart, _) in zip(whole.phases, whole.in_passes().phases, strict=True):
            if name != "calibrate":
                assert fixed - apart == finished_bytes(whole.units) - room.LOOKED_AT * largest_bytes(whole.units) > 0

    def test_full_disk_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="intermediate results need about 1 MiB there, and 1 MiB are free"):
            choose_diet(made(shelved=100), 1, 115, tmp_path)

    def test_sentence(self, tmp_path: Path) -> None:
        assert choose_diet(made(), 8, 200, tmp_path).describe() == (
            "memory: about 1 MiB at the most, 8 images at a time, and 1 MiB in a file; 1 MiB are free."
        )


class TestRun:
    @pytest.fixture
    def shelves(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Shelf]]:
        """Every shelf that a run makes; the process holds nothing and needs nothing but images."""
        made: list[Shelf] = []

        def make(*args: Any) -> Shelf:
            made.append(shelf.Shelf(*args))
            return made[-1]

        monkeypatch.setattr("corp_onnx.prune.Shelf", make)
        return made

    @pytest.mark.parametrize("n_cores", [1, 2])
    def test_solutions_lie_aside_where_there_is_a_limit(
        self, n_cores: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether splits are tried side by side or not, and those of the refit."""
        monkeypatch.setattr("corp_onnx.case.choose_diet", lambda *_: diets.Diet(3, 0, 1, 1))
        monkeypatch.setattr("corp_onnx.search.search.count_beside", lambda *_: n_cores)
        list_splits = Search._list_splits
        monkeypatch.setattr(Search, "_list_splits", lambda *args, **options: 2 * list_splits(*args, **options))
        monkeypatch.setattr(shelf, "LARGE_BYTES", 64)
        seen: list[np.ndarray] = []
        aside = Shelf.aside

        def lay(one: Shelf, array: np.ndarray) -> np.ndarray:
            seen.append(aside(one, array))
            return seen[-1]

        monkeypatch.setattr(Shelf, "aside", lay)
        made: list[Solution] = []
        monkeypatch.setattr("corp_onnx.prune.follow_method", lambda p: made.append(follow_method(p)) or made[-1])
        prune_model(fixture_path(NAME), photos, tmp_path / "b.onnx", macs=0.4)
        (solution,) = made
        changes = [*solution.changes.values(), *(plan.solved for plan in solution.plans)]
        arrays = [array for change in changes for array in change.arrays().values() if array.nbytes >= 64]
        assert arrays
        assert all(any(np.shares_memory(array, laid) for laid in seen) for array in arrays)
        assert not any(array.flags.writeable for array in arrays)

    @pytest.mark.long
    def test_a_limit_changes_no_answer(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelves: list[Shelf]
    ) -> None:
        prune_model(fixture_path(NAME), photos, tmp_path / "a.onnx", macs=0.7)
        monkeypatch.setattr("corp_onnx.case.choose_diet", lambda *_: diets.Diet(3, 0, 1, 1))
        monkeypatch.setattr(shelf, "LARGE_BYTES", 64)  # solutions of a small model lie aside as well
        prune_model(fixture_path(NAME), photos, tmp_path / "b.onnx", macs=0.7)
        assert [one.n_written > 0 for one in shelves] == [False, True]
        a, b = weights_of(tmp_path / "a.onnx"), weights_of(tmp_path / "b.onnx")
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4 * max(np.abs(a[name]).max(), 1))
        assert listing(tmp_path) == ["a.onnx", "a.report.json", "b.onnx", "b.report.json"]

    @pytest.mark.long
    def test_passes_change_no_answer(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prune_model(fixture_path(NAME), photos, tmp_path / "a.onnx", macs=0.7)
        chosen: list[diets.Diet] = []
        diet = diets.Diet(8, None, 1, 1, sums=1, n_passes=4)
        monkeypatch.setattr("corp_onnx.case.choose_diet", lambda *_: (chosen.append(diet), diet)[1])
        prune_model(fixture_path(NAME), photos, tmp_path / "b.onnx", macs=0.7)
        assert chosen
        a, b = weights_of(tmp_path / "a.onnx"), weights_of(tmp_path / "b.onnx")
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4 * max(np.abs(a[name]).max(), 1))

    @pytest.mark.long
    def test_command_line(self, photos: Path, tmp_path: Path) -> None:
        command = ("prune", fixture_path(OPERATOR), "--calib", photos, "--preset", "paper", "-o", "p.onnx")
        done = run_cli(*command, "--memory", "20GiB", cwd=tmp_path)
        assert done.returncode == 0
        assert "\nmemory: about " in done.stderr
        (tmp_path / "p.onnx").unlink(), (tmp_path / "p.report.json").unlink()
        refused = run_cli(*command, "--memory", "10MiB", cwd=tmp_path)
        assert refused.returncode == 2
        assert "corp-onnx: --memory 10 MiB is too little: to " in refused.stderr
        assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("1.5 G", 3 * 2**29), ("800MB", 8 * 10**8), ("4096", 4096), ("1tib", 2**40)]
)
def test_sizes(text: str, size: int) -> None:
    assert memory.read_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "much", "0", "-1G", "2 GiB more", "1e3", "5 XiB", "9" * 400])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="--memory takes a size such as 2GiB or 800MB; found '"):
        choose_settings(memory=text)


def test_sizes_as_texts_show_them() -> None:
    assert [memory.write_size(n) for n in (1, 310 * MIB, 2**30, 1.45 * 2**30)] == [
        "1 MiB", "310 MiB", "1.0 GiB", "1.4 GiB",
    ]  # fmt: skip


def test_a_container_has_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", "1000"), ("current", "400"), ("info", "MemAvailable: 1 kB\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "info")
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    assert memory.available_bytes() == 600
    (tmp_path / "max").write_text("max\n")
    assert memory.available_bytes() == 1024
    (tmp_path / "info").unlink()
    assert memory.available_bytes() is None


def test_resident_and_given_back() -> None:
    memory.release_memory()
    assert memory.resident_bytes() is None or memory.resident_bytes() > 0
