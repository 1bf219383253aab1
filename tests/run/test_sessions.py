"""ONNX Runtime behind one door: what is missing is said in a sentence, inner tensors come out in float32."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from graphs import feeds_of, fixture_path, probed

from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.graph.model import load_model
from corp_onnx.graph.proto import to_float32
from corp_onnx.run import sessions as runtime
from corp_onnx.run.sessions import (
    Product,
    first_sentence,
    import_runtime,
    open_session,
    open_tapped,
    resolve_provider,
    start_session,
)

NAME = "timm_vit_ts17_fused"


class TestMissing:
    def test_no_onnxruntime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        expected = r"ONNX Runtime is not installed: pip install 'corp-onnx\[cpu\]', or 'corp-onnx\[gpu\]'"
        with pytest.raises(MissingExtraError, match=expected) as caught:
            import_runtime()
        assert caught.value.exit_code == 2
        with pytest.raises(MissingExtraError, match="not installed"):
            open_session(fixture_path(NAME))

    def test_provider_that_is_not_there(self) -> None:
        with pytest.raises(OptionError, match=r"provider 'cuda' is not available here; this onnxruntime has: cpu"):
            resolve_provider("cuda")
        with pytest.raises(OptionError, match="provider 'gpu3' is not available"):
            open_session(fixture_path(NAME), provider="gpu3")

    def test_names_of_providers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        has = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider", "OwnExecutionProvider"]
        fake = SimpleNamespace(get_available_providers=lambda: has)
        monkeypatch.setattr(runtime, "import_runtime", lambda: fake)
        assert [resolve_provider(p) for p in ("CPU", "cuda", "TensorRT")] == [has[2], has[1], has[0]]
        assert resolve_provider("OwnExecutionProvider") == "OwnExecutionProvider"
        with pytest.raises(OptionError, match=r"this onnxruntime has: cpu, cuda, tensorrt"):
            resolve_provider("openvino")


class TestOpen:
    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
            open_session(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match="is a folder"):
            open_session(tmp_path)
        (tmp_path / "bad.onnx").write_bytes(b"garbage")
        with pytest.raises(ModelError, match=r"bad\.onnx: ONNX Runtime can not load it \(.*\)\.$"):
            open_session(tmp_path / "bad.onnx")

    def test_path_and_model_are_the_same(self) -> None:
        graph, _ = probed(NAME)
        feeds = feeds_of(graph)
        (a,) = open_session(graph.model, threads=1).run(None, feeds)
        (b,) = open_session(str(graph.model.path), threads=1).run(None, feeds)
        assert np.array_equal(a, b)

    @pytest.mark.parametrize("name", ["timm_vit_ts17_bf16", "timm_vit_dynamo23_bf16"])
    def test_bfloat16_runs_as_float32(self, name: str) -> None:
        """Trap 8: no CPU kernels, and NumPy has no bfloat16 to feed."""
        model = load_model(fixture_path(name))
        session = open_session(model.path)
        assert [v.type for v in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
        feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
        (found,) = session.run(None, feeds)
        twin = to_float32(model.proto, model.folder)
        (expected,) = start_session(twin, model).run(None, feeds)
        assert np.array_equal(found, expected)
        assert np.isfinite(found).all()
        assert np.ptp(found) > 0.1

    @pytest.mark.parametrize("name", ["timm_vit_ts17_bf16", "timm_vit_ts17_fused"])
    def test_configuration_reaches_the_session(self, name: str) -> None:
        entry = "session.force_spinning_stop"
        options = open_session(fixture_path(name), config={entry: "1"}).get_session_options()
        assert options.get_session_config_entry(entry) == "1"

    def test_twin_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "MAX_PROTO_BYTES", 1000)
        with pytest.raises(ModelError, match="Convert it to float16 or float32 first"):
            open_session(fixture_path("timm_vit_ts17_bf16"))

    def test_external_weights_are_found_beside_the_model(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Trap 8: a graph in memory, from another working folder."""
        monkeypatch.chdir(tmp_path)
        graph, _ = probed("timm_vit_ts17_external")
        feeds = feeds_of(graph)
        (expected,) = open_session(graph.model).run(None, feeds)
        (found,) = start_session(graph.model.proto, graph.model).run(None, feeds)
        assert np.array_equal(found, expected)

    def test_first_sentence(self) -> None:
        noise = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input.\nsecond line"
        assert first_sentence(RuntimeError(noise)) == "Got invalid dimensions for input"
        assert first_sentence(ValueError("")) == "ValueError"


class TestTaps:
    @pytest.mark.parametrize("name", [NAME, "timm_vit_ts17_fp16", "timm_vit_ts17_bf16"])
    def test_inner_tensors_in_float32(self, name: str) -> None:
        """The input of a product times its weight is its output."""
        graph, blocks = probed(name)
        linear = blocks.mlps[0].down
        tapped = open_tapped(graph.model, [linear.input, linear.output or "", linear.input], threads=1)
        assert tapped.taps == (linear.input, linear.output)
        found = tapped.run(feeds_of(graph))
        assert found[linear.input].dtype == found[linear.output or ""].dtype == np.float32
        bias = linear.read_bias(graph)
        assert bias is not None
        expected = found[linear.input] @ linear.read_weight(graph).astype(np.float32).T + bias.astype(np.float32)
        np.testing.assert_allclose(found[linear.output or ""], expected, rtol=1e-2, atol=1e-2)
        assert found["logits"].shape == (3, 10)

    def test_products_of_a_fused_operator(self) -> None:
        """Trap 9: no tensor of the graph carries the projections inside com.microsoft.Attention."""
        graph, blocks = probed("hf_bert_ts17_eager_ortbert")
        linear = blocks.attentions[0].operands["v"].linear
        assert linear.output is None
        assert linear.bias is not None
        product = Product("mine", linear.input, linear.weight.name, linear.bias.name)
        found = open_tapped(graph.model, [linear.input], products=[product]).run(feeds_of(graph))
        bias = linear.read_bias(graph)
        expected = found[linear.input] @ linear.read_weight(graph).T + bias
        np.testing.assert_allclose(found["mine"], expected, rtol=1e-5, atol=1e-5)

    def test_the_model_is_not_touched(self) -> None:
        graph, blocks = probed(NAME)
        before = graph.model.proto.SerializeToString(deterministic=True)
        open_tapped(graph.model, [blocks.mlps[0].hidden])
        assert graph.model.proto.SerializeToString(deterministic=True) == before

    def test_inputs_that_do_not_fit(self) -> None:
        graph, _ = probed(NAME)
        tapped = open_tapped(graph.model, [])
        with pytest.raises(ModelError, match=r"ONNX Runtime failed while running the model \(.*[Gg]ot.*\)\.$"):
            tapped.run({"x": np.zeros((1, 3, 5, 5), np.float32)})

    def test_unknown_tap(self) -> None:
        graph, _ = probed(NAME)
        with pytest.raises(ModelError, match="can not load it"):
            open_tapped(graph.model, ["no such tensor"])
