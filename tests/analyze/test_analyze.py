"""What is said of units, against the numbers that the model itself shows, and what a person can not ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import OPERATOR, fixture_path, listing, write_photos

from corp_onnx.analyze import Analysis, analyze_model
from corp_onnx.analyze.analyze import SPARSE
from corp_onnx.analyze.subject import Subject, calibrate_subject, open_whole, plan_cut
from corp_onnx.calibrate.collect import tap_units
from corp_onnx.calibration import calibrate_model
from corp_onnx.checks import sides
from corp_onnx.checks.diet import Diet
from corp_onnx.errors import OptionError, OutputError
from corp_onnx.moments import pack_moments
from corp_onnx.options import choose_settings
from corp_onnx.progress import Run
from corp_onnx.results import StageClock
from corp_onnx.search.probes import draw_probes, probe_loss
from corp_onnx.units import Evidence

MODEL = fixture_path(OPERATOR)
ALL = ("depth", "images", "seeds", "shift")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("analyze") / "photos", 40)


@pytest.fixture(scope="module")
def result(photos: Path) -> Analysis:
    return analyze_model(MODEL, photos, studies=ALL)


@pytest.fixture(scope="module")
def subject(photos: Path) -> Subject:
    run, clock = Run(), StageClock()
    return calibrate_subject(open_whole(MODEL, photos, choose_settings(macs=0.5), Path(), run, clock), run, clock)


class TestUnits:
    def test_every_unit_that_can_be_pruned_is_there_once(self, result: Analysis, subject: Subject) -> None:
        assert [unit.key for unit in result.units] == [str(unit.key) for unit in subject.units]
        for unit in result.units:
            assert 1 <= unit.effective_rank <= unit.width
            assert 1 <= unit.k95 <= unit.width
            assert unit.rank_ratio == unit.effective_rank / unit.width
            assert (unit.activation_sparsity is None) == (unit.n_heads is not None)
            assert len(unit.spectrum) == (unit.n_heads or 1)
            np.testing.assert_allclose(np.sum(unit.spectrum, axis=1), 1, rtol=1e-3)

    def test_sparsity_is_what_the_activations_show(self, result: Analysis, subject: Subject) -> None:
        """On few images all of them are asked, so a count over everything that was exposed is the same."""
        (mlp, *_) = subject.units
        tapped = tap_units(subject.graph, [mlp])
        seen = np.concatenate([
            mlp.read(tapped.run(feeds), subject.graph, n_real)[0]
            for feeds, n_real in tapped.session.stream(subject.data.fitting, 8)
        ])  # fmt: skip
        near = np.abs(seen) <= SPARSE * np.sqrt(np.square(seen, dtype=np.float64).mean())
        assert result.units[0].activation_sparsity == pytest.approx(near.mean(), rel=1e-3)
        assert 0 < near.mean() < 1

    def test_tails_of_spectra_are_the_error_curve_of_logits(self, subject: Subject) -> None:
        moments = subject.whole.moments
        (choice, *_) = [c for c in subject.whole.trace() if c.unit.kind == "qk"]
        spectra = choice.unit.spectra(Evidence(subject.graph, moments))
        np.testing.assert_allclose(spectra.sum(axis=0)[::-1].cumsum()[::-1], choice.error_curve[:-1], rtol=1e-6)

    def test_a_probe_is_the_loss_of_that_unit_alone(self, result: Analysis, subject: Subject) -> None:
        problem = subject.whole
        evaluator = draw_probes(problem)
        for unit, choice in zip(result.units, problem.trace(), strict=True):
            loss = probe_loss(problem, evaluator, choice, unit.probe_width)
            assert unit.probe_loss == pytest.approx(loss, rel=1e-3, abs=1e-7)


class TestStudies:
    def test_depth_accumulates(self, result: Analysis) -> None:
        depth = result.studies[0].depth
        assert [row.block for row in depth] == [0, 1]
        assert all(
            error < without for row in depth for error, without in zip(row.errors, row.errors_without, strict=True)
        )
        assert all(row.stream_error for row in depth)

    def test_the_last_number_of_images_is_all_of_them(self, result: Analysis) -> None:
        """Sets grow by merged moments; the last is what a single pass over all gives, which the shift starts from."""
        images, shift = result.studies[1].rows, result.studies[3].rows
        assert [row.n_images for row in images] == [8, 16, 32]
        assert result.n_images == 32
        assert images[-1].loss == pytest.approx(shift[0].loss, rel=1e-3)

    def test_merged_moments_are_those_of_both(self, subject: Subject) -> None:
        fitting = subject.data.fitting
        parts = [subject.collect(fitting.select(np.arange(a, b)), subject.units) for a, b in ((0, 10), (10, 32))]
        joined, whole = subject.join(*parts), subject.whole.moments
        cut = plan_cut(subject, "paper", 0.5)
        for one, other in zip(cut.solve(joined).plans, cut.solve(whole).plans, strict=True):
            assert one.condition_number == pytest.approx(other.condition_number, rel=1e-3)

    def test_seeds_differ_and_are_summed_up(self, result: Analysis) -> None:
        study = result.studies[2]
        losses = [row.loss for row in study.rows]
        assert len(set(losses)) == len(losses) == 5
        mean, spread = study.spread("loss")
        assert mean == pytest.approx(np.mean(losses))
        assert spread == pytest.approx(np.std(losses, ddof=1))
        assert replace(study, rows=study.rows[:1]).spread("loss") == (losses[0], 0.0)

    def test_every_shift_is_fitted_and_judged(self, result: Analysis) -> None:
        pairs = [(row.fitted, row.judged) for row in result.studies[3].rows]
        own = "as they are"
        assert pairs[:4] == [(own, own), (own, "blur"), (own, "noise"), (own, "contrast")]
        assert pairs[4:] == [(n, j) for n in ("blur", "noise", "contrast") for j in (own, n)]

    def test_another_folder(self, photos: Path, tmp_path: Path) -> None:
        other = write_photos(tmp_path / "other", 12, seed=9)
        found = analyze_model(MODEL, photos, studies=["shift"], preset="best", shift_to=other)
        rows = found.studies[0].rows
        assert [(row.fitted, row.judged) for row in rows[2:]] == [("--shift-to", "as they are"), ("--shift-to",) * 2]
        assert rows[2].n_images == 9
        assert found.settings["shift_to"] == str(other)

    def test_best_loses_less_than_paper(self, photos: Path, result: Analysis) -> None:
        best = analyze_model(MODEL, photos, studies=["images"], preset="best")
        assert best.studies[0].rows[-1].loss < result.studies[1].rows[-1].loss


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for the sums of one unit and one open model."""
    lean = Diet(4, 0, 1, 0, sums=1, n_passes=6)
    monkeypatch.setattr("corp_onnx.case.choose_diet", lambda *_: lean)


