"""What is refused before any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from corp_onnx.search.plan import Cut
from onnx import numpy_helper
from samples import EXTERNAL, OPERATOR, SEPARATE, fixture_path

from corp_onnx.blocks import Blocks, find_blocks
from corp_onnx.checks.preflight import choose_cut, protect_model, require_finite_weights
from corp_onnx.errors import NonFiniteError, NothingToPruneError, OptionError, OutputError
from corp_onnx.graph import Graph
from corp_onnx.graph.model import load_model
from corp_onnx.run.probe import probe_graph


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


class TestCut:
    @pytest.mark.parametrize(("mlp", "attn", "counts"), [(0.5, 0.5, (2, 2)), (0.5, 0, (2, 0)), (0, 0.5, (0, 2))])
    def test_kinds_with_a_fraction(self, mlp: float, attn: float, counts: tuple[int, int]) -> None:
        units = choose_cut(*probed(fixture_path(OPERATOR)), Cut(mlp, attn))
        assert (len(units.mlps), len(units.qk_pairs)) == counts
        assert units.vo_pairs == ()

    def test_nothing_removed(self) -> None:
        graph, blocks = probed(fixture_path(SEPARATE))
        with pytest.raises(OptionError, match="--mlp 0 and --attn 0 together remove nothing"):
            choose_cut(graph, blocks, Cut(0, 0))
        with pytest.raises(OptionError, match=r"--mlp 0\.02 and --attn 0 remove nothing from units up to 24 wide"):
            choose_cut(graph, blocks, Cut(0.02, 0))
        assert len(choose_cut(graph, blocks, Cut(0.03, 0)).mlps) == 1  # 24 * 0.97 rounds to 23

    def test_no_unit_of_the_kind(self) -> None:
        graph, blocks = probed(fixture_path(SEPARATE))
        whole = Blocks((), ())
        with pytest.raises(NothingToPruneError, match="no MLP that can be pruned; give --attn a fraction above 0"):
            choose_cut(graph, whole, Cut(0.5, 0))
        assert blocks.mlps
