"""A session says what failed and where, streams images as the model takes them, and gives inner tensors in float32."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graphs import feeds_of, fixture_path, probed
from samples import DEMO, write_sum

from corp_onnx.errors import ImageError, MissingExtraError, ModelError, OptionError
from corp_onnx.graph.model import load_model
from corp_onnx.graph.proto import to_float32
from corp_onnx.images import Images, open_images
from corp_onnx.images.arrays import make_arrays
from corp_onnx.run import sessions
from corp_onnx.run.noise import random_feeds
from corp_onnx.run.segments import open_segment
from corp_onnx.run.sessions import Session, open_session, start_session
from corp_onnx.run.tapped import Product, open_feeder, open_tapped

NAME = "timm_vit_ts17_fused"


class TestOpen:
    def test_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(OptionError, match="provider 'gpu3' is not available"):
            open_session(fixture_path(NAME), provider="gpu3")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match="not installed"):
            open_session(fixture_path(NAME))

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
        native = session.native
        assert [v.type for v in (*native.get_inputs(), *native.get_outputs())] == ["tensor(float)"] * 2
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
        options = open_session(fixture_path(name), config={entry: "1"}).native.get_session_options()
        assert options.get_session_config_entry(entry) == "1"

    def test_twin_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sessions, "MAX_PROTO_BYTES", 1000)
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


class TestSession:
    def test_weights_outside_are_read_where_they_are_mapped(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """ONNX Runtime would copy all of them into an order of its own; those inside go as they always went."""
        asked: list[dict[str, str]] = []
        make = sessions.make_options
        listen = lambda n, config, **more: asked.append(dict(config)) or make(n, config, **more)  # noqa: E731
        monkeypatch.setattr(sessions, "make_options", listen)
        inside = load_model(fixture_path(NAME))
        onnx.save(onnx.load(inside.path), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=300)
        pair = [
            open_tapped(model, []).run(random_feeds(model, 2)) for model in (inside, load_model(tmp_path / "m.onnx"))
        ]
        assert asked == [{}, sessions.AS_STORED]
        for name, array in pair[0].items():
            np.testing.assert_allclose(array, pair[1][name], rtol=1e-4, atol=1e-5)

    def test_what_it_declares(self) -> None:
        session = open_session(DEMO)
        assert [(i.name, i.shape, i.dtype) for i in session.inputs] == [("input", (None, 3, 32, 32), np.float32)]
        assert session.outputs == ("logits",)
        assert session.provider == "CPUExecutionProvider"
        assert "corp_onnx.preprocessing" in session.metadata

    def test_outputs_by_name(self) -> None:
        session = open_session(fixture_path("timm_deit_distilled_two_heads_ts17"))
        feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
        everything = dict(zip(session.outputs, session.run(None, feeds), strict=True))
        assert len(everything) == 2
        for found, name in zip(session.run(session.outputs[::-1], feeds), session.outputs[::-1], strict=True):
            assert np.array_equal(found, everything[name])

    def test_a_failing_run_is_a_sentence_with_the_path(self) -> None:
        def fail(_names: object, _feeds: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory.\nmore")

        session = Session(SimpleNamespace(run=fail), "m.onnx")
        sentence = r"^m\.onnx: ONNX Runtime failed while running it \(Failed to allocate memory\)\.$"
        with pytest.raises(ModelError, match=sentence) as caught:
            session.run(None, {})
        assert caught.value.exit_code == 2

    def test_whoever_stops_a_run_is_not_answered(self) -> None:
        def stop(_names: object, _feeds: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Session(SimpleNamespace(run=stop), "m.onnx").run(None, {})

    def test_input_that_is_no_number(self) -> None:
        text = SimpleNamespace(name="x", type="tensor(string)", shape=[None])
        session = Session(SimpleNamespace(get_inputs=lambda: [text]), "m.onnx")
        with pytest.raises(ModelError, match=r"^m\.onnx: input 'x' has type tensor\(string\), expected a tensor of"):
            session.inputs  # noqa: B018 - a property that raises

    def test_the_right_one_failed(self, tmp_path: Path) -> None:
        """Taps, stretches and answers of a file say the file's path, wherever they stand in it."""
        path = write_sum(tmp_path / "sum.onnx")
        wrong = {"x": np.zeros((1, 3), np.float32)}
        model = load_model(path)
        whole = open_segment(model, {}, [], ["y"])
        for run in (open_tapped(model, []).run, lambda feeds: whole.run({}, feeds)):
            with pytest.raises(ModelError, match=r"sum\.onnx: ONNX Runtime failed while running it \(.*\)\.$"):
                run(wrong)


