"""OpenVINO's own API: what it is called and how it is missed; and, by make test-openvino, what it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from samples import DEMO, FIXED, TEXT, fixture_path

from corp_onnx.bench.bench import bench_models
from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.evaluate import evaluate_models
from corp_onnx.latency.turns import Schedule
from corp_onnx.precision.conversion import ConvertSettings
from corp_onnx.precision.convert import convert_model
from corp_onnx.run import openvino as own
from corp_onnx.run.openvino import Place, list_places, open_program, parse_place
from corp_onnx.run.sessions import open_session

LARGEST = 1e-3
"""Difference of a logit of the demo in float32 between the runtimes; they lie between -10 and 20."""


class FakeCore:
    """A CPU that computes in bfloat16 by itself, and a GPU that does not."""

    available_devices = ("CPU", "GPU.0")

    def get_property(self, device: str, name: str) -> Any:
        own_hint, can = ("bf16", ["FP32", "BF16"]) if device == "CPU" else ("f16", ["FP32", "FP16"])
        return can if name == "OPTIMIZATION_CAPABILITIES" else SimpleNamespace(to_string=lambda: own_hint)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "import_openvino", lambda: SimpleNamespace(Core=FakeCore))


class TestNames:
    @pytest.mark.parametrize(
        ("name", "place"),
        [
            ("cpu", None),
            ("OpenVINOExecutionProvider", None),
            ("openvino", Place("CPU", None)),
            ("OpenVINO:bf16", Place("CPU", "bf16")),
            ("openvino:gpu", Place("GPU", None)),
            ("openvino:gpu.1:f16", Place("GPU.1", "f16")),
        ],
    )
    def test_a_name_says_device_and_precision(self, name: str, place: Place | None) -> None:
        assert parse_place(name) == place
        assert place is None or place.name == name.lower()

    @pytest.mark.usefixtures("_fake")
    def test_openvino_alone_is_f32_and_what_the_device_does_by_itself(self) -> None:
        assert list_places("openvino") == ("openvino:f32", "openvino:bf16")
        assert list_places("openvino:gpu") == ("openvino:gpu:f32", "openvino:gpu:f16")
        assert list_places("openvino:bf16") == ("openvino:bf16",)
        assert list_places("cuda") == ("cuda",)

    @pytest.mark.usefixtures("_fake")
    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("openvino:npu", r"has no device NPU here, only CPU, GPU\.0; its precisions are f32, bf16, f16\."),
            ("openvino:int4", r"has no device INT4 here"),
            ("openvino:f16", r"does not compute in f16 on this CPU, which takes f32, bf16\."),
            ("openvino:gpu:bf16", r"does not compute in bf16 on this GPU, which takes f32, f16\."),
        ],
    )
    def test_what_is_not_there(self, name: str, sentence: str) -> None:
        with pytest.raises(OptionError, match=sentence):
            list_places(name)


class TestMissing:
    def test_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        sentence = r"pip install 'corp-onnx\[openvino\]'; .* is called OpenVINOExecutionProvider\.$"
        with pytest.raises(MissingExtraError, match=sentence):
            open_session(DEMO, provider="openvino")
        with pytest.raises(MissingExtraError, match=sentence):
            bench_models([DEMO], providers=["openvino"])

    def test_what_it_can_not_load(self) -> None:
        long = "Exception from src/core.cpp:84:\nFrontEnd API failed:\n-- No conversion rule for: Foo-17\n\n"
        assert str(own._explain(Path("a.onnx"), "can not load it", RuntimeError(long))) == (
            "a.onnx: OpenVINO can not load it (No conversion rule for: Foo-17)."
        )
        assert "(RuntimeError)" in str(own._explain(Path("a"), "failed on it", RuntimeError("")))
        with pytest.raises(MemoryError):
            own._explain(Path("a.onnx"), "failed on it", RuntimeError("std::bad_alloc"))

    def test_telemetry_is_not_loaded_and_what_was_there_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """OpenVINO's package would look for a server."""
        monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace())
        theirs = SimpleNamespace()
        monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
        own.import_openvino()
        assert sys.modules["openvino_telemetry"] is theirs


@pytest.fixture(scope="module")
def takes_bfloat16() -> bool:
    return "BF16" in own.import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.openvino
