"""Real engines: TensorRT for RTX, which needs no GPU to build (make test-tensorrt)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from samples import fixture_path, listing

from corp_onnx.cli import main
from corp_onnx.errors import CheckFailedError, ModelError, OptionError
from corp_onnx.precision.convert import convert_model
from corp_onnx.tensorrt.blueprint import EngineSettings
from corp_onnx.tensorrt.engine import build_engine
from corp_onnx.tensorrt.library import find_library

pytestmark = pytest.mark.tensorrt

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo_vit.onnx"
PLAN = b"vtrt"
"""What an engine of TensorRT for RTX begins with."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(DEMO, tmp_path / "vit.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_the_library_offers() -> None:
    library = find_library("tensorrt-rtx")
    assert {"SM75", "SM80", "SM86", "SM89", "SM120"} <= set(library.capabilities)
    assert library.capabilities[0] == "SM75"  # by number, not by letter
    assert library.precisions == frozenset()
    assert not library.keeps_timings


class TestBuild:
    def test_an_engine_ahead_of_time_names_capabilities_and_no_device(self, folder: Path) -> None:
        said: list[tuple[str, int, int]] = []
        result = build_engine("vit.onnx", settings=EngineSettings(1, 2, 4, gpus=("SM86", "SM120")),
                              progress=lambda *now: said.append(now))  # fmt: skip
        assert (folder / "vit.plan").read_bytes().startswith(PLAN)
        assert (result.library, result.gpu, result.capabilities) == ("tensorrt-rtx", None, ("SM86", "SM120"))
        assert (result.strongly_typed, result.timing_cache) == (True, None)
        described = json.loads((folder / "vit.plan.json").read_text())
        assert (described["gpu"], described["capabilities"]) == (None, ["SM86", "SM120"])
        assert described["inputs"][0]["maximum"] == [4, 3, 32, 32]
        assert described["environment"]["versions"]["tensorrt-rtx"] == result.tensorrt
        assert {phase for phase, _, _ in said} == {"Building engine"}
        assert [done for _, done, _ in said] == list(range(1, len(said) + 1))

    def test_half_precision_comes_from_the_file(self, folder: Path) -> None:
        sentence = (
            r"^TensorRT for RTX \S+ takes the precision from the ONNX file, .* --fp16` first, and build an engine"
        )
        with pytest.raises(OptionError, match=sentence):
            build_engine("vit.onnx", settings=EngineSettings(fp16=True))
        assert listing(folder) == ["vit.onnx"]
        convert_model("vit.onnx", "half.onnx", fp16=True)
        small, large = (build_engine(name, gpus=("SM86",), force=True).n_bytes for name in ("half.onnx", "vit.onnx"))
        assert small < large

    def test_gpus_that_it_does_not_build_for(self, folder: Path) -> None:
        with pytest.raises(OptionError, match=r"does not build for SM90; it builds for SM75, .*SM120"):
            build_engine("vit.onnx", gpus=("SM90",))
        assert listing(folder) == ["vit.onnx"]

    def test_a_limit_that_is_too_small(self, folder: Path) -> None:
        """One build with and one without enough of it."""
        with pytest.raises(CheckFailedError, match=r"could not build an engine \(.*within workspace limit"):
            build_engine("vit.onnx", gpus=("SM86",), workspace=1)
        assert listing(folder) == ["vit.onnx"]
        assert build_engine("vit.onnx", gpus=("SM86",), workspace=256).workspace == 256

    @pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
    def test_a_signal_stops_the_build(self, signal: type[BaseException], folder: Path) -> None:
        """It is raised in a callback from C++, which must not see it."""

        def interrupt(_phase: str, _done: int, _total: int) -> None:
            raise signal

        with pytest.raises(signal):
            build_engine("vit.onnx", gpus=("SM86",), progress=interrupt)
        assert listing(folder) == ["vit.onnx"]

    def test_the_parser_refuses(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"TensorRT for RTX \S+'s parser refuses it \(Attention "):
            build_engine(fixture_path("handmade_ms_attention"), "x.plan")
        assert listing(folder) == ["vit.onnx"]

    @pytest.mark.usefixtures("folder")
    def test_the_command(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert (
            main(
                [
                    "engine",
                    str(fixture_path("timm_vit_ts17_fused")),
                    "--gpu",
                    "sm86,SM120",
                    "-o",
                    "a.plan",
                    "--max",
                    "4",
                ]
            )
            == 0
        )
        lines = capfd.readouterr().out.splitlines()
        assert ", TensorRT for RTX " in lines[0]
        assert ", SM86, SM120, float32 (strongly typed), " in lines[0]
        assert main(["engine", "vit.onnx", "-o", "b.plan", "--library", "tensorrt-rtx"]) == 0
        assert ", GPUs from Ampere on, float32 (strongly typed), " in capfd.readouterr().out
