"""Evaluation against naive oracles and tiny models: pooled colours -> Gemm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from oracles import naive_kl, naive_rank
from PIL import Image
from shared import CLASSES, DEIT_TINY, VALIDATION, needs_shared

from corp_onnx.errors import ImageError, ModelError, NonFiniteError, OptionError
from corp_onnx.evaluate import evaluate_models
from corp_onnx.images import open_images
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.metrics.intervals import wilson_interval

SIZE = 8
RECIPE = Recipe(size=(SIZE, SIZE))
N_CLASSES = 7


def make_model(
    path: Path,
    weight: np.ndarray,
    *,
    batch: int | str = "batch",
    element: int = TensorProto.FLOAT,
    recipe: Recipe | None = None,
    tail: str = "",
    size: int | str = SIZE,
) -> Path:
    """pixels [n, 3, size, size] -> mean over pixels -> @ weight [3, n_classes] -> an optional operator."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", element, None)]
    if tail:
        nodes[2].output[0] = "raw"
        nodes.append(helper.make_node(tail, ["raw"], ["logits"]))
    if tail in ("Unsqueeze", "Reshape"):
        nodes[-1].input.append("axes")
    axes = np.array([-1, 5] if tail == "Reshape" else [1])
    inputs = [helper.make_tensor_value_info("x", element, [batch, 3, size, size])]
    stored = [numpy_helper.from_array(weight.astype(dtype), "w"), numpy_helper.from_array(axes, "axes")]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if recipe is not None:
        helper.set_model_props(model, {METADATA_KEY: recipe.to_json()})
    onnx.save(model, path)
    return path


def copy_of(model: Path) -> Path:
    """The same model under another name: with itself alone nothing is compared."""
    path = model.with_name(f"copy_of_{model.name}")
    shutil.copy(model, path)
    return path


def weights(seed: int = 0, n_classes: int = N_CLASSES) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, n_classes))


