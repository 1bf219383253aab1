"""Every task's figures against a transcription of their definitions, however the batches are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest

from corp_onnx.metrics import Judgement, OutputTask, open_tally
from corp_onnx.metrics.classes import compare_right
from corp_onnx.metrics.tally import Tally
from corp_onnx.results import Metric

N = 30
RNG = np.random.default_rng(0)


def task(kind: str, *shape: int, axis: int | None = 1, **fields: bool) -> OutputTask:
    return OutputTask("y", kind, "", shape, channel_axis=axis, **fields)  # type: ignore[arg-type]


TASKS = {
    "classes": task("classify", 8),
    "tokens": task("classify", 5, 8, axis=2),
    "areas": task("dense", 4, 6, 6),
    "vectors": task("embed", 16),
    "token vectors": task("embed", 5, 16, axis=2),
    "map": task("dense", 1, 6, 6, axis=None),
    "numbers": task("regress", 3),
}


def pair(of: OutputTask, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    reference = RNG.standard_normal((N, *of.shape))
    return reference + noise * RNG.standard_normal(reference.shape), reference


def count(of: OutputTask, outputs: np.ndarray, reference: np.ndarray | None, labels: np.ndarray | None = None) -> Tally:
    tally = open_tally(of)
    tally.add(outputs, reference, labels)
    return tally


def figures(tally: Tally) -> dict[str, Metric]:
    return {metric.name: metric for metric in tally.metrics()}


@pytest.mark.parametrize("of", TASKS.values(), ids=TASKS)
class TestEvery:
    def test_how_batches_are_cut_changes_nothing(self, of) -> None:
        outputs, reference = pair(of)
        parts = open_tally(of)
        for cut in (slice(0, 3), slice(3, 17), slice(17, N)):
            parts.add(outputs[cut], reference[cut])
        whole = count(of, outputs, reference)
        assert parts.loss == pytest.approx(whole.loss)
        np.testing.assert_allclose(parts.kept, whole.kept)
        for a, b in zip(parts.metrics(), whole.metrics(), strict=True):
            assert (a.name, a.value) == (b.name, pytest.approx(b.value))

    def test_a_model_against_itself_keeps_everything(self, of) -> None:
        _, reference = pair(of)
        tally = count(of, reference, reference)
        assert tally.loss == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(tally.kept, 1.0)
        assert tally.relative_error == 0.0

    def test_further_away_is_worse(self, of) -> None:
        outputs, reference = pair(of)
        near, far = (count(of, reference + k * (outputs - reference), reference) for k in (0.5, 2.0))
        assert near.loss < far.loss
        assert near.kept.mean() > far.kept.mean()

    def test_without_a_reference_there_is_nothing_to_compare(self, of) -> None:
        assert count(of, pair(of)[0], None).metrics() == ()
        assert open_tally(of).metrics() == ()

    def test_the_error_is_that_of_all_as_one_vector(self, of) -> None:
        outputs, reference = pair(of)
        expected = np.linalg.norm(outputs - reference) / np.linalg.norm(reference)
        assert figures(count(of, outputs, reference))["relative_error"].value == pytest.approx(expected)
        assert count(of, outputs, np.zeros_like(outputs)).relative_error is None


class TestClasses:
    def test_labels(self) -> None:
        outputs = pair(TASKS["classes"])[0]
        labels = RNG.integers(0, 8, N)
        found = figures(count(TASKS["classes"], outputs, None, labels))
        order = np.argsort(-outputs, axis=1)
        assert found["top1"].value == pytest.approx((order[:, 0] == labels).mean())
        assert found["top5"].value == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())
        few = figures(count(task("classify", 5), outputs[:, :5], None, labels % 5))
        assert list(few) == ["top1"]  # of five classes the label is always among the first five

    def test_tokens_have_no_labels(self) -> None:
        tally = count(TASKS["tokens"], pair(TASKS["tokens"])[0], None, np.zeros(N, dtype=np.int64))
        assert tally.metrics() == ()

    def test_an_image_keeps_the_share_of_its_tokens(self) -> None:
        outputs, reference = pair(TASKS["tokens"], 1.0)
        tally = count(TASKS["tokens"], outputs, reference)
        np.testing.assert_allclose(tally.kept, (outputs.argmax(2) == reference.argmax(2)).mean(axis=1))
        assert not tally.is_share
        assert count(TASKS["classes"], *pair(TASKS["classes"])).is_share

    def test_probabilities_are_not_taken_for_logits(self) -> None:
        p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
        tally = count(task("classify", 2, is_probability=True), q, p)
        assert tally.loss == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))

    def test_overlap_of_areas(self) -> None:
        outputs, reference = pair(TASKS["areas"], 1.0)
        found = figures(count(TASKS["areas"], outputs, reference))
        a, b = outputs.argmax(axis=1), reference.argmax(axis=1)
        expected = [((a == k) & (b == k)).sum() / ((a == k) | (b == k)).sum() for k in range(4)]
        assert found["mean_iou"].value == pytest.approx(np.mean(expected))

    def test_a_class_that_nobody_calls_does_not_count(self) -> None:
        scores = np.zeros((1, 3, 4, 4))
        scores[:, 0] = 1
        assert figures(count(task("dense", 3, 4, 4), scores, scores))["mean_iou"].value == 1.0

    def test_difference_of_two_models_on_the_same_images(self) -> None:
        labels = np.arange(N) % 8
        right = np.eye(8)[labels]
        wrong = right.copy()
        wrong[:6] = np.roll(wrong[:6], 1, axis=1)
        good, bad = (count(TASKS["classes"], z, None, labels) for z in (right, wrong))
        found = compare_right(bad, good, 0.95)
        assert found is not None
        assert found.value == pytest.approx(-6 / N)
        assert found.low is not None
        assert found.high is not None
        assert found.low < -6 / N < found.high < 0
        assert compare_right(good, count(TASKS["classes"], right, right), 0.95) is None
        assert compare_right(good, count(TASKS["map"], *pair(TASKS["map"])), 0.95) is None


class TestEmbeddings:
    def test_cosines(self) -> None:
        outputs, reference = pair(TASKS["vectors"])
        found = figures(count(TASKS["vectors"], outputs, reference))
        cosines = [
            float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(outputs, reference, strict=True)
        ]
        assert found["cosine"].value == pytest.approx(np.mean(cosines))
        assert found["cosine_p1"].value == pytest.approx(np.percentile(cosines, 1))

    def test_a_vector_of_zeros_is_no_error(self) -> None:
        outputs, reference = pair(TASKS["vectors"])
        outputs[0] = 0
        assert count(TASKS["vectors"], outputs, reference).kept[0] == 0.0
        reference[0] = 0
        assert count(TASKS["vectors"], outputs, reference).kept[0] == 1.0

    def test_neighbours_against_a_search_by_hand(self) -> None:
        outputs, reference = pair(TASKS["vectors"], 0.8)
        found = figures(count(TASKS["vectors"], outputs, reference))
        x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (outputs, reference))
        same = shared = cross = 0.0
        for i in range(N):
            others = [j for j in range(N) if j != i]
            by = {
                name: sorted(others, key=lambda j, a=a, b=b: -float(a[i] @ b[j]))
                for name, (a, b) in {"x": (x, x), "y": (y, y), "xy": (x, y)}.items()
            }
            same += by["x"][0] == by["y"][0]
            shared += len(set(by["x"][:10]) & set(by["y"][:10])) / 10
            cross += by["xy"][0] == by["y"][0]
        assert found["nn_agreement"].value == pytest.approx(same / N)
        assert found["overlap_at_10"].value == pytest.approx(shared / N)
        assert found["cross_agreement"].value == pytest.approx(cross / N)

    def test_few_images_have_few_neighbours(self) -> None:
        outputs, reference = pair(TASKS["vectors"])
        assert "overlap_at_3" in figures(count(TASKS["vectors"], outputs[:7], reference[:7]))
        assert not [name for name in figures(count(TASKS["vectors"], outputs[:4], reference[:4])) if "overlap" in name]
        assert "nn_agreement" not in figures(count(TASKS["vectors"], outputs[:2], reference[:2]))

    def test_vectors_of_tokens_have_no_neighbours(self) -> None:
        assert "nn_agreement" not in figures(count(TASKS["token vectors"], *pair(TASKS["token vectors"])))


class TestNumbers:
    def test_correlation_is_that_of_every_image(self) -> None:
        outputs, reference = pair(TASKS["map"])
        expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(outputs, reference, strict=True)]
        np.testing.assert_allclose(count(TASKS["map"], outputs, reference).kept, expected)

    def test_flat_maps(self) -> None:
        flat, map_ = np.ones((1, 1, 6, 6)), RNG.random((1, 1, 6, 6))
        assert count(TASKS["map"], flat, flat).kept.tolist() == [1.0]
        assert count(TASKS["map"], flat, map_).kept.tolist() == [0.0]

    @pytest.mark.parametrize(("scale", "edge"), [("probabilities", 0.5), ("logits", 0.0)])
    def test_overlap_of_what_both_mark(self, scale, edge) -> None:
        outputs, reference = pair(TASKS["map"], 0.5)
        if scale == "probabilities":
            outputs, reference = (1 / (1 + np.exp(-3 * v)) for v in (outputs, reference))
        a, b = ((v > edge).reshape(N, -1) for v in (outputs, reference))
        expected = np.mean((a & b).sum(axis=1) / (a | b).sum(axis=1))
        assert figures(count(TASKS["map"], outputs, reference))["iou"].value == pytest.approx(expected)

    def test_a_depth_has_no_overlap(self) -> None:
        """Nothing tells where a map of positive numbers of any size begins to be 'here'."""
        outputs, reference = (1 + 9 * np.abs(v) for v in pair(TASKS["map"]))
        assert "iou" not in figures(count(TASKS["map"], outputs, reference))

    def test_r2(self) -> None:
        outputs, reference = pair(TASKS["numbers"])
        spread = np.square(reference - reference.mean(axis=0)).sum()
        expected = 1 - np.square(outputs - reference).sum() / spread
        assert figures(count(TASKS["numbers"], outputs, reference))["r2"].value == pytest.approx(expected)


class TestJudgement:
    def test_losses_add_up_over_what_is_judged_and_the_least_is_kept(self) -> None:
        tasks = [OutputTask(name, "classify", "", (8,), channel_axis=1) for name in "abc"]
        outputs, reference = ({n: RNG.standard_normal((N, 8)) for n in "abc"} for _ in range(2))
        both = Judgement(tasks, ["a", "c"])
        both.add(outputs, reference)
        alone = {n: count(t, outputs[n], reference[n]) for n, t in zip("abc", tasks, strict=True)}
        assert both.loss == pytest.approx(alone["a"].loss + alone["c"].loss)
        np.testing.assert_array_equal(both.kept.values, np.minimum(alone["a"].kept, alone["c"].kept))
        assert (both.kept.is_share, both.kept.name, both.n_samples) == (True, "agreement", N)
        assert [(s.output, s.is_judged) for s in both.scores()] == [("a", True), ("b", False), ("c", True)]

    def test_labels_are_those_of_the_first_that_is_judged(self) -> None:
        tasks = [OutputTask(name, "classify", "", (8,), channel_axis=1) for name in "ab"]
        judgement = Judgement(tasks, ["b"])
        judgement.add({n: RNG.standard_normal((N, 8)) for n in "ab"}, None, np.zeros(N, dtype=np.int64))
        assert [score.find("top1") is None for score in judgement.scores()] == [True, False]

    def test_different_measures_are_named_together(self) -> None:
        tasks = [
            OutputTask("a", "classify", "", (8,), channel_axis=1),
            OutputTask("b", "embed", "", (8,), channel_axis=1),
        ]
        judgement = Judgement(tasks)
        judgement.add(*({n: RNG.standard_normal((N, 8)) for n in "ab"} for _ in range(2)))
        assert (judgement.kept.name, judgement.kept.is_share) == ("agreement and cosine", False)

    def test_what_is_kept_at_another_distance(self) -> None:
        """Of answers what the stretched logits answer, for several outputs all of them; of cosines by the square."""
        tasks = [OutputTask(name, "classify", "", (8,), channel_axis=1) for name in "ab"]
        reference = {n: RNG.standard_normal((N, 8)) for n in "ab"}
        outputs = {n: reference[n] + 0.4 * RNG.standard_normal((N, 8)) for n in "ab"}

        def judge(times: float) -> Judgement:
            judgement = Judgement(tasks)
            judgement.add({n: reference[n] + times * (outputs[n] - reference[n]) for n in "ab"}, reference)
            return judgement

        kept = judge(1.0).kept
        for times in (0.5, 1.0, 2.0):
            np.testing.assert_array_equal(kept.stretched(times).values, judge(times).kept.values)
        np.testing.assert_array_equal(kept.stretched(2.0).stretched(0.25).values, judge(0.5).kept.values)
        cosines = Judgement([TASKS["vectors"]])
        cosines.add(*({"y": values} for values in pair(TASKS["vectors"])))
        assert cosines.kept.stretch is None
        np.testing.assert_allclose(1 - cosines.kept.stretched(2.0).values, 4 * (1 - cosines.kept.values))
