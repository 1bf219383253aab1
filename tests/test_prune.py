"""Whole runs on exported graphs: what the report says against counts and formulas written out here."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import feeds_of, probed
from samples import (
    COMPUTED_SCALE,
    DEMO,
    EXTERNAL,
    FIXED,
    GUESS,
    OPERATOR,
    SEPARATE,
    TEXT,
    expectation,
    fixture_path,
    listing,
    paper,
    weights_of,
    write_photos,
)

from corp_onnx.calibrate.data import HELD_OUT_FRACTION
from corp_onnx.errors import ImageError, NothingToPruneError, OptionError, OutputError
from corp_onnx.evaluate import evaluate_models
from corp_onnx.graph.model import hash_file
from corp_onnx.images import open_images, split_holdout
from corp_onnx.images.recipe import METADATA_KEY, Recipe, find_recipe
from corp_onnx.progress import Run
from corp_onnx.prune import PRUNE_KEY, default_output, default_report, prune_model
from corp_onnx.results import PruneResult, to_json
from corp_onnx.settings import Budget, Method, Preprocessing, PruneSettings

N_PHOTOS = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", N_PHOTOS)


@pytest.fixture(scope="module")
def pruned(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    """Half of every MLP and query/key head of a model that computes its scale from the head size."""
    output = tmp_path_factory.mktemp("pruned") / "out.onnx"
    return prune_model(fixture_path(COMPUTED_SCALE), photos, output, settings=paper())


def run_model(path: str | Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels})[0]


def noise(n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 3, 8, 8)).astype(np.float32)


def hand_count(name: str, d_hidden: int, d_qk: int, n_classes: int = 10, patch: int = 2) -> tuple[int, int]:
    """(parameters, MACs of one image) of a timm Vision Transformer with these widths."""
    e = expectation(name)
    d, n, h, d_v = e["d_model"], e["n_tokens"], e["n_heads"], e["d_head"]
    embed = 3 * patch * patch * d
    parameters = embed + d + d + n * d + 2 * d + d * n_classes + n_classes  # patches, class token, positions, head
    macs = (n - 1) * embed + d * n_classes
    for _ in range(e["n_blocks"]):
        parameters += 4 * d  # two LayerNorms
        parameters += 2 * h * d_qk * (d + 1) + h * d_v * (d + 1) + d * (h * d_v + 1)  # q and k, v, projection
        parameters += d_hidden * (d + 1) + d * (d_hidden + 1)
        macs += n * d * h * (2 * d_qk + 2 * d_v) + n * n * h * (d_qk + d_v) + 2 * n * d * d_hidden
    return parameters, macs


class TestReport:
    def test_file_holds_the_result(self, pruned: PruneResult) -> None:
        stored = json.loads(Path(pruned.report_path).read_text(encoding="utf-8"))
        assert stored["schema"] == 1
        assert stored == json.loads(to_json(pruned))
        assert set(stored) == {"schema", "verb"} | {f.name for f in fields(PruneResult)}

    def test_sizes_equal_a_count_by_hand(self, pruned: PruneResult) -> None:
        e = expectation(COMPUTED_SCALE)
        dense = hand_count(COMPUTED_SCALE, e["d_hidden"], e["d_head"])
        smaller = hand_count(COMPUTED_SCALE, e["d_hidden"] // 2, e["d_head"] // 2)
        assert (pruned.dense.n_parameters, pruned.dense.macs) == dense
        assert (pruned.pruned.n_parameters, pruned.pruned.macs) == smaller

    def test_files_are_named_hashed_and_measured(self, pruned: PruneResult) -> None:
        for facts, path in ((pruned.dense, fixture_path(COMPUTED_SCALE)), (pruned.pruned, Path(pruned.pruned.path))):
            assert facts.path == str(path)
            assert facts.sha256 == hash_file(path)
            assert facts.n_bytes == path.stat().st_size
            assert (facts.opset, facts.precision, facts.batch) == (17, "float32", None)
        assert pruned.pruned.n_bytes < pruned.dense.n_bytes

    def test_every_unit_is_listed_with_its_widths(self, pruned: PruneResult) -> None:
        e = expectation(COMPUTED_SCALE)
        widths = {(u.key, u.kind, u.block, u.width_before, u.width_after) for u in pruned.units}
        mlps = {(f"blocks.{i}.mlp", "mlp", i, e["d_hidden"], e["d_hidden"] // 2) for i in range(2)}
        pairs = {(f"blocks.{i}.attn.qk", "qk", i, e["d_head"], e["d_head"] // 2) for i in range(2)}
        assert widths == mlps | pairs
        assert pruned.n_units_found == 4
        assert pruned.skipped == ()

    def test_checks_ran_and_passed(self, pruned: PruneResult) -> None:
        names = [c.name for c in pruned.checks]
        assert names == ["structure", "signature", "identity", "padding", "replay", "batches"]
        assert all(c.passed and c.detail for c in pruned.checks)
        measured = [c for c in pruned.checks if c.tolerance is not None]
        assert len(measured) == 4
        assert all(c.difference is not None and c.difference <= c.tolerance for c in measured)

    def test_data_and_time_are_described(self, pruned: PruneResult, photos: Path) -> None:
        data, e = pruned.calibration, expectation(COMPUTED_SCALE)
        assert (data.path, data.n_images, data.n_held_out, data.seed) == (str(photos), 19, 5, 0)
        assert data.n_tokens == data.n_images * e["n_tokens"]
        assert data.recipe is not None
        assert data.recipe["size"] == [8, 8]
        assert data.skipped == ()
        assert pruned.warnings == (
            "only 19 calibration images; a few hundred give a better model.",
            "only 5 images, held back from the others, say how good the model still is; 500 images in all would leave "
            "100.",
            GUESS,
        )
        assert data.recipe_origin == "guessed (ImageNet, 8)"
        stages = [s.stage for s in pruned.stages]
        assert stages == ["load", "open images", "calibrate", "solve", "rewrite", "verify", "measure"]
        assert all(s.seconds >= 0 for s in pruned.stages)
        assert pruned.environment.versions["onnxruntime"] == onnxruntime.__version__

    def test_what_is_wrong_with_images_is_said_before_the_work(self, photos: Path, tmp_path: Path) -> None:
        run, heard = Run(), list[tuple[str, str]]()
        run.hear = lambda sentence: heard.append((sentence, run.moment.stage if run.moment else ""))
        found = prune_model(fixture_path(COMPUTED_SCALE), photos, tmp_path / "p.onnx", settings=paper(), progress=run)
        assert [sentence for sentence, _ in heard] == list(found.warnings)
        assert {stage for _, stage in heard} == {"open images"}

    def test_held_back_images_are_measured(self, pruned: PruneResult) -> None:
        held = pruned.held_out
        assert held.n_images == pruned.calibration.n_held_out
        assert held.agreement is not None
        assert 0 <= held.agreement <= 1
        assert held.kl is not None
        assert held.kl > 0
        assert len(held.stream_error) == 2
        assert 0 < held.stream_error[0] < held.stream_error[1] < 1


class TestModel:
    def test_has_the_face_of_the_dense_one(self, pruned: PruneResult) -> None:
        before, after = onnx.load(pruned.dense.path).graph, onnx.load(pruned.pruned.path).graph
        assert list(before.input) == list(after.input)
        assert list(before.output) == list(after.output)
        assert run_model(pruned.pruned.path, noise(5)).shape == (5, 10)

    def test_uses_no_operator_of_its_own(self, pruned: PruneResult) -> None:
        model = onnx.load(pruned.pruned.path)
        assert {n.domain for n in model.graph.node} == {""}
        assert list(model.opset_import) == list(onnx.load(pruned.dense.path).opset_import)

    def test_remembers_where_it_came_from(self, pruned: PruneResult) -> None:
        properties = {p.key: p.value for p in onnx.load(pruned.pruned.path).metadata_props}
        origin = json.loads(properties[PRUNE_KEY])
        assert origin["schema"] == 1
        assert origin["dense_sha256"] == hash_file(fixture_path(COMPUTED_SCALE))
        assert origin["settings"] == json.loads(json.dumps(asdict(paper())))
        assert json.loads(properties[METADATA_KEY]) == pruned.calibration.recipe

    def test_dense_file_is_not_touched(self, photos: Path, tmp_path: Path) -> None:
        model = Path(shutil.copy(fixture_path(OPERATOR), tmp_path / "m.onnx"))
        before = model.read_bytes()
        result = prune_model(model, photos, settings=paper())
        assert model.read_bytes() == before
        assert listing(tmp_path) == ["m.onnx", "m.pruned.onnx", "m.pruned.report.json"]
        assert result.pruned.path == str(tmp_path / "m.pruned.onnx")

    def test_evaluate_uses_the_stored_recipe(self, photos: Path, tmp_path: Path) -> None:
        changes = Preprocessing(resize=9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="nearest")
        output = tmp_path / "out.onnx"
        prune_model(fixture_path(OPERATOR), photos, output, settings=paper(preprocessing=changes))
        evaluation = evaluate_models([output], open_images(photos), reference=fixture_path(OPERATOR))
        expected = Recipe(size=(8, 8), resize=9, interpolation="nearest", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
        assert evaluation.scores[0].recipe == expected
        assert evaluation.baseline is not None
        assert evaluation.baseline.recipe == expected  # the dense file carries none: it must see the same pixels


class TestSettings:
    @pytest.mark.parametrize(("mlp", "attn", "kind"), [(0.5, 0.0, "mlp"), (0.0, 0.5, "qk")])
    def test_zero_of_one_kind_leaves_it_alone(
        self, mlp: float, attn: float, kind: str, photos: Path, tmp_path: Path
    ) -> None:
        model = fixture_path(COMPUTED_SCALE)
        result = prune_model(model, photos, tmp_path / "out.onnx", settings=paper(mlp, attn))
        assert {u.kind for u in result.units} == {kind}
        e = expectation(COMPUTED_SCALE)
        widths = (round(e["d_hidden"] * (1 - mlp)), round(e["d_head"] * (1 - attn)))
        assert (result.pruned.n_parameters, result.pruned.macs) == hand_count(COMPUTED_SCALE, *widths)
        before, after = weights_of(model), weights_of(tmp_path / "out.onnx")
        untouched = [name for name in before if name in after and np.array_equal(before[name], after[name])]
        qkv = [name for name, w in before.items() if w.shape == (e["d_model"], 3 * e["d_model"])]
        hidden = [name for name, w in before.items() if e["d_hidden"] in w.shape]
        assert set(qkv if kind == "mlp" else hidden) <= set(untouched)
        assert not set(hidden if kind == "mlp" else qkv) & set(untouched)

    @pytest.mark.parametrize("rank", ["energy", "magnitude"])
    def test_ranking_keeps_the_channels_of_its_formula(self, rank: str, photos: Path, tmp_path: Path) -> None:
        """The kept rows of the first product, looked up among the dense ones."""
        model, output = fixture_path(OPERATOR), tmp_path / "out.onnx"
        settings = paper(0.25, 0.0, rank=rank)
        result = prune_model(model, photos, output, settings=settings)
        d_hidden = expectation(OPERATOR)["d_hidden"]
        hidden = find_hidden_activations(model, d_hidden)
        ups = [w for w in weights_of(model).values() if w.shape == (20, d_hidden)]
        downs = [w for w in weights_of(model).values() if w.shape == (d_hidden, 20)]
        kept_ups = [w for w in weights_of(output).values() if w.shape == (20, d_hidden * 3 // 4)]
        calibration, _ = split_holdout(open_images(photos, Recipe(size=(8, 8))), HELD_OUT_FRACTION, 0)
        pixels = np.concatenate([b.pixels for b in calibration.batches(64)])
        assert len(pixels) == result.calibration.n_images
        for up, down, kept, name in zip(ups, downs, kept_ups, hidden, strict=True):
            if rank == "energy":
                score = np.square(tap(model, name, pixels)).mean(axis=(0, 1))
            else:
                score = np.linalg.norm(down, axis=1)
            best = np.sort(np.argsort(-score)[: kept.shape[1]])
            np.testing.assert_array_equal(kept, up[:, best])

    def test_compensation_lowers_every_error(self, pruned: PruneResult, photos: Path, tmp_path: Path) -> None:
        assert all(u.error < u.error_without for u in pruned.units)
        assert all(u.condition_number > 1 for u in pruned.units)
        plain = prune_model(
            fixture_path(COMPUTED_SCALE), photos, tmp_path / "out.onnx", settings=paper(compensate=False)
        )
        assert all(u.error == u.error_without for u in plain.units)
        with_key = {u.key: u for u in pruned.units}
        assert all(u.error_without == pytest.approx(with_key[u.key].error_without) for u in plain.units)
        assert all(a < b for a, b in zip(pruned.held_out.stream_error, plain.held_out.stream_error, strict=True))

    def test_same_seed_same_bytes_other_seed_other_images(self, photos: Path, tmp_path: Path) -> None:
        results = [
            prune_model(fixture_path(SEPARATE), photos, tmp_path / name / "out.onnx", settings=paper(seed=seed))
            for name, seed in (("a", 3), ("b", 3), ("c", 4))
        ]
        contents = [Path(r.pruned.path).read_bytes() for r in results]
        assert contents[0] == contents[1]
        assert contents[0] != contents[2]
        assert results[0].calibration.data_hash == results[1].calibration.data_hash
        assert results[0].calibration.data_hash != results[2].calibration.data_hash

    def test_batch_size_changes_rounding_only(self, photos: Path, tmp_path: Path) -> None:
        results = [
            prune_model(fixture_path(SEPARATE), photos, tmp_path / f"{n}.onnx", settings=paper(batch_size=n))
            for n in (2, 16)
        ]
        a, b = (weights_of(Path(r.pruned.path)) for r in results)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-4)
        for first, second in zip(results[0].units, results[1].units, strict=True):
            assert first.error == pytest.approx(second.error, rel=1e-3)
        assert results[0].held_out.kl == pytest.approx(results[1].held_out.kl, rel=1e-2)

    @pytest.mark.long
    def test_batch_size_changes_no_answer(self, tmp_path: Path) -> None:
        """Of the default method: moments, probes, weights of tokens, folds of the refit."""
        stored = {p.key: p.value for p in onnx.load(DEMO).metadata_props}
        recipe = find_recipe(stored, (1, 3, 32, 32))
        pixels = np.concatenate([batch.pixels for batch in open_images(DEMO.parent / "test", recipe).batches(50)])
        answers = []
        for n in (3, 16):
            result = prune_model(
                DEMO, DEMO.parent / "calib", tmp_path / f"{n}.onnx", macs=0.5, n_images=24, batch_size=n
            )
            answers.append(onnxruntime.InferenceSession(result.pruned.path).run(None, {"input": pixels})[0])
        error = np.linalg.norm(answers[0] - answers[1]) / np.linalg.norm(answers[0])
        assert error < 1e-5

    def test_draw_of_images(self, photos: Path, tmp_path: Path) -> None:
        result = prune_model(fixture_path(SEPARATE), photos, tmp_path / "out.onnx", settings=paper(n_images=8))
        assert (result.calibration.n_images, result.calibration.n_held_out) == (6, 2)

    def test_one_image_can_not_be_held_back_and_used(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="--images must be at least 2, one of them held back; found 1"):
            prune_model(fixture_path(SEPARATE), photos, tmp_path / "out.onnx", settings=paper(n_images=1))

    def test_negative_seed(self) -> None:
        with pytest.raises(OptionError, match="--seed must be 0 or more; found -1"):
            paper(seed=-1)

    def test_fractions_that_remove_nothing(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match=r"--mlp 0\.001 and .* remove nothing from units up to 24 wide"):
            prune_model(fixture_path(SEPARATE), photos, tmp_path / "out.onnx", settings=paper(0.001, 0.001))
        assert listing(tmp_path) == []

    def test_nothing_of_the_wanted_kind(self, photos: Path, tmp_path: Path) -> None:
        with pytest.raises(
            NothingToPruneError, match=r"no query/key pair that can be pruned, but 1 MLP, 1 value/output pair; name"
        ):
            prune_model(fixture_path("timm_vit_qknorm_dynamo18"), photos, tmp_path / "o.onnx", settings=paper(0, 0.5))


def find_hidden_activations(model: Path, d_hidden: int) -> list[str]:
    """What the second product of every MLP reads."""
    proto = onnx.load(model)
    stored = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    return [n.input[0] for n in proto.graph.node if n.op_type == "MatMul" and stored.get(n.input[1]) == (d_hidden, 20)]


def tap(model: Path, name: str, pixels: np.ndarray) -> np.ndarray:
    proto = onnx.load(model)
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"x": pixels})[0].astype(np.float64)


class TestData:
    def test_fewer_tokens_than_channels(self, tmp_path: Path) -> None:
        few = write_photos(tmp_path / "few", 3)
        result = prune_model(fixture_path(COMPUTED_SCALE), few, tmp_path / "out.onnx", settings=paper())
        assert result.calibration.n_tokens == 34
        warning = "34 tokens for up to 48 channels in 2 units: the ridge still solves them"
        assert any(w.startswith(warning) for w in result.warnings)
        assert np.isfinite(run_model(tmp_path / "out.onnx", noise())).all()
        assert all(0 < u.error < 10 for u in result.units)

    def test_arrays_need_no_recipe(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", noise(9))
        result = prune_model(fixture_path(OPERATOR), tmp_path / "x.npy", tmp_path / "out.onnx", settings=paper())
        assert result.calibration.recipe is None
        assert METADATA_KEY not in {p.key for p in onnx.load(tmp_path / "out.onnx").metadata_props}

    def test_arrays_refuse_preprocessing(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", noise(9))
        settings = paper(preprocessing=Preprocessing(crop_pct=0.8, mean=(0, 0, 0)))
        with pytest.raises(OptionError, match=r"x\.npy: holds arrays, .*leave out --crop-pct, --mean"):
            prune_model(fixture_path(OPERATOR), tmp_path / "x.npy", tmp_path / "out.onnx", settings=settings)

    def test_text_model_takes_named_arrays(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        tokens = {"input_ids": rng.integers(1, 9, (12, 7))}
        tokens |= {"attention_mask": np.ones((12, 7), np.int64), "token_type_ids": np.zeros((12, 7), np.int64)}
        np.savez(tmp_path / "text.npz", **tokens)
        result = prune_model(fixture_path(TEXT), tmp_path / "text.npz", tmp_path / "out.onnx", settings=paper())
        assert result.calibration.n_tokens == 10 * 7
        assert result.pruned.macs < result.dense.macs

    @pytest.mark.parametrize("n_damaged", [1, 3])
    def test_damaged_images_that_would_be_held_back_are_replaced(self, n_damaged: int, tmp_path: Path) -> None:
        """Every image that the seed holds back is damaged; the run goes on with others."""
        folder = write_photos(tmp_path / "photos", 6)
        for _ in range(n_damaged):
            names = sorted(p.name for p in folder.iterdir())
            sound = [n for n in names if (folder / n).stat().st_size > 60]
            order = np.random.default_rng(0).permutation(len(sound))
            path = folder / sound[order[0]]
            path.write_bytes(path.read_bytes()[:60])
        result = prune_model(fixture_path(OPERATOR), folder, tmp_path / "out.onnx", settings=paper())
        assert result.calibration.n_held_out == 1
        assert result.calibration.n_images + result.calibration.n_held_out == 6 - n_damaged
        assert len(result.calibration.skipped) == n_damaged
        plural = "s" if n_damaged > 1 else ""
        assert result.warnings[-1].startswith(f"{n_damaged} file{plural} gave no image and were left out: ")

    def test_all_images_damaged(self, tmp_path: Path) -> None:
        folder = write_photos(tmp_path / "photos", 5)
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(ImageError, match=r"1 readable image, and at least 2 needed; 4 files gave no image"):
            prune_model(fixture_path(OPERATOR), folder, tmp_path / "out.onnx", settings=paper())
        assert "out.onnx" not in listing(tmp_path)

    def test_progress_counts_every_image(self, photos: Path, tmp_path: Path) -> None:
        seen: dict[str, list[tuple[int, int]]] = {}
        prune_model(
            fixture_path(OPERATOR), photos, tmp_path / "out.onnx", settings=paper(),
            progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
        )  # fmt: skip
        assert seen["calibrate"] == [(0, 19), (8, 19), (16, 19), (19, 19)]
        assert list(seen) == ["load", "open images", "calibrate", "trace", "verify", "measure"]
        assert all(counts[-1][0] == counts[-1][1] for counts in seen.values())


class TestFiles:
    def test_fixed_batch_model_stays_fixed(self, photos: Path, tmp_path: Path) -> None:
        result = prune_model(fixture_path(FIXED), photos, tmp_path / "out.onnx", settings=paper())
        assert result.pruned.batch == 1
        assert "batches" not in [c.name for c in result.checks]
        assert run_model(tmp_path / "out.onnx", noise(1)).shape == (1, 10)

    def test_external_weights_go_into_one_file_beside(self, photos: Path, tmp_path: Path) -> None:
        dense = tmp_path / "dense"
        dense.mkdir()
        for suffix in (".onnx", ".onnx.data"):
            shutil.copy(fixture_path(EXTERNAL).with_suffix(suffix), dense)
        before = {p.name: p.read_bytes() for p in dense.iterdir()}
        result = prune_model(dense / f"{EXTERNAL}.onnx", photos, tmp_path / "out" / "small.onnx", settings=paper())
        assert listing(tmp_path / "out") == ["small.onnx", "small.onnx.data", "small.report.json"]
        assert result.pruned.n_bytes == sum((tmp_path / "out" / f"small.onnx{s}").stat().st_size for s in ("", ".data"))
        assert {p.name: p.read_bytes() for p in dense.iterdir()} == before
        shutil.rmtree(dense)
        (tmp_path / "out").rename(tmp_path / "moved")  # nothing may point back
        assert np.isfinite(run_model(tmp_path / "moved" / "small.onnx", noise())).all()

    def test_external_weights_are_not_overwritten(self, photos: Path, tmp_path: Path) -> None:
        for suffix in (".onnx", ".onnx.data"):
            shutil.copy(fixture_path(EXTERNAL).with_suffix(suffix), tmp_path)
        model = (tmp_path / f"{EXTERNAL}.onnx").rename(tmp_path / "other.onnx")
        with pytest.raises(OutputError, match=r"onnx\.data: holds the weights of the model"):
            prune_model(model, photos, tmp_path / f"{EXTERNAL}.onnx", settings=paper(), force=True)

    def test_model_is_not_overwritten(self, photos: Path, tmp_path: Path) -> None:
        model = Path(shutil.copy(fixture_path(OPERATOR), tmp_path / "m.onnx"))
        (tmp_path / "link.onnx").symlink_to(model)
        for output, report, option in (
            (model, None, "-o"), (tmp_path / "link.onnx", None, "-o"), (tmp_path / "o.onnx", model, "--report"),
        ):  # fmt: skip
            with pytest.raises(OutputError, match=f"is the model itself; give another {option}"):
                prune_model(model, photos, output, report=report, settings=paper(), force=True)
        assert model.read_bytes() == fixture_path(OPERATOR).read_bytes()

    @pytest.mark.parametrize("name", ["out", "out.json", "out.ort", "out.onnx.txt"])
    def test_output_needs_the_suffix(self, name: str, photos: Path, tmp_path: Path) -> None:
        """onnx and ONNX Runtime would take the same bytes for another format under these names."""
        with pytest.raises(OutputError, match=r"needs a name that ends in \.onnx; give another -o"):
            prune_model(fixture_path(OPERATOR), photos, tmp_path / name, settings=paper())

    def test_report_in_another_folder(self, photos: Path, tmp_path: Path) -> None:
        report = tmp_path / "reports" / "deep" / "r.json"
        result = prune_model(
            fixture_path(OPERATOR), photos, tmp_path / "identity.onnx", report=report, settings=paper()
        )
        assert listing(tmp_path) == ["identity.onnx", "reports", "reports/deep", "reports/deep/r.json"]
        assert result.report_path == str(report)

    def test_force_replaces_both_files(self, photos: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.onnx"
        output.write_text("old")
        default_report(output).write_text("old")
        prune_model(fixture_path(OPERATOR), photos, output, settings=paper(), force=True)
        assert np.isfinite(run_model(output, noise())).all()
        assert json.loads(default_report(output).read_text())["schema"] == 1

    def test_default_names(self) -> None:
        assert default_output(Path("a/deit.onnx")) == Path("a/deit.pruned.onnx")
        assert default_report(Path("a/deit.pruned.onnx")) == Path("a/deit.pruned.report.json")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "hf_bert_classifier_ts14_eager", "hf_bert_classifier_ts17_sdpa", "hf_clip_vision_ts17_eager_ortclip",
        "hf_deit_ts17_sdpa", "hf_dinov2_ts17_sdpa", "hf_v4_vit_ts17_eager_ortmmdit", "hf_vit_dynamo18_sdpa",
        "hf_vit_ts17_eager", "timm_deit_distilled_two_heads_ts17", "timm_vit_dynamo23_fused", "timm_vit_ts17_unfused",
        "torchvision_vit_ts17",
    ],
)  # fmt: skip
def test_default_preset_on_every_family(name: str, tmp_path: Path) -> None:
    """Every operand narrower in every block, tokens left out where the model reads one, and all checks pass."""
    graph, blocks = probed(name)
    np.savez(tmp_path / "data.npz", **feeds_of(graph, 16))
    settings = PruneSettings(Method(align=1, widths=Budget("params", 0.75, "uniform")), n_images=16)
    result = prune_model(fixture_path(name), tmp_path / "data.npz", tmp_path / "out.onnx", settings=settings)
    assert all(check.passed for check in result.checks)
    n_attentions = len(blocks.attentions)
    assert Counter(u.kind for u in result.units) == {"mlp": len(blocks.mlps), "qk": n_attentions, "vo": n_attentions}
    assert all(u.width_after < u.width_before for u in result.units)


@pytest.mark.skipif(not DEMO.exists(), reason="models/demo_vit.onnx is not here")
def test_demo_model_keeps_its_answers(tmp_path: Path) -> None:
    """A trained model: a quarter of every unit goes and most answers stay."""
    result = prune_model(DEMO, DEMO.parent / "calib", tmp_path / "out.onnx", settings=paper(0.25, 0.25, n_images=64))
    assert result.held_out.agreement is not None
    assert result.held_out.agreement >= 0.75
    assert all(u.error < u.error_without for u in result.units)
    assert result.pruned.macs < 0.9 * result.dense.macs


@pytest.mark.slow
def test_model_over_two_gigabytes(photos: Path, tmp_path: Path) -> None:
    """Trap 8: more weights than one protobuf message holds, read by way of its path at every stage."""
    dense = add_ballast(fixture_path(OPERATOR), tmp_path / "big.onnx", 2_400_000_000)
    result = prune_model(dense, photos, tmp_path / "small.onnx", settings=paper())
    assert all(check.passed for check in result.checks)
    assert listing(tmp_path) == ["big.onnx", "big.onnx.data", "small.onnx", "small.onnx.data", "small.report.json"]
    assert (tmp_path / "small.onnx.data").stat().st_size > 2_400_000_000
    plain = prune_model(fixture_path(OPERATOR), photos, tmp_path / "plain.onnx", settings=paper())
    assert result.dense.n_parameters - plain.dense.n_parameters == 2_400_000_000 // 4
    np.testing.assert_array_equal(run_model(tmp_path / "small.onnx", noise()), run_model(plain.pruned.path, noise()))


def add_ballast(source: Path, target: Path, n_bytes: int) -> Path:
    """The same function with two tables of zeros, of each of which one row is added to the answers."""
    model = onnx.load(source)
    graph, answer = model.graph, model.graph.output[0].name
    d_out = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    for node in graph.node:
        node.output[:] = ["light" if name == answer else name for name in node.output]
    graph.initializer.append(onnx.helper.make_tensor("row", onnx.TensorProto.INT64, [1], [7]))
    for total, table, zero, heavier in (("light", "a", "zero_a", "middle"), ("middle", "b", "zero_b", answer)):
        dims = [n_bytes // (2 * 4 * d_out), d_out]
        tensor = graph.initializer.add(name=table, data_type=onnx.TensorProto.FLOAT, dims=dims)
        tensor.raw_data = bytes(n_bytes // 2)
        graph.node.append(onnx.helper.make_node("Gather", [table, "row"], [zero]))
        graph.node.append(onnx.helper.make_node("Add", [total, zero], [heavier]))
    onnx.save_model(model, target, save_as_external_data=True, location=f"{target.name}.data")
    return target
