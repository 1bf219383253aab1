"""Which held-back images moved most: order, answers, names and pictures."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from samples import OPERATOR, fixture_path, write_photos

from corp_onnx.checks.disagreement import N_SHOWN, Disagreements, draw_thumbnail, name_images
from corp_onnx.graph import Model, load_model
from corp_onnx.images import open_images
from corp_onnx.images.label_files import LABELS_KEY
from corp_onnx.metrics.task import OutputTask
from corp_onnx.run.outputs import Outputs

CLASSES = Outputs((OutputTask("y", "classify", "told", (3,), channel_axis=1),), ("y",))
VECTORS = Outputs((OutputTask("y", "embed", "told", (3,), channel_axis=1),), ("y",))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(fixture_path(OPERATOR))


def name_classes(model: Model, names: list[str]) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.metadata_props.append(onnx.StringStringEntryProto(key=LABELS_KEY, value=json.dumps(names)))
    return replace(model, proto=proto)


def test_changed_answers_come_first_and_then_the_largest_distance(model: Model) -> None:
    dense = np.array([[2.0, 0, 0], [2, 0, 0], [0.1, 0, 0], [0, 5, 0]])
    pruned = np.array([[1.0, 0, 0], [2, 0, 0], [0, 0.1, 0], [0, 1, 0]])
    images = open_images(np.zeros((4, 3), np.float32))
    apart = Disagreements(CLASSES)
    apart.add({"y": pruned[:3]}, {"y": dense[:3]})
    apart.add({"y": pruned[3:]}, {"y": dense[3:]})
    worst = apart.list_worst(name_classes(model, ["cat", "dog", "hen"]), images, pictures=True)
    assert [int(one.image.split("[")[1][:-1]) for one in worst] == [2, 3, 0]  # image 1 did not move
    p, q = softmax(dense[2]), softmax(pruned[2])
    assert worst[0].distance == pytest.approx(float((p * np.log(p / q)).sum()))
    assert worst[0].dense is not None
    assert worst[0].pruned is not None
    assert (worst[0].dense.name, worst[0].pruned.name) == ("cat", "dog")
    assert worst[0].pruned.probability == pytest.approx(float(q[1]))
    assert worst[0].thumbnail == ""  # arrays are no pictures


def test_only_a_few_are_kept_and_names_must_be_as_many_as_answers(model: Model) -> None:
    rng = np.random.default_rng(0)
    apart = Disagreements(CLASSES)
    apart.add({"y": rng.normal(size=(20, 3))}, {"y": rng.normal(size=(20, 3))})
    worst = apart.list_worst(name_classes(model, ["cat"]), open_images(np.zeros((20, 3), np.float32)))
    assert len(worst) == N_SHOWN
    assert all(one.dense is not None and one.dense.name == "" for one in worst)


def test_vectors_have_a_distance_and_no_answers(model: Model) -> None:
    apart = Disagreements(VECTORS)
    apart.add({"y": np.array([[1.0, 0, 0], [0, 1, 0]])}, {"y": np.array([[1.0, 0, 0], [1, 1, 0]])})
    (worst,) = apart.list_worst(model, open_images(np.zeros((2, 3), np.float32)))
    assert worst.distance == pytest.approx(1 - 1 / np.sqrt(2))
    assert worst.dense is worst.pruned is None


def test_a_picture_is_what_the_model_sees_and_damaged_files_do_not_shift_names(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "001.png").write_bytes((photos / "001.png").read_bytes()[:60])
    images = open_images(photos)
    assert sum(len(batch) for batch in images.batches(2)) == 3
    assert name_images(images) == ["000.png", "002.png", "003.png"]
    head, data = draw_thumbnail(images, 1).split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (128, 128)  # of a crop of 224 x 224
    (photos / "002.png").unlink()
    assert draw_thumbnail(images, 1) == ""