class TestMemory:
    @pytest.mark.usefixtures("tight")
    def test_a_limit_changes_no_answer(self, photos: Path, result: Analysis, tmp_path: Path) -> None:
        """But for how float32 rounds where other tensors are exposed."""
        found = analyze_model(MODEL, photos, tmp_path / "a.json", studies=["depth", "images"])
        for mine, others in zip(found.studies, result.studies, strict=False):
            losses = [[row.loss for row in study.rows] for study in (mine, others)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-3)
            errors = [[error for row in study.depth for error in row.errors] for study in (mine, others)]
            assert errors[0] == pytest.approx(errors[1], rel=1e-3)
        assert [unit.k95 for unit in found.units] == [unit.k95 for unit in result.units]

    @pytest.mark.parametrize("short", [False, True])
    def test_one_model_is_open_at_a_time_where_memory_is_short(
        self, photos: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, short: bool
    ) -> None:
        if short:
            request.getfixturevalue("tight")
        ways: list[str] = []
        for name in ("together", "in_turn"):
            way = getattr(sides.Asked, name)
            monkeypatch.setattr(sides.Asked, name, lambda *args, name=name, way=way: ways.append(name) or way(*args))
        analyze_model(MODEL, photos, studies=["depth"])
        assert ways == ["in_turn" if short else "together"]

    def test_what_studies_collect_and_join_lies_in_files(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("corp_onnx.shelf.LARGE_BYTES", 1024)
        monkeypatch.setattr("corp_onnx.shelf.CHUNK_BYTES", 2**16)
        fitting = subject.data.fitting
        parts = [subject.collect(fitting.select(np.arange(a, a + 4)), subject.units) for a in (0, 4)]
        for moments in (subject.whole.moments, *parts, subject.join(*parts)):
            for _, of_unit in moments.entries:
                grams = [array for array in pack_moments(of_unit).values() if array.nbytes >= 1024]
                assert grams
                assert not any(_owns(array) for array in grams)

    def test_a_limit_that_can_not_be_kept_is_refused(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="--memory 10 MiB is too little"):
            analyze_model(MODEL, photos, tmp_path / "a.json", memory="10MiB")
        assert listing(tmp_path) == []


def _owns(array: np.ndarray) -> bool:
    """Whether its numbers lie in memory of NumPy's."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is None


class TestOutput:
    def test_json_is_all_of_it(self, photos: Path, tmp_path: Path) -> None:
        path = tmp_path / "new" / "analysis.json"
        result = analyze_model(MODEL, photos, path, n_images=12)
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert stored["schema"] == 1
        assert stored["units"][0]["k95"] == result.units[0].k95
        assert stored["settings"]["n_images"] == 12
        assert listing(tmp_path) == ["new", "new/analysis.json"]
        with pytest.raises(OutputError, match="exists already; give another -o, or --force"):
            analyze_model(MODEL, photos, path)

    def test_a_calibration_file_says_the_same(self, photos: Path, result: Analysis, tmp_path: Path) -> None:
        path = tmp_path / "vit.calibration.safetensors"
        calibrate_model(MODEL, photos, path, choosing=False, units="mlp,qk,vo")
        again = analyze_model(MODEL, calibration=path)
        assert [unit.k95 for unit in again.units] == [unit.k95 for unit in result.units]
        assert again.units[0].probe_loss == pytest.approx(result.units[0].probe_loss)

    def test_the_model_is_no_destination(self, photos: Path) -> None:
        with pytest.raises(OutputError, match="is the model itself"):
            analyze_model(MODEL, photos, MODEL, force=True)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"studies": ["width"]}, "--study must be one of depth, images, seeds, shift; found width"),
            ({"preset": "worst"}, "--preset must be best or paper; found worst"),
            ({"studies": ["seeds"], "n_seeds": 1}, "--seeds must be 2 or more"),
            ({"shift_to": "elsewhere"}, "--shift-to goes with --study shift"),
            ({"studies": ["depth"], "fraction": 1.5}, "--mlp is the fraction removed"),
            ({"sedd": 1}, "there is no option 'sedd'; did you mean seed"),
        ],
    )
    def test_what_can_not_be_asked(self, photos: Path, options: dict[str, object], sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence):
            analyze_model(MODEL, photos, **options)  # type: ignore[arg-type]

    def test_in_a_line_and_as_a_table(self, result: Analysis) -> None:
        assert "effective rank over dimension, mlp 0." in repr(result)
        assert len(result.table) == 1 + len(result.units)
