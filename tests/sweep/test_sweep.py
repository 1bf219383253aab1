"""A sweep makes what `prune` makes, once, and loses nothing but the point it was at."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from samples import EXTERNAL, OPERATOR, SEPARATE, fixture_path, listing, weights_of, write_photos

import corp_onnx.sweep.sweep as sweeping
from corp_onnx.errors import OptionError, OutputError
from corp_onnx.prune import prune_model
from corp_onnx.results import Metric, PruneResult
from corp_onnx.sweep import Sweep, SweepPoint, SweepSettings, sweep_model
from corp_onnx.sweep.plan import plan_points
from corp_onnx.sweep.values import COLUMNS, sort_points

MODEL = fixture_path(OPERATOR)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("sweep") / "photos", 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swept") / "new"


@pytest.fixture(scope="module")
def result(photos: Path, folder: Path) -> Sweep:
    return sweep_model(MODEL, photos, folder, budgets=(0.9, 0.6), presets=("best", "paper"), keep=True)


def named(result: Sweep, name: str) -> SweepPoint:
    return next(point for point in result.points if point.name == name)


class TestPoints:
    @pytest.mark.long
    @pytest.mark.parametrize("budget", [0.9, 0.6])
    def test_are_what_prune_makes(self, photos: Path, result: Sweep, tmp_path: Path, budget: float) -> None:
        """The same numbers in the file, whatever was recalled from the first point's calibration."""
        alone = prune_model(MODEL, photos, tmp_path / "alone.onnx", macs=budget)
        point = named(result, f"best-{budget:g}")
        assert point.kept_macs == alone.kept_macs
        assert point.kept == Metric("agreement", alone.held_out.promise.value, *_ends(alone))
        ours, theirs = weights_of(Path(point.file)), weights_of(tmp_path / "alone.onnx")
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)

    def test_are_in_the_order_of_the_curves_behind_the_dense_model(self, result: Sweep) -> None:
        assert [p.name for p in result.points] == ["dense", "best-0.9", "best-0.6", "paper-0.9", "paper-0.6"]
        assert result.n_made == 4

    def test_stand_from_the_largest_to_the_smallest_whenever_they_were_made(self) -> None:
        sizes = [("best", "macs", 0.65), ("best", "macs", 0.9), ("dense", "dense", 1.0), ("both", "removed", 0.5),
                 ("best", "macs", 0.7), ("both", "removed", 0.25)]  # fmt: skip
        points = [SweepPoint(f"{s}-{v:g}", s, kind, v, "fp32") for s, kind, v in sizes]
        found = [point.name for point in sort_points(points)]
        assert found == ["dense-1", "best-0.9", "best-0.7", "best-0.65", "both-0.25", "both-0.5"]

    def test_of_the_paper_lose_the_same_fraction_everywhere(self, result: Sweep) -> None:
        report = json.loads(Path(named(result, "paper-0.9").file).with_suffix(".report.json").read_text())
        assert report["settings"]["method"]["rank"] == "energy"
        assert (
            len({unit["width_after"] / unit["width_before"] for unit in report["units"] if unit["kind"] == "mlp"}) == 1
        )

    def test_that_can_not_be_are_said_with_the_reason(self, result: Sweep) -> None:
        point = named(result, "paper-0.6")
        assert "asks for less than" in point.problem
        assert point.kept_macs is None
        assert point.name not in result.pareto


