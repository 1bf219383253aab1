"""Every check can fail: a good pruned file passes all of them, a spoilt one fails, and nothing of it is published."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from samples import COMPUTED_SCALE, OPERATOR, fixture_path, listing, paper, write_photos

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.checks.preflight import choose_units
from corp_onnx.checks.verify import (
    check_batches,
    check_identity,
    check_padding,
    check_rewrite,
    check_signature,
    check_structure,
    require_passed,
)
from corp_onnx.errors import CheckFailedError, ModelError
from corp_onnx.graph import Graph
from corp_onnx.graph.model import Model, load_model
from corp_onnx.graph.write import write_model
from corp_onnx.images import open_images
from corp_onnx.images.recipe import Recipe
from corp_onnx.prune import prune_model
from corp_onnx.results import CheckResult
from corp_onnx.rewrite import Rewrite, passes, plan_rewrite
from corp_onnx.run.comparison import relative_difference
from corp_onnx.run.probe import probe_graph
from corp_onnx.search.problem import Problem
from corp_onnx.search.strategy import follow_method
from corp_onnx.settings import PAPER
from corp_onnx.tokens.trim import plan_trim
from corp_onnx.units import Changes, MlpChange, attention, projections
from corp_onnx.units.parts import joint_bias

Tamper = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Case:
    """A graph, what was solved for it, and a real batch."""

    graph: Graph
    blocks: Blocks
    changes: Changes
    feeds: dict[str, np.ndarray]

    @property
    def rewrite(self) -> Rewrite:
        return plan_rewrite(self.changes)

    def write(self, folder: Path, tamper: Tamper | None = None) -> Model:
        proto = self.rewrite.make(self.graph)
        if tamper is not None:
            tamper(proto)
        write_model(proto, folder / "out.onnx", self.graph.model.folder)
        return load_model(folder / "out.onnx")

    def check(self, name: str, pruned: Model) -> CheckResult:
        if name == "structure":
            return check_structure(pruned.path)
        if name == "signature":
            return check_signature(self.graph.model, pruned)
        if name == "identity":
            return check_identity(self.graph, self.rewrite, pruned, self.feeds)
        if name == "padding":
            return check_padding(self.graph, self.rewrite, pruned, self.feeds)
        if name == "replay":
            (cut,) = self.rewrite.passes
            return cut.check(self.graph, self.graph.model, pruned, self.feeds, "cpu")
        return check_batches(pruned, self.feeds)


NAMES = ("structure", "signature", "identity", "padding", "replay", "batches")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 12)


def make_case(name: str, photos: Path) -> Case:
    graph = probe_graph(load_model(fixture_path(name)))
    blocks = find_blocks(graph)
    images = open_images(photos, Recipe(size=(8, 8)))
    units = choose_units(graph, blocks, PAPER)
    problem = Problem(graph, blocks, units, PAPER, collect_moments(graph, units, images), images, images)
    changes = follow_method(problem).changes
    pixels = next(iter(images.batches(4))).pixels
    return Case(graph, blocks, changes, {graph.inputs[0]: pixels})


@pytest.fixture(scope="module")
def case(photos: Path) -> Case:
    return make_case(OPERATOR, photos)


@pytest.fixture(scope="module")
def scaled(photos: Path) -> Case:
    """The graph computes its scale from the shape of the queries."""
    return make_case(COMPUTED_SCALE, photos)


def stored(proto: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.TensorProto:
    return next(t for t in proto.graph.initializer if tuple(t.dims) == shape)


def put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap_weights(proto: onnx.ModelProto) -> None:
    """Two hidden channels of the first block change places in one of the two products."""
    up = stored(proto, (20, 12))
    put(up, numpy_helper.to_array(up)[:, [1, 0, *range(2, 12)]])


def scale_operator(proto: onnx.ModelProto) -> None:
    """The scale that follows from the new head size: 1 / sqrt(5) for 1 / sqrt(10)."""
    for node in proto.graph.node:
        if node.op_type == "Attention":
            attribute = next(a for a in node.attribute if a.name == "scale")
            attribute.f = float(1 / np.sqrt(5))


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", [proto.graph.output[0].name], ["answers"]))
    proto.graph.output[0].name = "answers"


def widen_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4


def harden_batch(size: int) -> Tamper:
    """The answers are reshaped to a batch of this size."""
    return partial(_harden_batch, size)


def _harden_batch(size: int, proto: onnx.ModelProto) -> None:
    name = proto.graph.output[0].name
    last = next(n for n in proto.graph.node if name in n.output)
    last.output[0] = "loose"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([size, 10]), "fixed"))
    proto.graph.node.append(helper.make_node("Reshape", ["loose", "fixed"], [name]))


def mix_batch(proto: onnx.ModelProto) -> None:
    """Every answer less the mean over the batch."""
    name = proto.graph.output[0].name
    last = next(n for n in proto.graph.node if name in n.output)
    last.output[0] = "own"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
    proto.graph.node.append(helper.make_node("ReduceMean", ["own", "batch_axis"], ["mean"]))
    proto.graph.node.append(helper.make_node("Sub", ["own", "mean"], [name]))


def break_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].op_type = "NoSuchOperator"


def break_shape(proto: onnx.ModelProto) -> None:
    put(stored(proto, (20, 12)), np.zeros((20, 11), np.float32))


class TestChecks:
    @pytest.mark.parametrize("name", NAMES)
    def test_good_file_passes(self, name: str, case: Case, scaled: Case, tmp_path: Path) -> None:
        for of_graph in (case, scaled):
            found = of_graph.check(name, of_graph.write(tmp_path))
            assert found.name == name
            assert found.passed, found.detail
            assert listing(tmp_path) == ["out.onnx"]

    @pytest.mark.parametrize(
        ("name", "tamper", "detail"),
        [
            ("structure", break_operator, "No Op registered for NoSuchOperator|NoSuchOperator"),
            ("structure", break_shape, r"differ in dimension 2: \(11\) vs \(12\)"),
            ("signature", rename_output, "input and output names, types and dimensions"),
            ("signature", widen_output, "input and output names, types and dimensions"),
            ("padding", swap_weights, "padded with zeros to full width"),
            ("padding", scale_operator, "padded with zeros to full width"),
            ("replay", swap_weights, r"products of the pruned graph against NumPy, worst blocks\.0\.mlp"),
            ("batches", harden_batch(4), r"out\.onnx: ONNX Runtime failed while running it .*reshape"),
            ("batches", mix_batch, "batch of 1 against batch of 4"),
        ],
    )
    def test_spoilt_file_fails(self, name: str, tamper: Tamper, detail: str, case: Case, tmp_path: Path) -> None:
        found = case.check(name, case.write(tmp_path, tamper))
        assert not found.passed
        with pytest.raises(CheckFailedError, match=detail):
            require_passed([found], "pruned", "Nothing was written.")

    def test_only_padding_sees_the_scale(self, case: Case, tmp_path: Path) -> None:
        """Why that check is there: all products are right, and what softmax sees is not."""
        pruned = case.write(tmp_path, scale_operator)
        passed = {name: case.check(name, pruned).passed for name in NAMES}
        assert passed == dict.fromkeys(NAMES, True) | {"padding": False}

    def test_scale_that_was_not_pinned(self, scaled: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """At full width the computed scale is still right, so the identity passes."""
        monkeypatch.setattr(attention, "pin_scale", lambda *_: None)
        pruned = scaled.write(tmp_path)
        assert scaled.check("identity", pruned).passed
        padding = scaled.check("padding", pruned)
        assert not padding.passed
        assert padding.difference is not None
        assert padding.difference > 1e-2

    def test_identity_fails_for_wrong_surgery(
        self, scaled: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A projection that forgets its bias."""
        pruned = scaled.write(tmp_path)
        monkeypatch.setattr(projections, "joint_bias", lambda graph, parts: np.zeros_like(joint_bias(graph, parts)))
        assert not scaled.check("identity", pruned).passed

    def test_replay_fails_where_shapes_differ(self, case: Case, tmp_path: Path) -> None:
        """The file holds another number of channels than was solved for."""
        pruned = case.write(tmp_path)
        key = case.blocks.mlps[0].key
        change = case.changes[key]
        assert isinstance(change, MlpChange)
        fewer = replace(change, kept_idx=change.kept_idx[1:], weight=change.weight[:, 1:])
        other = replace(case, changes={**case.changes, key: fewer})
        found = other.check("replay", pruned)
        assert not found.passed
        assert found.difference == float("inf")

    def test_one_image_is_doubled_for_the_batch_check(self, case: Case, tmp_path: Path) -> None:
        """A batch of one against itself would pass whatever the graph does."""
        single = {k: v[:1] for k, v in case.feeds.items()}
        assert "batch of 1 against batch of 2" in check_batches(case.write(tmp_path), single).detail
        assert not check_batches(case.write(tmp_path, mix_batch), single).passed

    def test_missing_file(self, tmp_path: Path) -> None:
        assert not check_structure(tmp_path / "nothing.onnx").passed