def write_photos(folder: Path, n: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((12, 10), Image.Resampling.BILINEAR).save(folder / f"{i:02d}.png")


def predict(pixels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float64).mean(axis=(2, 3)) @ weight


def all_pixels(folder: Path, recipe: Recipe = RECIPE) -> np.ndarray:
    return np.concatenate([batch.pixels for batch in open_images(folder, recipe).batches(64)])


@pytest.fixture
def folder(tmp_path):
    write_photos(tmp_path / "photos", 11)
    return tmp_path / "photos"


def class_folder(tmp_path: Path, weight: np.ndarray, n_names: int = N_CLASSES) -> tuple[Path, Path]:
    """Images under the folder of the model's own answer, but for two of them; and a labels file."""
    write_photos(tmp_path / "flat", 12)
    answers = predict(all_pixels(tmp_path / "flat"), weight).argmax(axis=1)
    for i, answer in enumerate(answers):
        label = (answer + 1) % N_CLASSES if i < 2 else answer
        (tmp_path / "val" / f"c{label}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / f"{i:02d}.png").rename(tmp_path / "val" / f"c{label}" / f"{i:02d}.png")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"c{i}" for i in range(n_names)))
    return tmp_path / "val", names


def test_scores_are_those_of_the_oracle(tmp_path, folder):
    dense, pruned = weights(0), weights(0) + 0.3 * weights(1)
    paths = [make_model(tmp_path / "dense.onnx", dense), make_model(tmp_path / "pruned.onnx", pruned)]
    seen = []
    images = open_images(folder)
    found = evaluate_models(
        paths, images, reference=paths[0], batch_size=4, progress=lambda _, n, total: seen.append((n, total))
    )
    pixels = all_pixels(folder)
    z_ref, z = predict(pixels, dense), predict(pixels, pruned)
    score = found.scores[1]
    assert score.model == str(paths[1])
    assert (score.n_images, found.n_images) == (11, 11)
    agreement = (z.argmax(axis=1) == z_ref.argmax(axis=1)).mean()
    assert score.agreement == pytest.approx(agreement)
    found_agreement = score.find("agreement")
    assert found_agreement is not None
    assert (found_agreement.low, found_agreement.high) == pytest.approx(wilson_interval(11 * agreement, 11))
    assert score.kl == pytest.approx(np.mean([naive_kl(a, b) for a, b in zip(z_ref, z, strict=True)]), abs=1e-6)
    assert score.relative_error == pytest.approx(np.linalg.norm(z - z_ref) / np.linalg.norm(z_ref), abs=1e-6)
    assert (score.top1, score.top5, score.difference) == (None, None, None)
    assert found.baseline == found.scores[0]
    assert (found.scores[0].agreement, found.scores[0].kl) == (None, None)
    assert score.recipe == RECIPE
    assert seen == [(0, 11), (4, 11), (8, 11), (11, 11)]
    assert (found.note, found.provider) == ("", "CPUExecutionProvider")
    assert found.data_hash == images.data_hash()


def test_top1_and_top5_with_a_labels_file(tmp_path):
    weight = weights()
    val, names = class_folder(tmp_path, weight)
    model = make_model(tmp_path / "m.onnx", weight)
    (score,) = evaluate_models([model], open_images(val, labels=names)).scores
    assert score.top1 == pytest.approx(10 / 12)
    top1 = score.find("top1")
    assert top1 is not None
    assert (top1.low, top1.high) == pytest.approx(wilson_interval(10, 12))
    (batch,) = open_images(val, RECIPE, labels=names).batches(64)
    logits = predict(batch.pixels, weight)
    assert batch.labels is not None
    top5 = np.mean([naive_rank(row, label) < 5 for row, label in zip(logits, batch.labels, strict=True)])
    assert score.top5 == pytest.approx(top5)
    assert score.agreement is None


def test_too_few_class_folders_give_no_top1_but_say_so(tmp_path):
    val, _ = class_folder(tmp_path, weights())
    n_folders = len(list(val.iterdir()))
    assert n_folders < N_CLASSES
    model = make_model(tmp_path / "m.onnx", weights())
    found = evaluate_models([model], open_images(val, labels="folders"), reference=copy_of(model))
    assert found.scores[0].top1 is None
    assert (
        f"has {n_folders} class folders and copy_of_m.onnx has 7 classes, so folder order is not class order"
        in found.note
    )
    assert "give a labels file" in found.note
    fitting = make_model(tmp_path / "fit.onnx", weights(n_classes=n_folders))
    found = evaluate_models([model, fitting], open_images(val, labels="folders"))
    assert [s.top1 is None for s in found.scores] == [True, False]
    assert "m.onnx has 7 classes" in found.note
    write_photos(val, 1, seed=5)
    found = evaluate_models([model], open_images(val, labels="folders"), reference=copy_of(model))
    assert found.note.startswith("no top-1 and top-5: 00.png lies in no class folder of")


def test_a_labels_file_of_another_data_set_is_an_error(tmp_path):
    val, names = class_folder(tmp_path, weights(), n_names=9)
    model = make_model(tmp_path / "m.onnx", weights())
    with pytest.raises(ImageError, match=r"names.txt: 9 class names, and m.onnx has 7 classes; give the labels file"):
        evaluate_models([model], open_images(val, labels=names))


def test_few_classes_have_no_top5(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 3, SIZE, SIZE), np.float32), labels=np.array([0, 1, 2]))
    model = make_model(tmp_path / "m.onnx", np.eye(3))
    (score,) = evaluate_models([model], open_images(tmp_path / "a.npz")).scores
    assert (score.top1, score.top5) == (pytest.approx(1 / 3), None)
    assert score.recipe is None
    with pytest.raises(ImageError, match=r"a label lies outside 0..1, the classes of two.onnx"):
        evaluate_models([make_model(tmp_path / "two.onnx", np.ones((3, 2)))], open_images(tmp_path / "a.npz"))


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_fixed_batches_change_nothing(tmp_path, folder, batch):
    free = make_model(tmp_path / "free.onnx", weights())
    fixed = make_model(tmp_path / "fixed.onnx", weights(), batch=batch)
    seen: list[int] = []
    images = open_images(folder)
    found = evaluate_models([fixed], images, reference=free, batch_size=5, progress=lambda _, n, __: seen.append(n))
    assert found.n_images == found.scores[0].n_images == 11
    assert seen[1:] == {1: [5, 10, 11], 4: [8, 11], 16: [11]}[batch]
    assert found.scores[0].agreement == 1.0
    assert found.scores[0].relative_error == pytest.approx(0, abs=1e-6)


