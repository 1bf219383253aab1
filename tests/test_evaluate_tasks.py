"""What `evaluate` takes outputs for: class folders one after the other, embeddings before logits, labels that fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from classes import ACCURACY, N_CLASSES, N_EACH, NAMES, make_classifier, write_classes
from onnx import TensorProto, helper, numpy_helper

from corp_onnx.cli import main
from corp_onnx.errors import ImageError, ModelError, OptionError
from corp_onnx.evaluate import Evaluation, evaluate_models

N_IMAGES = N_CLASSES * N_EACH


def rename(path: Path, name: str) -> Path:
    """Its output under a name that says nothing, or something else."""
    model = onnx.load(path)
    model.graph.output[0].name = name
    model.graph.node[-1].output[0] = name
    onnx.save(model, path)
    return path


def add_embedding(path: Path, size: int) -> Path:
    """A first output of unit vectors before the classifier's."""
    model = onnx.load(path)
    weight = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "e"))
    model.graph.node.append(helper.make_node("MatMul", ["flat", "e"], ["long"]))
    model.graph.node.append(helper.make_node("LpNormalization", ["long"], ["image_embeds"], axis=1, p=2))
    model.graph.output.insert(0, helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", size]))
    onnx.save(model, path)
    return path


def tasks(found: Evaluation) -> dict[str, str]:
    return {output.output: output.task for output in found.scores[0].outputs}


def arrays(path: Path, labels: np.ndarray) -> Path:
    pixels = np.random.default_rng(0).uniform(-1, 1, (len(labels), 3, 8, 8)).astype(np.float32)
    np.savez(path, x=pixels, labels=labels)
    return path


def test_images_in_the_order_of_their_classes_do_not_look_like_one_answer(tmp_path: Path) -> None:
    """The first batch is of few classes; of a name that says nothing the answers decide, and labels before them."""
    names = tuple(f"{k:02d}" for k in range(N_CLASSES))
    write_classes(tmp_path / "val", names)
    model = rename(make_classifier(tmp_path / "m.onnx"), "output")
    found = evaluate_models([model], tmp_path / "val", batch_size=2)
    assert tasks(found) == {"output": "classify"}
    assert found.scores[0].top1 == pytest.approx(ACCURACY)
    pair = rename(make_classifier(tmp_path / "other.onnx"), "output")
    assert tasks(evaluate_models([model], tmp_path / "val", labels=None, reference=pair, batch_size=1)) == {
        "output": "classify"
    }


def test_what_an_output_is_taken_for_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "val", NAMES)
    model = make_classifier(tmp_path / "m.onnx", {"corp_onnx.labels": json.dumps(NAMES)})
    assert main(["evaluate", str(model), "--images", str(tmp_path / "val")]) == 0
    assert "output 'logits' is taken for 12 classes (the model names 12 classes).\n" in capfd.readouterr().out


def test_an_embedding_before_the_logits(tmp_path: Path) -> None:
    """`--judge` says which output labels are for, and so how many classes there are; an embedding has no top-1."""
    write_classes(tmp_path / "val", NAMES)
    model = make_classifier(tmp_path / "m.onnx", {"corp_onnx.labels": json.dumps(NAMES)})
    add_embedding(model, 5)
    found = evaluate_models([model], tmp_path / "val", outputs=["logits"])
    assert found.scores[0].top1 == pytest.approx(ACCURACY)
    assert tasks(found) == {"image_embeds": "embed", "logits": "classify"}
    with pytest.raises(OptionError, match="no top-1, because"):
        evaluate_models([model], tmp_path / "val")


def test_labels_beyond_the_output_that_is_judged_are_refused(tmp_path: Path) -> None:
    rows = write_classes(tmp_path / "val")
    (tmp_path / "t.csv").write_text("".join(f"{file},{label + 5}\n" for file, label in rows), encoding="utf-8")
    model = add_embedding(make_classifier(tmp_path / "m.onnx"), 20)
    with pytest.raises(ImageError, match=r"indices go up to 16, and m\.onnx has 12 classes"):
        evaluate_models([model], tmp_path / "val", labels=tmp_path / "t.csv", outputs=["logits"])


def test_a_model_of_one_output_beside_a_reference_of_two(tmp_path: Path) -> None:
    write_classes(tmp_path / "val")
    both = add_embedding(make_classifier(tmp_path / "both.onnx"), 20)
    single = rename(make_classifier(tmp_path / "one.onnx"), "output")
    found = evaluate_models([single], tmp_path / "val", reference=both, outputs=["logits"])
    assert found.scores[0].agreement == 1.0
    with pytest.raises(ModelError, match=r"one\.onnx: has no output image_embeds, logits to compare; it has output\."):
        evaluate_models([single], tmp_path / "val", reference=both, outputs=["image_embeds", "logits"])


def test_labels_of_arrays_do_not_stop_embeddings(tmp_path: Path) -> None:
    """They are classes of another model; compared with a reference, no label is needed."""
    data = arrays(tmp_path / "a.npz", np.arange(100, 100 + N_IMAGES))
    one, other = (rename(make_classifier(tmp_path / f"{n}.onnx"), "image_embeds") for n in "ab")
    found = evaluate_models([one], data, reference=other)
    assert found.scores[0].find("cosine") is not None
    assert found.note.startswith("no top-1 and top-5: output 'image_embeds' is taken for an embedding")
    assert not [warning for warning in found.warnings if "another order" in warning]
    with pytest.raises(OptionError, match="no top-1, because output 'image_embeds' is taken for an embedding"):
        evaluate_models([one], data)
    with pytest.raises(ImageError, match=r"a label lies outside 0\.\.11"):
        evaluate_models([one], data, reference=other, task="classify")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"confidence": 95}, "--confidence is a share and must lie between 0 and 1; found 95"),
        ({"confidence": 1.0}, "--confidence is a share"),
        ({"task": "guess"}, "--task must be auto, classify, embed, dense or regress; found guess"),
    ],
)
def test_options_out_of_range(options: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=sentence):
        evaluate_models([tmp_path / "no.onnx"], tmp_path, **options)  # type: ignore[arg-type]


def test_one_misspelt_name_in_a_table_is_no_other_order(tmp_path: Path) -> None:
    """Twelve labels of twelve classes, one of which the model does not know: sorted, all of them would be wrong."""
    rows = write_classes(tmp_path / "val")
    spelt = (*NAMES[:2], "cats", *NAMES[3:])
    (tmp_path / "t.csv").write_text("".join(f"{file},{spelt[k]}\n" for file, k in rows), encoding="utf-8")
    model = make_classifier(tmp_path / "m.onnx", {"corp_onnx.labels": json.dumps(NAMES)})
    with pytest.raises(ImageError, match=r"label cats is not one of the 12 names of the model"):
        evaluate_models([model], tmp_path / "val", labels=tmp_path / "t.csv")