class TestRewrite:
    """All checks of a model that two passes made: its widths are cut, then tokens are left out."""

    def write(self, case: Case, folder: Path) -> tuple[Rewrite, tuple[Model, ...]]:
        trim, _ = plan_trim(case.graph, case.blocks)
        assert trim is not None
        assert trim.apart  # queries that share a product get one of their own
        rewrite = plan_rewrite(case.changes, trim)
        return rewrite, rewrite.write(case.graph, folder / "out.onnx")

    def test_every_pass_is_checked_in_its_turn(self, case: Case, scaled: Case, tmp_path: Path) -> None:
        for of_graph in (case, scaled):
            rewrite, models = self.write(of_graph, tmp_path)
            before = listing(tmp_path)
            checks = check_rewrite(of_graph.graph, rewrite, models, of_graph.feeds)
            assert [c.name for c in checks] == ["identity", "padding", "replay", "tokens", "batches"]
            assert all(c.passed for c in checks), checks
            assert all(c.difference is not None and c.tolerance is not None for c in checks)
            assert listing(tmp_path) == before

    def test_tokens_that_were_read_are_missed(self, case: Case, tmp_path: Path) -> None:
        """The last pass is held against the model that it was run on, not against the dense one."""
        rewrite, models = self.write(case, tmp_path)
        (chosen,) = [n for n in models[-1].proto.graph.node if n.op_type == "Slice" and "_read" in n.output[0]][:1]
        for stored in models[-1].proto.graph.initializer:
            if stored.name in chosen.input[1:3]:  # where the range begins and ends
                put(stored, numpy_helper.to_array(stored) + 1)
        write_model(models[-1].proto, models[-1].path, tmp_path)
        spoilt = (models[0], load_model(models[-1].path))
        checks = {c.name: c.passed for c in check_rewrite(case.graph, rewrite, spoilt, case.feeds)}
        assert checks == {"identity": True, "padding": False, "replay": True, "tokens": False, "batches": True}

    def test_one_that_onnx_runtime_can_not_run_has_failed(self, case: Case, tmp_path: Path) -> None:
        """Checks of a pass raise as whatever runs a model does; here that is a check that failed."""
        rewrite, models = self.write(case, tmp_path)
        proto = onnx.ModelProto()
        proto.CopyFrom(models[-1].proto)
        weight = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
        short = numpy_helper.to_array(weight)[:-1]
        weight.CopyFrom(numpy_helper.from_array(short, weight.name))
        broken = [*models[:-1], replace(models[-1], proto=proto)]
        with pytest.raises(ModelError):
            rewrite.passes[-1].check(case.graph, broken[0], broken[1], case.feeds, "cpu")
        checks = {c.name: c for c in check_rewrite(case.graph, rewrite, broken, case.feeds)}
        assert list(checks) == ["identity", "padding", "replay", "tokens", "batches"]
        assert {name for name, check in checks.items() if check.passed} == {"identity"}
        assert all("ONNX Runtime" in check.detail for name, check in checks.items() if name != "identity")

    def test_a_batch_that_the_dense_model_fails_on_is_no_failed_check(self, case: Case, tmp_path: Path) -> None:
        rewrite, models = self.write(case, tmp_path)
        wrong = {name: pixels[:, :1] for name, pixels in case.feeds.items()}
        with pytest.raises(ModelError, match=re.escape(f"{case.graph.model.path}: ONNX Runtime failed")):
            check_rewrite(case.graph, rewrite, models, wrong)