class TestAgain:
    def test_nothing_is_made_twice(self, photos: Path, folder: Path, result: Sweep, monkeypatch: Any) -> None:
        monkeypatch.setattr(sweeping, "prune_model", None)
        again = sweep_model(MODEL, photos, folder, budgets=(0.9, 0.6), presets=("best", "paper"), keep=True)
        assert again.points == result.points
        assert again.n_made == 0

    def test_a_stopped_run_loses_the_point_it_was_at(self, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
        made: list[float] = []

        def stop_at_the_third(*arguments: Any, **options: Any) -> PruneResult:
            made.append(options["settings"].method.widths.value)
            if len(made) == 3:
                raise KeyboardInterrupt
            return prune_model(*arguments, **options)

        monkeypatch.setattr(sweeping, "prune_model", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            sweep_model(MODEL, photos, tmp_path / "s", budgets=(0.9, 0.8, 0.7))
        stored = json.loads((tmp_path / "s" / "sweep.json").read_text())
        assert [point["name"] for point in stored["points"]] == ["dense", "best-0.9", "best-0.8"]
        result = sweep_model(MODEL, photos, tmp_path / "s", budgets=(0.9, 0.8, 0.7))
        assert made == [0.9, 0.8, 0.7, 0.7]
        assert [point.name for point in result.points] == ["dense", "best-0.9", "best-0.8", "best-0.7"]

    def test_other_points_join_those_that_are_there(self, photos: Path, folder: Path, result: Sweep) -> None:
        more = sweep_model(MODEL, photos, folder, budgets=(0.75,), keep=True)
        assert more.n_made == 1
        assert {p.name for p in more.points} == {p.name for p in result.points} | {"best-0.75"}

    @pytest.mark.long
    def test_other_images_make_other_points(self, folder: Path, result: Sweep, tmp_path: Path) -> None:
        assert result.points
        other = sweep_model(MODEL, write_photos(tmp_path / "p", 12, seed=3), tmp_path / "s", budgets=(0.9,))
        (tmp_path / "s" / "sweep.json").write_bytes((folder / "sweep.json").read_bytes())
        again = sweep_model(MODEL, tmp_path / "p", tmp_path / "s", budgets=(0.9,))
        assert again.n_made == 1
        assert again.points[1].kept_macs == other.points[1].kept_macs

    def test_another_model_is_refused(self, photos: Path, folder: Path, result: Sweep) -> None:
        assert result.points
        with pytest.raises(OutputError, match="is of another model, or damaged; give another -o, or --force"):
            sweep_model(fixture_path(SEPARATE), photos, folder, budgets=(0.9,))


class TestFiles:
    @pytest.mark.long
    def test_models_are_kept_where_that_was_asked_for(self, photos: Path, result: Sweep, tmp_path: Path) -> None:
        assert all(Path(p.file).is_file() for p in result.points if p.kept_macs is not None and p.kind != "dense")
        sweep_model(MODEL, photos, tmp_path / "s", budgets=(0.9,), precisions=("fp32", "int8"))
        found = [name for name in listing(tmp_path / "s") if not name.endswith(".safetensors")]
        assert found == ["points", "points/best-0.9.report.json", "sweep.csv", "sweep.json"]

    def test_one_calibration_file_which_prune_goes_on_from(self, folder: Path, result: Sweep, tmp_path: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        found = prune_model(MODEL, output=tmp_path / "from.onnx", calibration=file, macs=0.6)
        assert found.kept_macs == named(result, "best-0.6").kept_macs

    def test_the_tidy_table_is_the_record(self, folder: Path, result: Sweep) -> None:
        assert result.points
        with (folder / "sweep.csv").open(newline="") as file:
            heads, *rows = csv.reader(file)
        assert tuple(heads) == COLUMNS
        stored = json.loads((folder / "sweep.json").read_text())
        by_name = {point["name"]: point for point in stored["points"]}
        assert stored["schema"] == 1
        for name, _series, _asked, _precision, images, metric, value, _low, _high in rows:
            found = by_name[name].get(metric)
            if images == "held out":
                found = next(m["value"] for m in by_name[name]["held_out"] if m["name"] == metric)
            assert float(value) == found

    @pytest.mark.long
    def test_given_images_judge_all_and_labels_make_top1(self, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(sweeping, "BENCH_SECONDS", 0.05)
        for name in ("0", "1"):
            write_photos(tmp_path / "val" / name, 4, seed=int(name))
        found = sweep_model(
            MODEL, photos, tmp_path / "s", budgets=(0.9,), images=tmp_path / "val", labels=[str(i) for i in range(10)],
            precisions=("fp32", "int8"), bench=True,
        )  # fmt: skip
        assert [p.name for p in found.points] == ["dense", "best-0.9", "best-0.9-int8"]
        assert all(any(m.name == "top1" for m in p.scores) for p in found.points)
        assert found.points[2].kept_bytes is not None
        assert found.points[1].kept_bytes is not None
        assert found.points[2].kept_bytes < found.points[1].kept_bytes
        assert all(p.speedup is not None and p.speedup.value > 0 for p in found.points[1:])

    def test_bytes_are_of_all_files_of_a_model(self, photos: Path, tmp_path: Path) -> None:
        source = fixture_path(EXTERNAL)
        found = sweep_model(source, photos, tmp_path / "s", budgets=(0.9,), presets=("paper",), keep=True)
        path = Path(found.points[1].file)
        after, before = (sum(f.stat().st_size for f in p.parent.glob(f"{p.name}*")) for p in (path, source))
        assert path.with_name(f"{path.name}.data").is_file()
        assert found.points[1].kept_bytes == after / before


class TestPlan:
    def test_the_papers_curves_each_once(self) -> None:
        sweep = SweepSettings(
            fractions=(0.1, 0.5), targets=("mlp", "attn", "both"), variants=("compensated", "plain"),
            ranks=("energy", "magnitude"),
        )  # fmt: skip
        points = plan_points(sweep, {})
        assert len(points) == 2 * (2 * 2 + 2 * 1 + 2 * 2)
        assert len({point.name for point in points}) == len(points)
        by_name = {point.name: point.settings.method for point in points}
        method = by_name["attn-plain-energy-0.5"]
        assert (method.widths.mlp, method.widths.attn, method.compensate) == (0.0, 0.5, False)  # type: ignore[union-attr]
        assert by_name["both-compensated-magnitude-0.1"].rank == "magnitude"

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"budgets": (0.5,), "fractions": (0.5,)}, "--budgets and --fractions both say the sizes"),
            ({"budgets": (1.5,)}, "--budgets lie between 0 and 1; found 1.5"),
            ({"targets": ("heads",)}, "--targets takes mlp, attn, both; found heads"),
            ({"precisions": ("fp16",)}, "--precision takes fp32, int8; found fp16"),
            ({"presets": ()}, "--presets takes best, paper; found none"),
        ],
    )
    def test_what_can_not_be_asked(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence):
            SweepSettings(**options)


