"""Errors of units, of the residual stream and of the answers, against NumPy on tensors from plain ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from samples import OPERATOR, expectation, fixture_path, paper, weights_of, write_photos

from corp_onnx.blocks import find_blocks
from corp_onnx.calibrate.data import split_calibration
from corp_onnx.checks import sides
from corp_onnx.checks.measure import check_expected, make_promise, measure_model
from corp_onnx.checks.sides import KnownSides
from corp_onnx.checks.unit_errors import UnitErrors
from corp_onnx.errors import NonFiniteError
from corp_onnx.findings import Findings, Subject
from corp_onnx.graph import Graph
from corp_onnx.graph.model import load_model
from corp_onnx.images import ImageSet, open_images
from corp_onnx.images.recipe import Recipe
from corp_onnx.metrics.intervals import wilson_interval
from corp_onnx.metrics.judgement import Kept
from corp_onnx.prune import prune_model
from corp_onnx.results import HeldOut, PruneResult
from corp_onnx.run.outputs import Outputs, find_outputs
from corp_onnx.run.pace import choose_pace
from corp_onnx.run.probe import probe_graph
from corp_onnx.run.sessions import open_session
from corp_onnx.run.tapped import Tapped
from corp_onnx.settings import Budget
from corp_onnx.shelf import Shelf
from corp_onnx.units import AttentionChange, MlpChange, UnitKey, UnitPlan, list_units

RECIPE = Recipe(size=(8, 8))
SUBJECT = Subject("model", "images")
DENSE = fixture_path(OPERATOR)
D, H, D_HEAD, D_HIDDEN = (expectation(OPERATOR)[k] for k in ("d_model", "n_heads", "d_head", "d_hidden"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos", 24)
    images = split_calibration(open_images(folder, RECIPE), paper()).reporting
    assert isinstance(images, ImageSet)
    return images


@pytest.fixture(scope="module")
def pruned(held_out: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> PruneResult:
    return prune_model(DENSE, held_out.root, tmp_path_factory.mktemp("out") / "out.onnx", settings=paper())


@pytest.fixture(scope="module")
def pixels(held_out: ImageSet) -> np.ndarray:
    return np.concatenate([b.pixels for b in held_out.batches(64)])


def outputs_of(path: Path, images: ImageSet) -> Outputs:
    session = open_session(path)
    return find_outputs(session, session.stream(images, 8))


def tap(path: Path | str, names: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
    proto = onnx.load(path)
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [o.astype(np.float64) for o in session.run(list(names), {"x": pixels})]


def products(path: Path | str, shape: tuple[int, int]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(input tensor, weight, bias) of every MatMul with a stored weight of this shape and the Add behind it."""
    graph, stored = onnx.load(path).graph, weights_of(Path(path))
    found: list[tuple[str, np.ndarray, np.ndarray]] = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored and stored[node.input[1]].shape == shape:
            add = next(n for n in graph.node if node.output[0] in n.input)
            bias = stored[next(i for i in add.input if i in stored)]
            found.append((node.input[0], stored[node.input[1]].astype(np.float64), bias.astype(np.float64)))
    return found


def measure_units(
    graph: Graph, plans: Sequence[UnitPlan], images: ImageSet, batch_size: int = 8
) -> dict[UnitKey, tuple[float, float]]:
    """The dense model beside itself."""
    errors, outputs = UnitErrors(graph, plans), outputs_of(graph.model.path, images)
    measure_model(graph, find_blocks(graph), graph.model, images, outputs, errors, batch_size=batch_size)
    return errors.result()


def relative(error: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(np.square(error).sum() / np.square(reference).sum()))