def test_relative_difference() -> None:
    a = np.array([[1.0, -4.0]])
    assert relative_difference(a, a) == 0
    assert relative_difference(a + np.array([0.0, 0.2]), a) == pytest.approx(0.05)
    assert relative_difference(a.T, a) == float("inf")
    assert relative_difference(np.full_like(a, np.nan), a) == float("inf")
    assert relative_difference(np.zeros(3), np.zeros(3)) == 0


def test_error_names_the_check_and_the_destination() -> None:
    good = CheckResult("structure", True, None, None, "fine")
    bad = CheckResult("replay", False, 0.25, 1e-4, "5 products against NumPy, worst blocks.1.mlp")
    require_passed([good], "pruned", "")
    expected = (
        r"the thin model failed its 'replay' check: 5 products .* worst blocks\.1\.mlp \(difference 0\.25, allowed "
        r"0\.0001\)\. Nothing was written to out\.onnx\."
    )
    with pytest.raises(CheckFailedError, match=expected):
        require_passed([good, bad], "thin", "Nothing was written to out.onnx.")


@pytest.mark.parametrize(
    ("tamper", "name"),
    [
        (break_operator, "structure"),
        (rename_output, "signature"),
        (scale_operator, "padding"),
        (swap_weights, "padding"),
        (harden_batch(2), "batches"),  # as many as are held back
    ],
)
def test_nothing_is_published_of_a_spoilt_file(
    tamper: Tamper, name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write_spoilt(proto: onnx.ModelProto, path: Path, folder: Path) -> None:
        if not written:  # what the checks write beside it is sound
            tamper(proto)
        written.append(path)
        write_model(proto, path, folder)

    monkeypatch.setattr(passes, "write_model", write_spoilt)
    expected = rf"failed its '{name}' check: .*\. Nothing was written to .*out\.onnx\. .*please report it"
    with pytest.raises(CheckFailedError, match=expected) as caught:
        prune_model(fixture_path(OPERATOR), photos, tmp_path / "new" / "out.onnx", settings=paper())
    assert caught.value.exit_code == 1
    assert listing(tmp_path) == []