class TestReal:
    def test_answers_are_those_of_onnx_runtime(self) -> None:
        """By the same names, for any batch, in any order of the outputs that are asked for."""
        rng = np.random.default_rng(0)
        session, expected = open_session(DEMO, provider="openvino:f32", threads=1), open_session(DEMO)
        assert session.inputs == expected.inputs
        assert session.outputs == expected.outputs
        assert session.metadata == expected.metadata
        for n in (1, 3, 1):
            feeds = {session.inputs[0].name: rng.standard_normal((n, 3, 32, 32)).astype(np.float32)}
            (found,), (wanted,) = session.run(None, feeds), expected.run(None, feeds)
            assert np.abs(found - wanted).max() < LARGEST
        assert session.provider == "OpenVINO CPU in f32"

    @pytest.mark.parametrize("name", [TEXT, FIXED, "timm_vit_ts17_fp16", "timm_vit_ts17_qdq"])
    def test_other_inputs_and_types(self, name: str) -> None:
        session, expected = open_session(fixture_path(name), provider="openvino:f32"), open_session(fixture_path(name))
        assert [(i.name, i.dtype) for i in session.inputs] == [(i.name, i.dtype) for i in expected.inputs]
        feeds = {i.name: np.ones([axis or 2 for axis in i.shape], i.dtype) for i in expected.inputs}
        for found, wanted in zip(session.run(None, feeds), expected.run(None, feeds), strict=True):
            assert found.shape == wanted.shape
            assert found.dtype == wanted.dtype

    def test_it_reads_every_test_graph(self) -> None:
        for path in sorted(Path(fixture_path(TEXT)).parent.glob("*.onnx")):
            open_program(path, Place(), 1)

    def test_precision_is_read_back(self, tmp_path: Path, takes_bfloat16: bool) -> None:
        """The integers of a quantised file are found where a float is the hint."""
        small = tmp_path / "int8.onnx"
        convert_model(DEMO, small, settings=ConvertSettings("int8-static"), calib=DEMO.parent / "calib")
        found = {}
        for path in (DEMO, small):
            for place in list_places("openvino"):
                session = open_session(path, provider=place)
                session.run(None, {session.inputs[0].name: np.zeros((1, 3, 32, 32), np.float32)})
                assert session.program is not None
                found[path, place] = session.program.precision
        assert found[DEMO, "openvino:f32"] == "f32"
        assert "i8 " in found[small, "openvino:f32"]
        assert ((DEMO, "openvino:bf16") in found) == takes_bfloat16
        if takes_bfloat16:
            assert found[DEMO, "openvino:bf16"] == "bf16"

    def test_bench(self) -> None:
        """In the same rounds as ONNX Runtime, by default as well, with what OpenVINO says of itself."""
        schedule = Schedule(repeats=3)
        result = bench_models([DEMO, DEMO], batches=[2], schedule=schedule, threads=1)
        assert [r.provider for r in result.rows[::2]] == ["cpu", *list_places("openvino")]
        assert all(row.across is not None and row.across.provider == "cpu" for row in result.rows[2:])
        assert result.rows[2].precision == "f32"
        found = json.loads(result.to_json())
        assert found["session"]["openvino"] == {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1",
        }  # fmt: skip
        assert found["environment"]["versions"]["openvino"]

    def test_evaluate(self) -> None:
        images = DEMO.parent / "test"
        found, expected = (evaluate_models([DEMO], images, provider=p, limit=64) for p in ("openvino:f32", "cpu"))
        assert found.scores[0].top1 == expected.scores[0].top1
        assert found.provider == "OpenVINO CPU in f32"

    def test_what_it_refuses(self, tmp_path: Path) -> None:
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
        graph = helper.make_graph([helper.make_node("Foo", ["x"], ["y"])], "g", [x], [y])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "m.onnx"))
        with pytest.raises(ModelError, match=r"m\.onnx: OpenVINO can not load it \(.*Foo.*\)\.$"):
            open_program(tmp_path / "m.onnx", Place(), None)
        session = open_session(DEMO, provider="openvino")
        with pytest.raises(ModelError, match=r"demo_vit\.onnx: OpenVINO failed on it \(.*\)\.$"):
            session.run(None, {session.inputs[0].name: np.zeros((1, 3, 7, 7), np.float32)})
        with pytest.raises(OptionError, match="has no device QPU here"):
            open_session(DEMO, provider="openvino:qpu")

    def test_nothing_is_sent_and_nothing_written_at_home(self, tmp_path: Path) -> None:
        program = (
            "import sys; from corp_onnx.run.sessions import open_session\n"
            f"open_session({str(DEMO)!r}, provider='openvino'); print('openvino_telemetry' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], env={"HOME": str(tmp_path)}, capture_output=True,
                              text=True, check=True)  # fmt: skip
        assert done.stdout.strip() == "False"
        assert list(tmp_path.iterdir()) == []