class TestUnitErrors:
    def test_mlp_error_is_that_of_its_output(self, pruned: PruneResult, pixels: np.ndarray) -> None:
        ups, downs = products(DENSE, (D, D_HIDDEN)), products(DENSE, (D_HIDDEN, D))
        small_ups = products(pruned.pruned.path, (D, D_HIDDEN // 2))
        small_downs = products(pruned.pruned.path, (D_HIDDEN // 2, D))
        units = [u for u in pruned.units if u.kind == "mlp"]
        for unit, up, down, small_up, small_down in zip(units, ups, downs, small_ups, small_downs, strict=True):
            x = tap(DENSE, [down[0]], pixels)[0].reshape(-1, D_HIDDEN)
            kept = [int(np.flatnonzero((up[1] == column[:, None]).all(axis=0))[0]) for column in small_up[1].T]
            exact = x @ down[1] + down[2]
            reference = exact - exact.mean(axis=0)
            error = relative(x[:, kept] @ small_down[1] + small_down[2] - exact, reference)
            error_without = relative(x[:, kept] @ down[1][kept] + down[2] - exact, reference)
            assert unit.error == pytest.approx(error, rel=1e-4)
            assert unit.error_without == pytest.approx(error_without, rel=1e-4)

    def test_logit_error_is_that_of_rows_about_their_mean(self, pruned: PruneResult, pixels: np.ndarray) -> None:
        width = D_HEAD // 2
        dense = products(DENSE, (D, 3 * D))
        small = products(pruned.pruned.path, (D, D + 2 * H * width))
        units = [u for u in pruned.units if u.kind == "qk"]
        for unit, (source, weight, bias), (_, small_weight, small_bias) in zip(units, dense, small, strict=True):
            x = tap(DENSE, [source], pixels)[0]  # [images, tokens, d_model]
            exact = logits(x @ weight + bias, D_HEAD)
            found = logits(x @ small_weight + small_bias, width)
            assert unit.error == pytest.approx(relative(found - exact, exact), rel=1e-4)

    def test_logit_error_of_the_plain_cut(self, pixels: np.ndarray, held_out: ImageSet, tmp_path: Path) -> None:
        plain = prune_model(DENSE, held_out.root, tmp_path / "out.onnx", settings=paper(0, 0.5, compensate=False))
        source, weight, bias = products(DENSE, (D, 3 * D))[0]
        small = products(tmp_path / "out.onnx", (D, D + H * D_HEAD))[0]
        x = tap(DENSE, [source], pixels)[0]
        exact = logits(x @ weight + bias, D_HEAD)
        found = logits(x @ small[1] + small[2], D_HEAD // 2)
        assert plain.units[0].error_without == pytest.approx(relative(found - exact, exact), rel=1e-4)

    def test_value_error_is_that_of_the_projection(self, held_out: ImageSet, pixels: np.ndarray) -> None:
        graph = probe_graph(load_model(DENSE))
        unit = list_units(find_blocks(graph), ("vo",))[0]
        out = unit.site.out.linear
        rng = np.random.default_rng(0)
        changes = [
            AttentionChange(
                unit.site, v_map=rng.standard_normal((H, 3, D_HEAD)), out_weight=rng.standard_normal((D, H * 3)),
                out_bias=rng.standard_normal(D),
            )
            for _ in range(2)
        ]  # fmt: skip
        plan = UnitPlan(unit, 3, 1.0, changes[0], lambda: changes[1])
        measured = measure_units(graph, [plan], held_out)[unit.key]
        x = tap(DENSE, [out.input], pixels)[0].reshape(-1, H, D_HEAD)
        exact = x.reshape(-1, H * D_HEAD) @ out.read_weight(graph).T + out.read_bias(graph)
        for change, found in zip(changes, measured, strict=True):
            assert change.v_map is not None
            cut = np.stack([x[:, h] @ change.v_map[h].T for h in range(H)], axis=1).reshape(-1, H * 3)
            error = cut @ np.asarray(change.out_weight).T + change.out_bias - exact
            assert found == pytest.approx(relative(error, exact - exact.mean(axis=0)), rel=1e-4)

    def test_batches_change_nothing(self, held_out: ImageSet) -> None:
        """Not even the mean that the reference is taken about."""
        graph = probe_graph(load_model(DENSE))
        unit = list_units(find_blocks(graph), ("mlp",))[0]
        rng = np.random.default_rng(0)
        change = MlpChange(unit.site, np.arange(5), rng.standard_normal((D, 5)), np.zeros(D))
        plan = UnitPlan(unit, 5, 1.0, change, partial(replace, change))
        measured = [measure_units(graph, [plan], held_out, batch_size=n)[plan.key] for n in (1, 2, 64)]
        assert measured[0] == pytest.approx(measured[1], rel=1e-5)
        assert measured[0] == pytest.approx(measured[2], rel=1e-5)


def logits(qkv: np.ndarray, width: int) -> np.ndarray:
    """q k' per head, every row about its mean over the keys."""
    n_images, n_tokens = qkv.shape[:2]
    q, k = (qkv[..., i * H * width : (i + 1) * H * width].reshape(n_images, n_tokens, H, width) for i in range(2))
    full = np.einsum("ithd,ishd->ihts", q, k)
    return full - full.mean(axis=-1, keepdims=True)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class TestModel:
    def test_answers_and_stream_by_hand(self, pruned: PruneResult, pixels: np.ndarray) -> None:
        streams = [b.stream for b in find_blocks(probe_graph(load_model(DENSE))).blocks]
        assert all(streams)
        names = ["logits", *(s for s in streams if s)]
        dense, small = tap(DENSE, names, pixels), tap(pruned.pruned.path, names, pixels)
        held, n = pruned.held_out, len(pixels)
        p, q = softmax(dense[0]), softmax(small[0])
        agreement = float((dense[0].argmax(axis=1) == small[0].argmax(axis=1)).mean())
        assert held.n_images == n
        assert held.agreement == pytest.approx(agreement)
        assert (held.promise.low, held.promise.high) == pytest.approx(wilson_interval(agreement * n, n))
        assert held.kl == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()), rel=1e-4)
        assert held.relative_error == pytest.approx(relative(small[0] - dense[0], dense[0]), rel=1e-4)
        expected = [relative(b - a, a) for a, b in zip(dense[1:], small[1:], strict=True)]
        assert held.stream_error == pytest.approx(expected, rel=1e-4)

    def test_model_against_itself(self, held_out: ImageSet) -> None:
        graph = probe_graph(load_model(DENSE))
        measured = measure_model(
            graph, find_blocks(graph), load_model(DENSE), held_out, outputs_of(DENSE, held_out), UnitErrors(graph, [])
        )
        assert (measured.n_images, measured.agreement, measured.kl, measured.relative_error) == (5, 1.0, 0.0, 0.0)
        assert (measured.loss, measured.stream_error) == (0.0, (0.0, 0.0))
        assert measured.promise.low == pytest.approx(wilson_interval(5, 5)[0])

    @pytest.mark.parametrize("limit", [0, None])
    def test_one_model_after_the_other_gives_the_same(
        self, limit: int | None, pruned: PruneResult, held_out: ImageSet, tmp_path: Path
    ) -> None:
        """The streams of the dense model lie in a file, or in memory, until the pruned one has its turn."""
        graph = probe_graph(load_model(DENSE))
        blocks, small, outputs = find_blocks(graph), load_model(pruned.pruned.path), outputs_of(DENSE, held_out)
        unit = list_units(blocks, ("mlp",))[0]
        change = MlpChange(unit.site, np.arange(5), np.ones((D, 5)), np.zeros(D))
        found: list[tuple[HeldOut, dict[UnitKey, tuple[float, float]]]] = []
        shelf = Shelf(limit, tmp_path)
        for place in (None, shelf):
            errors = UnitErrors(graph, [UnitPlan(unit, 5, 1.0, change, partial(replace, change))])
            held = measure_model(graph, blocks, small, held_out, outputs, errors, batch_size=2, shelf=place)
            found.append((held, errors.result()))
        assert found[0] == found[1]
        assert (shelf.n_written > 0) == (limit == 0)
        assert shelf.n_bytes == 0  # given back

    @pytest.mark.parametrize("room", [10**7, 100])
    def test_a_second_model_is_measured_without_the_dense_one(
        self, room: int, pruned: PruneResult, held_out: ImageSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where there is room for what that says; other units may be cut in it."""
        graph = probe_graph(load_model(DENSE))
        blocks, small, outputs = find_blocks(graph), load_model(pruned.pruned.path), outputs_of(DENSE, held_out)
        units = list_units(blocks, ("mlp",))
        changes = [MlpChange(unit.site, np.arange(5), np.ones((D, 5)), np.zeros(D)) for unit in units]
        plans = [
            UnitPlan(unit, 5, 1.0, change, partial(replace, change))
            for unit, change in zip(units, changes, strict=True)
        ]
        known, opened, tap = KnownSides(room), list[int](), sides.tap_units
        shared = Findings()
        shared.share()
        shared.hold("sides", {}, lambda: known)
        monkeypatch.setattr(sides, "tap_units", lambda *args, **options: opened.append(1) or tap(*args, **options))

        def ask(plans: list[UnitPlan], findings: Findings | None) -> tuple[HeldOut, dict[UnitKey, tuple[float, float]]]:
            errors = UnitErrors(graph, plans, None if findings is None else units)
            found = measure_model(graph, blocks, small, held_out, outputs, errors, batch_size=2, findings=findings)
            return found, errors.result()

        alone = [ask(some, None) for some in (plans[:1], plans[1:])]
        opened.clear()
        assert [ask(some, shared) for some in (plans[:1], plans[1:])] == alone
        assert len(opened) == (1 if room > 100 else 2)
        assert bool(known.sides) == (room > 100)

    @pytest.mark.parametrize("turned", [False, True])
    def test_answers_that_are_known_are_not_asked_again(
        self, turned: bool, pruned: PruneResult, held_out: ImageSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """But on the first images, where what is inside is compared."""
        monkeypatch.setattr(sides, "INNER_IMAGES", 2)
        graph = probe_graph(load_model(DENSE))
        blocks, small, outputs = find_blocks(graph), load_model(pruned.pruned.path), outputs_of(DENSE, held_out)
        findings, asked, shelf, read = Findings(SUBJECT), list[int](), Shelf(0) if turned else None, Tapped.run

        def run(self: Tapped, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            asked.append(1)
            return read(self, feeds)

        monkeypatch.setattr(Tapped, "run", run)

        def ask(findings: Findings | None) -> tuple[HeldOut, int]:
            asked.clear()
            errors = UnitErrors(graph, [])
            found = measure_model(
                graph, blocks, small, held_out, outputs, errors, batch_size=2, shelf=shelf, findings=findings
            )
            return found, len(asked)

        alone, first, second = ask(None), ask(findings), ask(findings)
        assert alone[0] == first[0] == second[0]
        n_inside = -(-2 // choose_pace(2, None, "cpu").batch_size)
        assert alone[1] == first[1]  # as often the dense model as the pruned one
        assert second[1] == first[1] // 2 + n_inside < first[1]

    def test_large_answers_are_not_kept(
        self, pruned: PruneResult, held_out: ImageSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("corp_onnx.run.outputs.ANSWERS_BYTES", 100)
        graph, findings = probe_graph(load_model(DENSE)), Findings(SUBJECT)
        small, outputs = load_model(pruned.pruned.path), outputs_of(DENSE, held_out)
        measure_model(graph, find_blocks(graph), small, held_out, outputs, UnitErrors(graph, []), findings=findings)
        assert not findings.list_stages()

    def test_what_is_inside_is_compared_on_the_first_images(
        self, pruned: PruneResult, pixels: np.ndarray, held_out: ImageSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sides, "INNER_IMAGES", 2)
        graph = probe_graph(load_model(DENSE))
        blocks, small, outputs = find_blocks(graph), load_model(pruned.pruned.path), outputs_of(DENSE, held_out)
        names = [block.stream for block in blocks.blocks if block.stream]
        dense, cut = (tap(path, names, pixels[:2]) for path in (DENSE, pruned.pruned.path))
        expected = [relative(b - a, a) for a, b in zip(dense, cut, strict=True)]
        for batch_size in (1, 2, 5):  # a batch that goes beyond them gives no more
            found = measure_model(graph, blocks, small, held_out, outputs, UnitErrors(graph, []), batch_size=batch_size)
            assert found.stream_error == pytest.approx(expected, 1e-4)
            assert found.n_images == len(pixels)

    def test_rows_that_fill_up_a_fixed_batch_do_not_count(
        self, pruned: PruneResult, held_out: ImageSet, tmp_path: Path
    ) -> None:
        """Five images in batches of two: the fifth is there twice."""
        paths = [fix_batch(Path(p), tmp_path / f"{i}.onnx", 2) for i, p in enumerate((DENSE, pruned.pruned.path))]
        graph = probe_graph(load_model(paths[0]))
        blocks = find_blocks(graph)
        outputs, errors = outputs_of(paths[0], held_out), UnitErrors(graph, [])
        found = measure_model(graph, blocks, load_model(paths[1]), held_out, outputs, errors)
        assert found.n_images == 5
        assert found.kl == pytest.approx(pruned.held_out.kl, rel=1e-4)
        assert found.relative_error == pytest.approx(pruned.held_out.relative_error, rel=1e-4)
        assert found.stream_error == pytest.approx(pruned.held_out.stream_error, rel=1e-4)

    def test_held_out_set_smaller_than_the_batch(self, held_out: ImageSet, tmp_path: Path) -> None:
        path = fix_batch(DENSE, tmp_path / "fixed.onnx", 16)
        fixed = prune_model(path, held_out.root, tmp_path / "a.onnx", settings=paper())
        dynamic = prune_model(DENSE, held_out.root, tmp_path / "b.onnx", settings=paper())
        assert fixed.held_out.n_images == 5
        assert fixed.calibration.n_tokens == dynamic.calibration.n_tokens
        assert fixed.held_out.kl == pytest.approx(dynamic.held_out.kl, rel=1e-3)
        for a, b in zip(fixed.units, dynamic.units, strict=True):
            assert (a.key, a.error) == (b.key, pytest.approx(b.error, rel=1e-4))

    def test_infinite_answers_are_an_error(self, held_out: ImageSet, tmp_path: Path) -> None:
        proto = onnx.load(DENSE)
        bias = next(t for t in proto.graph.initializer if tuple(t.dims) == (10,))
        bias.CopyFrom(onnx.numpy_helper.from_array(np.array([np.nan] * 5 + [np.inf] * 5, np.float32), bias.name))
        onnx.save(proto, tmp_path / "inf.onnx")
        graph = probe_graph(load_model(DENSE))
        with pytest.raises(
            NonFiniteError, match=r"inf\.onnx: output 'logits' holds \d+ NaN or Inf on these images; no"
        ):
            measure_model(
                graph,
                find_blocks(graph),
                load_model(tmp_path / "inf.onnx"),
                held_out,
                outputs_of(DENSE, held_out),
                UnitErrors(graph, []),
            )


def fix_batch(path: Path, output: Path, size: int) -> Path:
    """The same graph with its batch declared fixed."""
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    del proto.graph.value_info[:]
    onnx.save(proto, output)
    return output


def kept(n_same: int, n: int) -> Kept:
    return Kept(np.repeat([1.0, 0.0], [n_same, n - n_same]), True, "agreement")


class TestPromise:
    def test_twenty_of_twenty_promise_84_percent(self) -> None:
        found = make_promise(kept(20, 20), Budget("agreement", 0.8))
        assert (found.value, found.n_images, found.note) == (1.0, 20, "")
        assert found.low == pytest.approx(0.839, abs=5e-4)

    def test_what_is_not_proven_says_how_many_images_it_takes(self) -> None:
        found = make_promise(kept(59, 60), Budget("agreement", 0.95))
        assert found.low is not None
        assert found.low < 0.95
        n = int(re.findall(r"it takes (\d+) of them", found.note)[0])
        assert wilson_interval(59 / 60 * n, n)[0] >= 0.95 > wilson_interval(59 / 60 * (n - 1), n - 1)[0]

    def test_a_share_below_what_is_asked_is_never_proven(self) -> None:
        note = make_promise(kept(50, 60), Budget("agreement", 0.95)).note
        assert note.endswith("by the 60 images that chose nothing; ask for less, or give more images.")

    def test_a_cost_promises_nothing_beforehand_and_something_after(self) -> None:
        found = make_promise(kept(90, 100), Budget("macs", 0.5))
        assert (found.wanted, found.note) == (None, "")
        assert found.low == pytest.approx(wilson_interval(90, 100)[0])

    def test_one_image(self) -> None:
        assert make_promise(Kept(np.array([0.9]), False, "cosine"), None).low is None


class TestExpected:
    def test_a_loss_many_times_what_the_search_saw_fails(self, pruned: PruneResult) -> None:
        held = replace(pruned.held_out, loss=0.4)
        check = check_expected(held, 0.11)
        assert check is not None
        assert not check.passed
        assert check.tolerance == pytest.approx(3 * 0.11 + 0.05)
        again = check_expected(held, 0.12)
        assert again is not None
        assert again.passed

    def test_losses_that_are_no_nats_have_less_slack(self, pruned: PruneResult) -> None:
        embeddings = tuple(replace(output, task="embed", metrics=()) for output in pruned.held_out.outputs)
        check = check_expected(replace(pruned.held_out, outputs=embeddings, loss=0.05), 0.001)
        assert check is not None
        assert not check.passed

    def test_where_nothing_was_foreseen_nothing_is_checked(self, pruned: PruneResult) -> None:
        assert check_expected(pruned.held_out, None) is None
