"""Labels in another order are flagged, and models that are only bad are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corp_onnx.checks.chance import LabelWatch

PATH = Path("m.onnx")


def watch(
    n: int, n_classes: int, accuracy: float, order: np.ndarray | None = None, sure: float = 12.0, seed: int = 0
) -> str:
    """What is said of a model of some accuracy; `order` is how its labels are permuted."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    wrong = rng.integers(0, n_classes, n)
    answers = np.where(rng.random(n) < accuracy, truth, wrong)
    logits = sure * np.eye(n_classes)[answers] + 0.01 * rng.standard_normal((n, n_classes))
    labels = truth if order is None else order[truth]
    found = LabelWatch()
    for cut in (slice(0, n // 3), slice(n // 3, n)):
        found.add(logits[cut], labels[cut])
    return found.describe_order(PATH)


@pytest.mark.parametrize(("n", "n_classes"), [(60, 2), (60, 3), (100, 10), (400, 10), (650, 1000), (50, 1000)])
@pytest.mark.parametrize("accuracy", [0.8, 0.97])
def test_labels_in_another_order(n: int, n_classes: int, accuracy: float) -> None:
    text = watch(n, n_classes, accuracy, np.roll(np.arange(n_classes), 1))
    assert text.startswith("top-1 of m.onnx is at chance (")
    assert text.endswith(
        "the labels are probably in another order than the model's answers. Give --labels in the order of the answers."
    )


@pytest.mark.parametrize(("n", "n_classes"), [(60, 2), (100, 10), (400, 10), (650, 1000), (50, 1000), (9, 10)])
@pytest.mark.parametrize("accuracy", [0.0, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_models_that_are_only_bad_or_unsure(n: int, n_classes: int, accuracy: float, seed: int) -> None:
    assert watch(n, n_classes, accuracy, sure=0.1, seed=seed) == ""


def test_the_evidence_is_named() -> None:
    pairs = watch(400, 10, 0.95, np.roll(np.arange(10), 1))
    assert "with 10 classes), and yet images of the same label get the same answer (9" in pairs
    few = watch(20, 1000, 0.95, np.roll(np.arange(1000), 1), sure=20.0)
    assert "and yet the model is sure of its answers (100% on average)" in few


def test_a_model_that_answers_one_class_is_broken_and_not_mislabelled() -> None:
    rng = np.random.default_rng(0)
    found = LabelWatch()
    found.add(np.tile([9.0] + [0.0] * 9, (200, 1)), rng.integers(0, 10, 200))
    assert found.describe_order(PATH) == ""
    alone = LabelWatch()
    alone.add(np.tile([9.0] + [0.0] * 999, (20, 1)), np.arange(20) + 5)
    assert alone.describe_order(PATH) == ""


def test_probabilities_are_not_softmaxed_again() -> None:
    shares = np.full((30, 100), 0.4 / 99)
    shares[np.arange(30), np.arange(30)] = 0.6
    found = LabelWatch()
    found.add(shares, np.arange(30) + 50)
    assert "sure of its answers (60% on average)" in found.describe_order(PATH)


def test_nothing_to_look_at() -> None:
    found = LabelWatch()
    found.add(np.zeros((4, 10)), None)
    found.add(np.zeros((4, 10, 2)), np.zeros(4, np.int64))
    assert found.describe_order(PATH) == ""
    found.add(np.zeros((40, 1)), np.zeros(40, np.int64))
    assert found.describe_order(PATH) == ""
