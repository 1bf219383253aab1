"""What outputs are taken for, by name, values, shape, and what people and files say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corp_onnx.errors import OptionError
from corp_onnx.metrics.task import OutputTask, find_task

RNG = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return RNG.standard_normal((12, *shape))


def softmax(z: np.ndarray, axis: int = 1) -> np.ndarray:
    e = np.exp(z)
    return e / e.sum(axis=axis, keepdims=True)


def unit(z: np.ndarray, axis: int = 1) -> np.ndarray:
    return z / np.linalg.norm(z, axis=axis, keepdims=True)


class TestAuto:
    @pytest.mark.parametrize(
        ("name", "array", "task", "why"),
        [
            ("logits", values(1000), "classify", "its name"),
            ("output", values(1000), "classify", "1000 numbers, which is no usual length of an embedding"),
            ("output", values(200), "classify", "200 numbers"),
            ("logits", values(384), "classify", "its name"),
            ("output", values(384), "embed", "nothing says that its numbers are classes; --task classify would"),
            ("image_embeds", values(10), "embed", "its name"),
            ("pooler_output", values(20), "embed", "its name"),
            ("last_hidden_state", values(17, 20), "embed", "its name"),
            ("y", values(17, 20), "embed", "nothing says"),
            ("logits", values(17, 9), "classify", "its name"),
            ("output", softmax(values(384)), "classify", "its numbers are probabilities"),
            ("output", unit(values(100)), "embed", "its vectors have length 1"),
            ("class_embedding", values(30), "embed", "its name"),
            ("pred_boxes", values(100, 4), "regress", "its name"),
            ("output", values(1), "regress", "one number an image"),
            ("saliency", values(1, 16, 16), "dense", "one number at every place"),
            ("output", values(1, 16, 16), "dense", "one number at every place"),
            ("masks", values(16, 16), "dense", "its name"),
            ("output", values(21, 16, 16), "dense", "21 numbers"),
            ("feature_map", values(21, 16, 16), "embed", "its name"),
            ("output", values(64, 14, 14), "embed", "nothing says"),
            ("output", softmax(values(64, 14, 14)), "dense", "its numbers are probabilities"),
        ],
    )  # fmt: skip
    def test_by_what_it_is_called_and_looks_like(self, name, array, task, why) -> None:
        found = find_task(name, array)
        assert found.task == task
        assert found.why.startswith(why)

    def test_as_many_numbers_as_the_model_has_names(self) -> None:
        found = find_task("image_embeds", values(10), n_labels=10)
        assert (found.task, found.why) == ("classify", "the model names 10 classes")
        assert find_task("image_embeds", values(10), n_labels=9).task == "embed"

    def test_the_same_largest_number_on_every_image_is_no_class(self) -> None:
        outlying = values(100)
        outlying[:, 7] += 50
        found = find_task("output", outlying)
        assert found.task == "embed"
        assert found.why.startswith("the same number is the largest on every image looked at")
        assert find_task("output", outlying[:7]).task == "classify"  # too few to tell
        assert find_task("logits", outlying).task == "classify"

    def test_a_map_as_large_as_the_image(self) -> None:
        assert find_task("y", values(24, 32), image_size=(24, 32)).task == "dense"
        assert find_task("y", values(24, 32), image_size=(32, 24)).task == "embed"

    def test_probabilities_are_known_as_such(self) -> None:
        assert find_task("output", softmax(values(10))).is_probability
        assert not find_task("output", values(10)).is_probability
        assert find_task("probs", softmax(values(9)), given="classify").is_probability


class TestGiven:
    @pytest.mark.parametrize("task", ["classify", "embed", "regress"])
    def test_a_person_knows_better(self, task) -> None:
        found = find_task("output", values(384), given=task, n_labels=384)
        assert (found.task, found.why) == (task, "--task")

    @pytest.mark.parametrize(
        ("task", "array", "message"),
        [
            ("classify", values(1), r"--task classify: output 'y' has shape \['n', 1\], one number at every place"),
            ("embed", values(1, 8, 8), r"--task embed: output 'y' has shape \['n', 1, 8, 8\], one number at every"),
            ("dense", values(10), r"--task dense: output 'y' has shape \['n', 10\]; expected a map \[n, h, w\] or"),
        ],
    )  # fmt: skip
    def test_but_not_what_can_not_be(self, task, array, message) -> None:
        with pytest.raises(OptionError, match=message):
            find_task("y", array, given=task)


class TestRows:
    @pytest.mark.parametrize(
        ("shape", "axis", "rows"),
        [((10,), 1, (2, 1, 10)), ((17, 20), 2, (2, 17, 20)), ((5, 4, 3), 1, (2, 12, 5)), ((8, 8), None, (2, 64, 1))],
    )
    def test_vectors_at_positions(self, shape, axis, rows) -> None:
        task = OutputTask("y", "embed", "", shape, channel_axis=axis)
        array = RNG.standard_normal((2, *shape))
        found = task.rows(array)
        assert found.shape == rows
        if shape == (5, 4, 3):
            np.testing.assert_array_equal(found[1, 4], array[1, :, 1, 1])

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"task": "classify", "shape": (10,), "channel_axis": 1}, "10 classes (its name)."),
            ({"task": "classify", "shape": (17, 9), "channel_axis": 2}, "9 classes for every token (its name)."),
            ({"task": "embed", "shape": (384,), "channel_axis": 1}, "an embedding of 384 numbers (its name)."),
            ({"task": "dense", "shape": (1, 8, 8)}, "a map (its name)."),
            ({"task": "dense", "shape": (21, 8, 8), "channel_axis": 1}, "a map of 21 classes (its name)."),
            ({"task": "regress", "shape": (4,), "channel_axis": 1}, "numbers (its name)."),
        ],
    )  # fmt: skip
    def test_in_a_sentence(self, fields: dict[str, Any], text: str) -> None:
        assert OutputTask("y", why="its name", **fields).describe() == f"output 'y' is taken for {text}"


@pytest.mark.parametrize("size", [(), (224, 224), (56, 56)])
def test_maps_of_one_number_are_such_whatever_their_size(size: tuple[int, ...]) -> None:
    found = find_task("depth", np.random.default_rng(0).random((4, 56, 56)), given="dense", image_size=size)
    assert (found.n_channels, found.channel_axis) == (1, None)