class TestStream:
    """Twelve rows of two numbers, each row i holding 2i and 2i + 1."""

    @pytest.fixture
    def rows(self, tmp_path: Path) -> Images:
        np.save(tmp_path / "rows.npy", np.arange(14, dtype=np.float32).reshape(7, 2))
        return open_images(tmp_path / "rows.npy")

    def test_dynamic_batch(self, rows: Images, tmp_path: Path) -> None:
        found = list(open_session(write_sum(tmp_path / "sum.onnx")).stream(rows, 3))
        assert [(feeds["x"][:, 0].tolist(), n_real) for feeds, n_real in found] == [
            ([0, 2, 4], 3), ([6, 8, 10], 3), ([12], 1)
        ]  # fmt: skip

    def test_fixed_batch_is_filled_up_with_its_last_row(self, rows: Images, tmp_path: Path) -> None:
        session = open_session(write_sum(tmp_path / "sum.onnx", batch=4))
        found = list(session.stream(rows, 3))
        assert [(feeds["x"][:, 0].tolist(), n_real) for feeds, n_real in found] == [
            ([0, 2, 4, 6], 4), ([8, 10, 12, 12], 3)
        ]  # fmt: skip

    @pytest.mark.parametrize("batch", ["n", 4])
    def test_tapped(self, batch: str | int, rows: Images, tmp_path: Path) -> None:
        tapped = open_tapped(load_model(write_sum(tmp_path / "sum.onnx", batch=batch)), ["x"])
        found = list(tapped.stream(rows, 4))
        assert [(arrays["y"].tolist(), n_real) for arrays, n_real in found] == [
            ([1, 5, 9, 13], 4), ([17, 21, 25, 25] if batch == 4 else [17, 21, 25], 3)
        ]  # fmt: skip
        assert all(np.array_equal(arrays["x"].sum(axis=1), arrays["y"]) for arrays, _ in found)

    def test_images_that_do_not_fit_are_said_with_the_path(self, rows: Images) -> None:
        with pytest.raises(ImageError, match=r"demo_vit\.onnx: input 'input' takes shape \[n, 3, 32, 32\]"):
            next(open_session(DEMO).stream(rows, 2))


@pytest.mark.parametrize(
    "name",
    [NAME, "timm_vit_ts17_fused_fixed", "timm_vit_ts17_fp16", "timm_vit_ts17_bf16", "hf_bert_ts17_sdpa",
     "timm_vit_ts17_external"],
)  # fmt: skip
def test_what_feeds_a_model_takes_what_it_takes_and_holds_no_weight(name: str) -> None:
    model = load_model(fixture_path(name))
    feeder, session = open_feeder(model), open_session(model)
    assert feeder.inputs == session.inputs
    assert not feeder.weights
    images = make_arrays(Path("noise.npz"), random_feeds(model, 3))
    for one, other in zip(feeder.stream(images, 2), session.stream(images, 2), strict=True):
        assert one[1] == other[1]
        assert {n: (a.dtype, a.tolist()) for n, a in one[0].items()} == {
            n: (a.dtype, a.tolist()) for n, a in other[0].items()
        }


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
        with pytest.raises(ModelError, match=rf"{NAME}\.onnx: ONNX Runtime failed while running it \(.*[Gg]ot.*\)\.$"):
            tapped.run({"x": np.zeros((1, 3, 5, 5), np.float32)})

    def test_unknown_tap(self) -> None:
        graph, _ = probed(NAME)
        with pytest.raises(ModelError, match="can not load it"):
            open_tapped(graph.model, ["no such tensor"])


def test_nobody_else_starts_a_session() -> None:
    """But a program that is copied to a server, one in a process of its own, and OpenVINO behind the same methods."""
    package = Path(sessions.__file__).parent.parent
    words = ("InferenceSession(", "io_binding(", "run_with_iobinding(", "get_modelmeta(", "native.run(")
    users = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if any(w in p.read_text() for w in words)}
    ours = {f"run/{name}.py" for name in ("sessions", "device", "reduced", "openvino")}
    assert users == {*ours, "triton/model.py", "precision/trial.py"}


@pytest.mark.parametrize("name", ["hf_dinov2_resized_ts14_eager", "hf_dinov2_sizes_ts14_eager"])
def test_a_cubic_resize_that_shrinks_runs_with_anything_exposed(name: str) -> None:
    """What positions are reshaped to is a number of the graph; exposed, ONNX Runtime 1.32 lays the Resize out anew."""
    graph, _ = probed(name)
    feeds = feeds_of(graph, 2)
    (resize,) = [n for n in graph.nodes if n.op == "Resize"]
    assert np.prod(graph.dims(resize.inputs[0])) > np.prod(graph.dims(resize.output))
    reshape = next(n for n in graph.nodes if n.op == "Reshape" and len(graph.dims(n.output)) == 4)
    tensors = [reshape.inputs[1], reshape.output, resize.output]
    expected = open_session(graph.model).run(None, feeds)
    found = open_tapped(graph.model, tensors).run(feeds)
    for tensor, values in zip(graph.outputs, expected, strict=True):
        np.testing.assert_allclose(found[tensor], values, rtol=1e-4, atol=1e-5)
    stretch = open_segment(graph.model, graph.types, [reshape.output], [resize.output])
    again = stretch.run({reshape.output: found[reshape.output]}, feeds)[resize.output]
    np.testing.assert_allclose(again, found[resize.output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "opens"), [(b"batch", False), (b"logits", False), (b"Softmax", False), (b"pyt", True)]
)
def test_names_that_are_not_utf8(name: bytes, opens: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of an axis, an output, an operator, the producer: ONNX Runtime decodes some late and says some on stdout."""
    data = fixture_path("timm_vit_ts17_unfused").read_bytes()
    assert name in data
    (tmp_path / "m.onnx").write_bytes(data.replace(name, name[:-1] + b"\xff"))
    if opens:
        open_session(tmp_path / "m.onnx")
    else:
        with pytest.raises(ModelError, match=r"m\.onnx: a name or text in it is not UTF-8\. Export the model again"):
            open_session(tmp_path / "m.onnx")
    assert capfd.readouterr().out == ""


def test_what_onnx_runtime_logs_of_a_broken_file_is_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In colours, outside of the session whose log is off."""
    proto = onnx.load(fixture_path("timm_vit_ts17_unfused"))
    norms = {n.input[2] for n in proto.graph.node if n.op_type == "LayerNormalization"}
    next(tensor for tensor in proto.graph.initializer if tensor.name in norms).dims[:] = [2**62]
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime can not load it"):
        open_session(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
