"""The refit on the pruned stream, on small graphs of the real exporters, against plain runs of the whole model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from graphs import difference, feeds_of, probed, run, save
from samples import FIXED, OPERATOR, write_photos

from corp_onnx import threads
from corp_onnx.blocks import SiteKey
from corp_onnx.images import open_images
from corp_onnx.images.recipe import find_recipe
from corp_onnx.metrics import OutputTask
from corp_onnx.refit import parts, refit_changes, stream, token_weights
from corp_onnx.refit.stream import KNOWN_BYTES, KnownStreams, find_walk
from corp_onnx.refit.token_weights import weigh_stops, weigh_tokens
from corp_onnx.refit.walk import _count_alike
from corp_onnx.run.segments import open_segment
from corp_onnx.run.tapped import open_tapped
from corp_onnx.units import MlpChange, apply_changes, unchanged

LAYER_SCALE = "timm_deit3_ts17_fused"
POST_NORM = "hf_bert_ts17_sdpa"
FUSED_ADDITION = "timm_vit_ts17_ort"


@pytest.fixture
def photos(tmp_path):
    """Recipe of the small models: 8 x 8 pixels."""
    write_photos(tmp_path / "photos", 12)

    def open_for(graph):
        return open_images(tmp_path / "photos", find_recipe({}, graph.shapes[graph.inputs[0]]))

    return open_for


def cut_mlps(graph, blocks, rng) -> dict[SiteKey, MlpChange]:
    """Half of every MLP, uncompensated."""
    changes: dict[SiteKey, MlpChange] = {}
    for unit in blocks.mlps:
        kept = np.sort(rng.permutation(unit.d_hidden)[: unit.d_hidden // 2])
        bias = unit.down.read_bias(graph)
        weight = unit.down.read_weight(graph).astype(np.float64)[:, kept]
        changes[unit.key] = MlpChange(unit, kept, weight, np.zeros(len(weight)) if bias is None else bias)
    return changes


class TestWalk:
    def test_stops_are_the_residual_additions_in_order(self) -> None:
        _, blocks = probed(OPERATOR)
        stops = find_walk(blocks).stops
        assert [s.key for s in stops] == [SiteKey(i, k) for i in range(len(blocks.blocks)) for k in ("attn", "mlp")]
        assert all(a.residual.stream == b.residual.skip for a, b in pairwise(stops))

    def test_addition_inside_an_operator_is_named(self) -> None:
        _, blocks = probed(FUSED_ADDITION)
        walk = find_walk(blocks)
        assert walk.stops == ()
        assert "inside a fused operator" in walk.reason


class TestSegment:
    @pytest.mark.parametrize("name", [OPERATOR, LAYER_SCALE, POST_NORM, "torchvision_vit_ts17"])
    def test_stretches_in_a_row_are_the_whole_model(self, name: str) -> None:
        graph, blocks = probed(name)
        feeds = feeds_of(graph)
        stops = find_walk(blocks).stops
        names = [stops[0].residual.skip or "", *(s.residual.stream for s in stops), graph.outputs[0]]
        expected = open_tapped(graph.model, names[:-1]).run(feeds)
        tensors: dict[str, np.ndarray] = {}
        for before, after in zip([None, *names], names, strict=False):
            fed = [] if before is None else [before]
            tensors |= open_segment(graph.model, graph.types, fed, [after]).run(tensors, feeds)
            assert difference([tensors[after]], [expected[after]]) < 1e-5


class TestRefit:
    @pytest.mark.parametrize("name", [OPERATOR, LAYER_SCALE, FIXED])
    def test_whole_model_stays_what_it_is(self, name: str, photos, tmp_path) -> None:
        """Nothing pruned: the dense weights already meet the dense stream, so the refit may not move the answers."""
        graph, blocks = probed(name)
        changes = {site.key: unchanged(site, graph) for site in blocks.mlps}
        walk = find_walk(blocks)
        refitted = refit_changes(graph, walk, changes, graph.model.proto, photos(graph), {})
        feeds = feeds_of(graph)
        found = run(save(apply_changes(graph, refitted), tmp_path, name, graph), feeds)
        assert difference(found, run(graph.model, feeds)) < 1e-4

    @pytest.mark.parametrize("name", [OPERATOR, LAYER_SCALE])
    def test_stream_comes_nearer_to_the_dense_one(self, name: str, photos) -> None:
        graph, blocks = probed(name)
        images, walk = photos(graph), find_walk(blocks)
        changes = cut_mlps(graph, blocks, np.random.default_rng(0))
        proto = apply_changes(graph, changes)
        refitted = refit_changes(graph, walk, changes, proto, images, weigh_stops(graph, walk, images, LOGITS))
        assert set(refitted) == {s.key for s in walk.stops[1:]}  # the first attention is in front of any change
        better = apply_changes(graph, refitted)
        feeds = {graph.inputs[0]: next(iter(images.batches(12))).pixels}
        last = walk.stops[-1].residual.stream
        dense, before, after = (
            open_tapped(m, [last]).run(feeds)[last]
            for m in (graph.model, replace_model(graph, proto), replace_model(graph, better))
        )
        assert np.square(after - dense).sum() < 0.8 * np.square(before - dense).sum()

    def test_nothing_is_solved_in_front_of_the_first_change(self, photos, monkeypatch) -> None:
        """Of the last MLP alone; what comes behind it is the same as if all stops were solved."""
        graph, blocks = probed(OPERATOR)
        images, walk = photos(graph), find_walk(blocks)
        key, change = list(cut_mlps(graph, blocks, np.random.default_rng(0)).items())[-1]
        proto = apply_changes(graph, {key: change})
        found = refit_changes(graph, walk, {key: change}, proto, images, {})
        assert set(found) == {key} == {walk.stops[-1].key}
        monkeypatch.setattr("corp_onnx.refit.walk._count_alike", lambda *_: 0)
        all_solved = refit_changes(graph, walk, {key: change}, proto, images, {})
        assert len(all_solved) == len(walk.stops)
        for one, other in zip(found[key].last_product(graph), all_solved[key].last_product(graph), strict=True):
            assert difference([one], [other]) < 1e-3

    def test_a_change_of_no_stop_may_be_felt_anywhere(self) -> None:
        _, blocks = probed(OPERATOR)
        walk = find_walk(blocks)
        keys = [stop.key for stop in walk.stops]
        counted = [_count_alike(walk, dict.fromkeys(some)) for some in ([keys[2]], keys[1:3], [SiteKey(9, "mlp")], [])]
        assert counted == [2, 1, 0, 0]

    @pytest.mark.long
    @pytest.mark.parametrize(("name", "n_tokens"), [(OPERATOR, 48), (OPERATOR, 2), (LAYER_SCALE, 48)])
    def test_batches_change_rounding_only(self, name: str, n_tokens: int, photos, monkeypatch) -> None:
        """The folds that choose the ridge are cut by images; a batch of 5 leaves 2 for the last one."""
        monkeypatch.setattr(parts, "ENOUGH_TOKENS", n_tokens)
        monkeypatch.setattr(parts, "ROWS_A_CHANNEL", 0)
        graph, blocks = probed(name)
        images, walk = photos(graph), find_walk(blocks)
        changes = cut_mlps(graph, blocks, np.random.default_rng(0))
        proto = apply_changes(graph, changes)
        found = []
        for n in (1, 5, 12):
            weights = weigh_stops(graph, walk, images, LOGITS, batch_size=n)
            found.append((weights, refit_changes(graph, walk, changes, proto, images, weights, batch_size=n)))
        for weights, refitted in found[1:]:
            for key, expected in found[0][0].items():
                np.testing.assert_allclose(weights[key], expected, rtol=1e-3)
            for key, expected in found[0][1].items():
                for one, other in zip(refitted[key].last_product(graph), expected.last_product(graph), strict=True):
                    assert difference([one], [other]) < 1e-3

    def test_threads_change_no_bit(self, photos, monkeypatch) -> None:
        """Folds are summed in the order of their images, whatever goes on beside them."""
        graph, blocks = probed(OPERATOR)
        images, walk = photos(graph), find_walk(blocks)
        changes = cut_mlps(graph, blocks, np.random.default_rng(0))
        proto = apply_changes(graph, changes)
        found = []
        for n in (1, 4):
            monkeypatch.setattr(threads, "choose_size", lambda n=n: n)
            found.append(refit_changes(graph, walk, changes, proto, images, {}))
        for key, expected in found[0].items():
            for one, other in zip(found[1][key].last_product(graph), expected.last_product(graph), strict=True):
                np.testing.assert_array_equal(one, other)


class TestKnownStreams:
    def test_a_second_refit_finds_the_same_without_the_dense_model(self, photos, monkeypatch) -> None:
        graph, blocks = probed(OPERATOR)
        images, walk, known = photos(graph), find_walk(blocks), KnownStreams()
        changes = cut_mlps(graph, blocks, np.random.default_rng(0))
        proto = apply_changes(graph, changes)
        first = refit_changes(graph, walk, changes, proto, images, {}, known=known)
        assert known.room < KNOWN_BYTES
        monkeypatch.setattr(stream, "advance_model", None)
        monkeypatch.setattr("corp_onnx.refit.walk.run_prefix", None)
        second = refit_changes(graph, walk, changes, proto, images, {}, known=known)
        for key, change in first.items():
            for one, other in zip(second[key].last_product(graph), change.last_product(graph), strict=True):
                np.testing.assert_array_equal(one, other)

    def test_no_more_is_kept_than_there_is_room_for(self) -> None:
        known, made = KnownStreams(room=100), list[str]()

        def make(name: str, n_bytes: int) -> list[np.ndarray]:
            made.append(name)
            return [np.zeros(n_bytes // 2, np.uint8)] * 2

        for _ in range(2):
            for name, n_bytes in (("a", 60), ("b", 60), ("c", 40)):
                assert sum(part.nbytes for part in known.recall(name, partial(make, name, n_bytes))) == n_bytes
        assert made == ["a", "b", "c", "b"]
        assert known.room == 0


LOGITS = (OutputTask("logits", "classify", "its name", (10,), channel_axis=1),)


class TestTokenWeights:
    def test_pooled_token_is_found_without_gradients(self, photos) -> None:
        """Behind the last block only the class token is read: its weight is the largest, the others' one."""
        graph, blocks = probed(OPERATOR)
        walk = find_walk(blocks)
        weights = weigh_stops(graph, walk, photos(graph), LOGITS)
        last = weights[walk.stops[-1].key]
        assert last[0] == 100.0
        assert np.all(last[1:] == 1.0)
        first = weights[walk.stops[0].key]
        assert 1.0 <= first[0] < last[0]

    def test_between_measured_stops_the_logarithm_is_a_line(self, photos, monkeypatch) -> None:
        """Stops are counted from the last one, and the last few are measured themselves."""
        graph, blocks = probed(OPERATOR)
        walk = find_walk(blocks)
        keys = [stop.key for stop in walk.stops]
        asked: list[str] = []

        def weigh(_tail, stream, _feeds, tensor, _tasks, _n_calls):
            asked.append(tensor)
            weights = np.ones(stream[0].shape[1], dtype=np.float32)
            weights[0] = 10.0 ** len(asked)
            return weights

        monkeypatch.setattr(token_weights, "weigh_tokens", weigh)
        monkeypatch.setattr(token_weights, "STRIDE", 2)
        weights = weigh_stops(graph, walk, photos(graph), LOGITS)
        measured = [i for i in range(len(keys)) if len(keys) - 1 - i < 2 or (len(keys) - 1 - i) % 2 == 0]
        assert asked == [walk.stops[i].residual.stream for i in measured]
        for place, i in enumerate(measured):
            assert weights[keys[i]][0] == pytest.approx(10.0 ** (place + 1))
        for i in set(range(1, len(keys))) - set(measured):
            expected = np.sqrt(weights[keys[i - 1]][0] * weights[keys[i + 1]][0])
            assert weights[keys[i]][0] == pytest.approx(expected, rel=1e-4)

    def test_an_image_that_sways_more_has_no_more_say(self) -> None:
        """A tail in which the losses of one image are a thousand times those of the others, and their ratio as well."""

        class Swayed:
            read = ("out",)

            def run(self, tensors, _feeds):
                h = tensors["h"]
                gain = np.where(np.arange(len(h)) == 0, 30.0, 1.0)[:, None]
                return {"out": gain * (h[:, 0] * np.where(np.arange(len(h)) == 0, 9.0, 3.0)[:, None] + h[:, 1:].sum(1))}

        stream = [np.random.default_rng(0).standard_normal((9, 40, 50), dtype=np.float32)]
        tasks = (OutputTask("out", "regress", "its name", (50,)),)
        weights = weigh_tokens(Swayed(), stream, [({}, 9)], "h", tasks)  # type: ignore[arg-type]
        assert weights[0] == pytest.approx(3.0 * 3.0 ** (1 / 9), rel=0.15)

    def test_positions_that_matter_alike_weigh_alike(self) -> None:
        class Mean:
            read = ("out",)

            def run(self, tensors, _feeds):
                return {"out": tensors["h"].mean(axis=1)}

        tasks = (OutputTask("out", "classify", "its name", (5,), channel_axis=1),)
        stream = [np.random.default_rng(0).standard_normal((64, 9, 5), dtype=np.float32)]
        weights = weigh_tokens(Mean(), stream, [({}, 64)], "h", tasks)  # type: ignore[arg-type]
        assert np.all(weights < 1.5)


def replace_model(graph, proto):
    return replace(graph.model, proto=proto)