class TestPareto:
    def point(self, name: str, macs: float, kept: float, low: float, precision: str = "fp32") -> SweepPoint:
        return SweepPoint(name, "best", "macs", macs, precision, macs, kept=Metric("agreement", kept, low, 1.0))

    def sweep(self, result: Sweep, *points: SweepPoint) -> Sweep:
        from dataclasses import replace

        return replace(result, points=points)

    def test_who_costs_more_and_keeps_less_is_beaten(self, result: Sweep) -> None:
        found = self.sweep(
            result, self.point("a", 0.9, 0.99, 0.95), self.point("b", 0.8, 0.99, 0.93),
            self.point("c", 0.7, 0.96, 0.91), self.point("d", 0.7, 0.95, 0.9), self.point("e", 0.5, 0.8, 0.7),
            self.point("f", 0.7, 0.5, 0.4, "int8"),
        )  # fmt: skip
        assert found.pareto == ("b", "c", "e", "f")
        assert found.recommended is not None
        assert found.recommended.name == "c"
        assert found.advice.startswith("recommended: c, with 70% of the MACs: agreement 96.0% on 8 held-back images")

    def test_where_none_is_safe_it_says_what_would_help(self, result: Sweep) -> None:
        found = self.sweep(result, self.point("e", 0.5, 0.8, 0.7))
        assert found.recommended is None
        assert "give more images, or budgets nearer to 1" in found.advice

    def test_measured_time_decides_where_it_is_known(self, result: Sweep) -> None:
        from dataclasses import replace

        slow = replace(self.point("slow", 0.5, 0.9, 0.8), speedup=Metric("speedup", 1.1))
        fast = replace(self.point("fast", 0.9, 0.95, 0.92, "int8"), speedup=Metric("speedup", 2.0))
        assert self.sweep(result, slow, fast).pareto == ("fast",)


def _ends(result: PruneResult) -> tuple[float | None, float | None]:
    return result.held_out.promise.low, result.held_out.promise.high
