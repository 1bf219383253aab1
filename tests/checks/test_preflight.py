"""What is refused before any work."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import EXTERNAL, OPERATOR, SEPARATE, fixture_path

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.checks.preflight import (
    choose_units,
    protect_model,
    require_finite_weights,
    require_reached,
    settle_budget,
)
from corp_onnx.errors import NonFiniteError, NothingToPruneError, OptionError, OutputError
from corp_onnx.graph import Graph
from corp_onnx.graph.model import load_model
from corp_onnx.metrics import OutputTask, Task
from corp_onnx.run.outputs import Outputs
from corp_onnx.run.probe import probe_graph
from corp_onnx.settings import BEST, DEFAULT_AGREEMENT, DEFAULT_SIMILARITY, PAPER, Budget, Fractions, Method
from corp_onnx.units import KINDS, Unit


def probed(path: Path) -> tuple[Graph, Blocks]:
    graph = probe_graph(load_model(path))
    return graph, find_blocks(graph)


def first_weight(proto: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.TensorProto:
    inline = [a.t for n in proto.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    return next(t for t in [*proto.graph.initializer, *inline] if tuple(t.dims) == shape)


def spoil(source: Path, target: Path, shape: tuple[int, ...], value: float) -> None:
    proto = onnx.load(source)
    tensor = first_weight(proto, shape)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, target)


class TestWeights:
    @pytest.mark.parametrize("name", [OPERATOR, EXTERNAL, "timm_vit_ts17_constants", "timm_vit_ts17_fp16"])
    def test_finite_weights_pass_and_nan_does_not(self, name: str, tmp_path: Path) -> None:
        """Stored in the file, beside it, in Constant nodes, in half precision."""
        require_finite_weights(*probed(fixture_path(name)))
        spoil(fixture_path(name), tmp_path / "nan.onnx", (10, 20), np.nan)
        with pytest.raises(NonFiniteError, match=r"nan\.onnx: weight '.+' holds 1 NaN or Inf among 200 numbers"):
            require_finite_weights(*probed(tmp_path / "nan.onnx"))

    @pytest.mark.parametrize(("shape", "refused"), [((20, 24), True), ((24,), True), ((1, 17, 20), False)])
    def test_infinity_is_refused_in_units_only(self, shape: tuple[int, ...], refused: bool, tmp_path: Path) -> None:
        """Masks are stored with infinities in them."""
        spoil(fixture_path(OPERATOR), tmp_path / "inf.onnx", shape, -np.inf)
        graph, blocks = probed(tmp_path / "inf.onnx")
        if refused:
            with pytest.raises(NonFiniteError, match="holds 1 NaN or Inf"):
                require_finite_weights(graph, blocks)
        else:
            require_finite_weights(graph, blocks)


class TestDestinations:
    def test_free_names_pass(self, tmp_path: Path) -> None:
        model = load_model(fixture_path(EXTERNAL))
        output = tmp_path / "out.ONNX"
        protect_model(model, {"-o": output, "--report": tmp_path / "r.json"}, output)

    def test_model_under_any_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copy(fixture_path(OPERATOR), tmp_path / "m.onnx")
        (tmp_path / "sub").mkdir()
        (tmp_path / "link.onnx").symlink_to("m.onnx")
        monkeypatch.chdir(tmp_path / "sub")
        model = load_model("../m.onnx")
        for output in (Path("../m.onnx"), tmp_path / "m.onnx", tmp_path / "sub" / ".." / "link.onnx"):
            with pytest.raises(OutputError, match="is the model itself; give another -o"):
                protect_model(model, {"-o": output}, output)

    def test_external_data(self, tmp_path: Path) -> None:
        model = load_model(fixture_path(EXTERNAL))
        data = model.path.with_name(f"{model.path.name}.data")
        with pytest.raises(OutputError, match=r"\.data: is the model itself; give another --report"):
            protect_model(model, {"-o": tmp_path / "o.onnx", "--report": data}, tmp_path / "o.onnx")


def choose(name: str, mlp: float, attn: float) -> tuple[Unit, ...]:
    return choose_units(*probed(fixture_path(name)), replace(PAPER, widths=Fractions(mlp, attn)))


class TestUnits:
    @pytest.mark.parametrize(("mlp", "attn", "counts"), [(0.5, 0.5, (2, 2)), (0.5, 0, (2, 0)), (0, 0.5, (0, 2))])
    def test_kinds_with_a_fraction(self, mlp: float, attn: float, counts: tuple[int, int]) -> None:
        units = choose(OPERATOR, mlp, attn)
        assert tuple(sum(u.kind == kind for u in units) for kind in ("mlp", "qk")) == counts
        assert len(units) == sum(counts)

    def test_no_fraction_cuts_values(self) -> None:
        """Whatever kinds the method names."""
        method = replace(BEST, widths=Fractions(0.5, 0.5))
        assert "vo" in method.units
        assert {u.kind for u in choose_units(*probed(fixture_path(OPERATOR)), method)} == {"mlp", "qk"}

    def test_kinds_of_the_method_under_a_budget(self) -> None:
        for wanted in (("mlp",), ("vo", "qk"), tuple(KINDS)):
            units = choose_units(*probed(fixture_path(OPERATOR)), Method(units=wanted))
            assert {u.kind for u in units} == set(wanted)

    def test_nothing_removed(self) -> None:
        with pytest.raises(OptionError, match="--mlp 0 and --attn 0 together remove nothing"):
            choose(SEPARATE, 0, 0)
        with pytest.raises(OptionError, match=r"--mlp 0\.02 and --attn 0 remove nothing from units up to 24 wide"):
            choose(SEPARATE, 0.02, 0)
        assert len(choose(SEPARATE, 0.03, 0)) == 1  # 24 * 0.97 rounds to 23

    @pytest.mark.parametrize(
        ("units", "found"), [(("mlp", "tails"), "found tails"), (("a", "b"), "found a, b"), ((), "found none")]
    )
    def test_unknown_kind(self, units: tuple[str, ...], found: str) -> None:
        with pytest.raises(OptionError, match=rf"--units takes one or more of {', '.join(KINDS)}; {found}\."):
            choose_units(*probed(fixture_path(OPERATOR)), Method(units=units))

    def test_no_unit_of_the_kind(self) -> None:
        """Another kind is there, and how many of it."""
        expected = "no MLP that can be pruned, but 1 head group, 1 query/key pair, 1 value/output pair; name those "
        graph, blocks = probed(fixture_path(SEPARATE))
        assert blocks.mlps
        without = replace(blocks, blocks=tuple(replace(block, mlp=None) for block in blocks.blocks))
        for widths in (Fractions(0.5, 0), BEST.widths):
            with pytest.raises(NothingToPruneError, match=expected):
                choose_units(graph, without, Method(units=("mlp",), widths=widths))

    def test_no_unit_at_all(self) -> None:
        graph, _ = probed(fixture_path(SEPARATE))
        for method in (BEST, PAPER):
            with pytest.raises(NothingToPruneError, match="no transformer block found"):
                choose_units(graph, Blocks(graph, (), ()), method)


class TestJudge:
    """An output that no unit reaches is the same however much is pruned."""

    @pytest.fixture
    def lengths(self, tmp_path: Path) -> tuple[Graph, tuple[Unit, ...]]:
        """BERT with the number of tokens of every text as an output beside what it computes."""
        model = onnx.load(fixture_path("hf_bert_ts17_eager"))
        model.graph.node.append(helper.make_node("ReduceMean", ["attention_mask"], ["length"], axes=[1]))
        value = helper.make_tensor_value_info("length", TensorProto.INT64, ["batch", 1])
        model.graph.output.insert(0, value)
        onnx.save(model, tmp_path / "lengths.onnx")
        graph, blocks = probed(tmp_path / "lengths.onnx")
        return graph, choose_units(graph, blocks, BEST)

    def judge(self, graph: Graph, *judged: str) -> Outputs:
        tasks = tuple(OutputTask(name, "regress", "", (1,)) for name in graph.outputs)
        return Outputs(tasks, judged)

    def test_what_is_reached_judges(self, lengths: tuple[Graph, tuple[Unit, ...]]) -> None:
        graph, units = lengths
        require_reached(graph, units, self.judge(graph, "last_hidden_state"))
        require_reached(graph, units, self.judge(graph, "length", "pooler_output"))

    def test_what_is_not_reached_is_refused(self, lengths: tuple[Graph, tuple[Unit, ...]]) -> None:
        graph, units = lengths
        sentence = (
            r"lengths\.onnx: nothing that can be pruned reaches the output length\. Judge by last_hidden_state or "
            r"pooler_output with --judge\.$"
        )
        with pytest.raises(OptionError, match=sentence):
            require_reached(graph, units, self.judge(graph, "length"))

    def test_where_nothing_is_reached(self, lengths: tuple[Graph, tuple[Unit, ...]]) -> None:
        graph, units = lengths
        alone = replace(self.judge(graph, "length"), tasks=())
        with pytest.raises(OptionError, match=r"Export it with an output behind its blocks\.$"):
            require_reached(graph, units, alone)


def outputs_of(task: Task, shape: tuple[int, ...] = (10,)) -> Outputs:
    axis = None if task == "regress" else 1
    return Outputs((OutputTask("y", task, "a reason", shape, channel_axis=axis),), ("y",))


class TestBudget:
    @pytest.mark.parametrize(
        ("task", "kind", "value"),
        [
            ("classify", "agreement", DEFAULT_AGREEMENT), ("embed", "similarity", DEFAULT_SIMILARITY),
            ("regress", "similarity", DEFAULT_SIMILARITY), ("dense", "agreement", DEFAULT_AGREEMENT),
        ],
    )  # fmt: skip
    def test_without_a_knob_the_promise_fits_the_task(self, task: Task, kind: str, value: float) -> None:
        shape = (10, 4, 4) if task == "dense" else (10,)
        assert settle_budget(BEST, outputs_of(task, shape)).widths == Budget(kind, value)  # type: ignore[arg-type]

    def test_costs_and_fractions_stay(self) -> None:
        for widths in (Budget("macs", 0.5), Fractions(0.5, 0.5)):
            method = replace(BEST, widths=widths)
            assert settle_budget(method, outputs_of("embed")) == method

    def test_agreement_of_what_may_be_an_embedding_is_never_promised(self) -> None:
        method = replace(BEST, widths=Budget("agreement", 0.9))
        said = "--min-agreement counts equal answers, and output 'y' is taken for an embedding of 10 numbers"
        with pytest.raises(OptionError, match=re.escape(said)):
            settle_budget(method, outputs_of("embed"))
        assert settle_budget(method, outputs_of("classify")) == method

    def test_similarity_of_classes(self) -> None:
        method = replace(BEST, widths=Budget("similarity", 0.9))
        with pytest.raises(OptionError, match="--min-similarity is of answers that are no classes, and output 'y'"):
            settle_budget(method, outputs_of("classify"))
        assert settle_budget(method, outputs_of("embed")) == method