def test_half_precision_models_get_half_precision_pixels(tmp_path, folder):
    dense = make_model(tmp_path / "dense.onnx", weights())
    half = make_model(tmp_path / "half.onnx", weights(), element=TensorProto.FLOAT16)
    (score,) = evaluate_models([half], open_images(folder), reference=dense).scores
    assert score.relative_error == pytest.approx(0, abs=5e-3)
    assert score.relative_error != 0


def test_each_model_gets_its_own_recipe(tmp_path, folder):
    bilinear = Recipe(size=(SIZE, SIZE), interpolation="nearest", mean=(0.1, 0.2, 0.3))
    large = Recipe(size=(2 * SIZE, 2 * SIZE))
    paths = [
        make_model(tmp_path / "a.onnx", weights(), recipe=bilinear),
        make_model(tmp_path / "b.onnx", weights(), recipe=RECIPE),
        make_model(tmp_path / "c.onnx", weights(), size=2 * SIZE),
    ]
    found = evaluate_models(paths[1:], open_images(folder), reference=paths[0])
    assert found.baseline is not None
    assert [found.baseline.recipe, *(s.recipe for s in found.scores)] == [bilinear, RECIPE, large]
    for score, recipe in zip(found.scores, (RECIPE, large), strict=True):
        z, z_ref = (predict(all_pixels(folder, r), weights()) for r in (recipe, bilinear))
        assert score.relative_error == pytest.approx(np.linalg.norm(z - z_ref) / np.linalg.norm(z_ref), abs=1e-5)
    alone = evaluate_models([paths[2]], open_images(folder), reference=paths[0])
    assert alone.scores[0].recipe == large  # a recipe for another size is not borrowed
    forced = evaluate_models(paths[:2], open_images(folder), reference=paths[0], recipe=bilinear)
    assert [s.recipe for s in forced.scores] == [bilinear, bilinear]
    assert forced.scores[1].relative_error == 0


def test_a_model_without_recipe_takes_that_of_its_descendant(tmp_path, folder):
    own = Recipe(size=(SIZE, SIZE), mean=(0.5, 0.5, 0.5))
    dense = make_model(tmp_path / "dense.onnx", weights())
    pruned = make_model(tmp_path / "pruned.onnx", weights(), recipe=own)
    found = evaluate_models([pruned], open_images(folder, Recipe()), reference=dense)
    assert found.baseline is not None
    assert found.baseline.recipe == own
    assert found.scores[0].relative_error == 0


def test_tokens_that_answer_by_themselves_have_no_top1(tmp_path):
    val, names = class_folder(tmp_path, weights())
    dense = make_model(tmp_path / "dense.onnx", weights(0), tail="Unsqueeze")
    other = make_model(tmp_path / "other.onnx", weights(1), tail="Unsqueeze")
    found = evaluate_models([other], open_images(val, labels=names), reference=dense)
    score = found.scores[0]
    assert score.relative_error is not None
    assert score.relative_error > 0.1
    assert score.top1 is None
    z_ref, z = (predict(all_pixels(val), w) for w in (weights(0), weights(1)))
    assert score.agreement == pytest.approx((z.argmax(axis=1) == z_ref.argmax(axis=1)).mean())
    assert "has shape [12, 1, 7], not [n, classes]" in found.note


def test_only_the_first_of_several_outputs_counts(tmp_path, folder):
    path = make_model(tmp_path / "two.onnx", weights())
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["distilled"]))
    model.graph.output.append(helper.make_tensor_value_info("distilled", TensorProto.FLOAT, None))
    onnx.save(model, path)
    single = make_model(tmp_path / "one.onnx", weights())
    assert evaluate_models([path], open_images(folder), reference=single).scores[0].agreement == 1.0


