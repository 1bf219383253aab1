"""An engine in words, from results made up by hand."""

from __future__ import annotations

from dataclasses import replace

from corp_onnx.report.engine import describe_engine
from corp_onnx.results import Environment
from corp_onnx.tensorrt.engine import EngineResult, EngineTensor
from corp_onnx.tensorrt.trtexec import Summary, TrtexecTime

IMAGE = EngineTensor("x", "float32", (None, 3, 224, 224), (1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224))
ENGINE = EngineResult(
    path="vit.plan", sha256="0" * 64, n_bytes=12_345_678, description="vit.plan.json", source="vit.onnx",
    source_sha256="1" * 64, builder="trtexec", library="tensorrt", tensorrt="10.16.0", gpu="NVIDIA H100",
    capabilities=(), precision="float32, fp16",
    strongly_typed=False, inputs=(IMAGE,), outputs=(EngineTensor("logits", "float32", (None, 1000)),), workspace=None,
    timing_cache=None, layers=None, measured=None, warnings=("said elsewhere",), seconds=61.7,
    environment=Environment("0.1", "3.12", "Linux", "gpu", None, {}),
)  # fmt: skip
TIMES = tuple(TrtexecTime(name, 0.0, 1.0, 0.5, median, ()) for name, median in (("latency", 0.0021), ("compute", 2e-3)))


def test_size_precision_and_shapes() -> None:
    assert describe_engine(ENGINE).splitlines() == [
        "vit.plan: 12.3 MB, TensorRT 10.16.0, NVIDIA H100, float32, fp16 (TensorRT chooses), 62 s",
        "x: 1 x 3 x 224 x 224 to 32 x 3 x 224 x 224, best at 8 x 3 x 224 x 224",
        "description: vit.plan.json",
    ]


def test_a_strongly_typed_engine() -> None:
    assert "float32 (strongly typed), " in describe_engine(replace(ENGINE, strongly_typed=True, precision="float32"))


def test_one_that_was_built_ahead() -> None:
    ahead = replace(ENGINE, library="tensorrt-rtx", tensorrt="1.7", gpu=None, strongly_typed=True, precision="float16")
    assert describe_engine(ahead).startswith(
        "vit.plan: 12.3 MB, TensorRT for RTX 1.7, GPUs from Ampere on, float16 (strongly typed), "
    )
    assert "TensorRT for RTX 1.7, SM86, SM120, float16" in describe_engine(
        replace(ahead, capabilities=("SM86", "SM120"))
    )
    assert ahead.summary == "vit.plan: 12.3 MB, float16, TensorRT for RTX 1.7 for GPUs from Ampere on"
    assert ("GPU", "GPUs from Ampere on") in ahead.table


def test_inputs_of_fixed_shape_have_one() -> None:
    inputs = (EngineTensor("ids", "int64", (1, 128)), replace(IMAGE, optimum=None))
    lines = describe_engine(replace(ENGINE, inputs=inputs)).splitlines()
    assert lines[1:3] == ["ids: 1 x 128", "x: None x 3 x 224 x 224"]


def test_what_trtexec_measured() -> None:
    measured = Summary("10.16.0", "NVIDIA H100", True, (), 480.25, TIMES)
    lines = describe_engine(replace(ENGINE, measured=measured)).splitlines()
    assert lines[2] == (
        "trtexec, median at the shape it chose: latency 2.100 ms, compute 2.000 ms; 480.2 batches/s"
    )  # fmt: skip
    assert lines[3] == "description: vit.plan.json"


def test_a_summary_without_a_measurement_says_nothing() -> None:
    measured = Summary("10.16.0", "NVIDIA H100", True, (), None, ())
    assert describe_engine(replace(ENGINE, measured=measured)) == describe_engine(ENGINE)