def test_text_models_take_named_arrays(tmp_path):
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["logits"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["n", 6]) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 6])]
    graph = helper.make_graph(nodes, "text", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "t.onnx")
    ids = np.random.default_rng(0).integers(0, 9, (5, 6))
    np.savez(tmp_path / "t.npz", attention_mask=np.ones_like(ids), input_ids=ids, labels=ids.argmax(axis=1))
    (score,) = evaluate_models([tmp_path / "t.onnx"], open_images(tmp_path / "t.npz"), batch_size=2).scores
    assert (score.top1, score.n_images) == (1.0, 5)
    write_photos(tmp_path / "photos", 1)
    with pytest.raises(
        ModelError,
        match=r"t.onnx: the model's input has shape \[None, 6\], and images go into \[n, 1 or 3, height, width\] only",
    ):
        evaluate_models([tmp_path / "t.onnx"], tmp_path / "photos", reference=tmp_path / "t.onnx")


def test_answers_that_are_not_finite_name_the_model_and_image(tmp_path, folder):
    weight = weights()
    weight[:, 2] = np.nan
    model = make_model(tmp_path / "broken.onnx", weight)
    with pytest.raises(NonFiniteError, match=r"broken.onnx: output 'logits' holds NaN or Inf for 11 of 11 .* 00.png"):
        evaluate_models([model], open_images(folder), reference=copy_of(model))


def test_models_that_can_not_be_compared_or_run(tmp_path, folder):
    dense = make_model(tmp_path / "dense.onnx", weights())
    wide = make_model(tmp_path / "wide.onnx", weights(n_classes=9))
    with pytest.raises(
        ModelError, match=r"wide.onnx: its output 'logits' has shape \[11, 9\] and .*dense.onnx has \[11, 7\]"
    ):
        evaluate_models([wide], open_images(folder), reference=dense)
    small = open_images(folder, None)
    with pytest.raises(ImageError, match=r"dense.onnx: input 'x' takes shape \[n, 3, 8, 8\], and its array has"):
        evaluate_models([dense], small, reference=copy_of(dense), recipe=Recipe(size=(4, 4)))
    with pytest.raises(OptionError, match="batch size must be at least 1, found 0"):
        evaluate_models([dense], small, reference=copy_of(dense), batch_size=0)
    summed = make_model(tmp_path / "summed.onnx", weights(), tail="ReduceMean")
    with pytest.raises(ModelError, match=r"its shape is \[1, 1\] for 11 images, and one row for each is expected"):
        evaluate_models([summed], open_images(folder), reference=copy_of(summed))
    wrong = make_model(tmp_path / "wrong.onnx", weights().repeat(2, axis=0))
    with pytest.raises(ModelError, match=r"wrong.onnx: ONNX Runtime (can not load|failed while running) it"):
        evaluate_models([wrong], open_images(folder), reference=copy_of(wrong))
    stuck = make_model(tmp_path / "stuck.onnx", weights(), tail="Reshape")  # 11 x 7 numbers do not fill rows of 5
    with pytest.raises(ModelError, match=r"stuck.onnx: ONNX Runtime failed while running it .*Reshape"):
        evaluate_models([stuck], open_images(folder), reference=copy_of(stuck))
    with pytest.raises(OptionError, match="give at least one model"):
        evaluate_models([], open_images(folder))


def test_a_model_and_itself_is_nothing_to_measure(tmp_path, folder):
    model = make_model(tmp_path / "m.onnx", weights())
    with pytest.raises(
        OptionError, match=r"nothing to measure without another model as --reference: no top-1, because"
    ):
        evaluate_models([model], open_images(folder), reference=model)


def test_skipped_files_are_in_the_result_and_in_its_json(tmp_path, folder):
    model = make_model(tmp_path / "m.onnx", weights())
    whole = (folder / "00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = evaluate_models([model], open_images(folder), reference=copy_of(model))
    assert found.n_images == 11
    assert [s.name for s in found.skipped] == ["cut.png"]
    stored = json.loads(found.to_json())
    assert (stored["schema"], stored["n_images"], stored["skipped"][0]["name"]) == (1, 11, "cut.png")
    assert stored["baseline"]["model"] == str(copy_of(model))


# the real model


@pytest.mark.slow
@needs_shared
def test_deit_tiny_on_real_images():
    images = open_images(VALIDATION, labels=CLASSES)
    (score,) = evaluate_models([DEIT_TINY], images).scores
    assert score.n_images == 650
    assert round(100 * (score.top1 or 0), 2) == 83.23
    assert round(100 * (score.top5 or 0), 2) == 95.54
