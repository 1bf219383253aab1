"""Real engines: TensorRT for RTX, which needs no GPU to build (make test-tensorrt)."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import fixture_path, listing

from corp_onnx.cli import main
from corp_onnx.errors import CheckFailedError, ModelError, OptionError
from corp_onnx.precision.convert import convert_model
from corp_onnx.prune import prune_model
from corp_onnx.settings import PAPER, Fractions, PruneSettings
from corp_onnx.tensorrt.blueprint import EngineSettings
from corp_onnx.tensorrt.engine import build_engine
from corp_onnx.tensorrt.explain import Explanation
from corp_onnx.tensorrt.library import find_library

pytestmark = pytest.mark.tensorrt

ROOT = Path(__file__).resolve().parents[2]
DEMO, CALIB = ROOT / "models" / "demo_vit.onnx", ROOT / "models" / "calib"
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


def write_attention(path: Path, d_qk: int, d_v: int, kind: int = TensorProto.FLOAT16) -> None:
    """One attention of three heads over 17 tokens, its softmax in float32, with its projections."""
    nodes, stored = [], []

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def weight(name: str, *shape: int) -> str:
        values = np.random.default_rng(0).standard_normal(shape) / 8
        stored.append(helper.make_tensor(name, kind, shape, values.ravel().tolist()))
        return name

    def reshaped(tensor: str, *shape: int) -> str:
        stored.append(numpy_helper.from_array(np.array(shape), f"{tensor}.shape"))
        return add("Reshape", [tensor, f"{tensor}.shape"], f"{tensor}.reshaped")

    heads = {}
    for name, width, perm in (("q", d_qk, (0, 2, 1, 3)), ("k", d_qk, (0, 2, 3, 1)), ("v", d_v, (0, 2, 1, 3))):
        projected = add("MatMul", ["x", weight(f"w{name}", 48, 3 * width)], name)
        heads[name] = add("Transpose", [reshaped(projected, 0, 17, 3, width)], f"{name}.heads", perm=perm)
    logits = add("Mul", [add("MatMul", [heads["q"], heads["k"]], "qk"), weight("scale")], "logits")
    softmax = add("Softmax", [add("Cast", [logits], "wide", to=TensorProto.FLOAT)], "p", axis=-1)
    mixed = add("MatMul", [add("Cast", [softmax], "half", to=kind), heads["v"]], "pv")
    joined = reshaped(add("Transpose", [mixed], "pv.tokens", perm=(0, 2, 1, 3)), 0, 17, 3 * d_v)
    add("Add", [add("MatMul", [joined, weight("wo", 3 * d_v, 48)], "o"), "x"], "y")
    values = [helper.make_tensor_value_info(name, kind, ["n", 17, 48]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def explain(path: Path | str, **options: object) -> Explanation:
    result = build_engine(path, "x.plan", force=True, explain=True, gpus=("SM86",), maximum=8, **options)
    assert result.layers is not None
    return result.layers


@pytest.mark.usefixtures("folder")
class TestExplain:
    """What is said to fuse is what the library fuses."""

    @pytest.mark.parametrize(
        ("d_qk", "d_v", "kind", "reason"),
        [
            (16, 16, TensorProto.FLOAT16, None),
            (64, 64, TensorProto.BFLOAT16, None),
            (256, 256, TensorProto.FLOAT16, None),
            (9, 9, TensorProto.FLOAT16, "width 9 is no multiple of 8: copied into a wider tensor"),
            (36, 36, TensorProto.FLOAT16, "width 36 is no multiple of 8: copied into a wider tensor"),
            (8, 8, TensorProto.FLOAT16, "it needs widths of 9 to 256"),
            (257, 257, TensorProto.FLOAT16, "it needs widths of 9 to 256"),
            (32, 64, TensorProto.FLOAT16, "q and k are 32 wide and v 64, it needs equal widths"),
            (64, 64, TensorProto.FLOAT, "it needs float16"),
        ],
    )
    def test_rules(self, d_qk: int, d_v: int, kind: int, reason: str | None) -> None:
        write_attention(Path("one.onnx"), d_qk, d_v, kind)
        found = explain("one.onnx")
        (part,) = (part for part in found.parts if part.is_block)
        assert (part.widths, part.reason) == ((d_qk, d_v), reason or "")
        is_fused = reason is None or "copied" in reason
        assert (part.attention, found.fused, found.attentions) == ("fused" if is_fused else "apart", is_fused, 1)
        assert (part.paddings == 0) == (reason is None)

    def test_the_demo_in_both_precisions(self) -> None:
        convert_model("vit.onnx", "half.onnx", fp16=True)
        whole, half = explain("vit.onnx"), explain("half.onnx")
        assert (whole.fused, half.fused, half.attentions) == (0, 6, 6)
        assert half.kernels < whole.kernels
        for found in (whole, half):
            assert [p.part for p in found.parts] == ["before", *(f"blocks.{i}" for i in range(6)), "behind"]
            assert sum(p.kernels for p in found.parts) == found.kernels == sum(found.kinds.values())
            assert {p.kernels for p in found.parts[2:6]} == {found.parts[2].kernels}  # blocks that are alike
        assert {p.reason for p in whole.parts if p.is_block} == {"it needs float16"}
        assert all("float16" in p.precision for p in half.parts)

    def test_nodes_without_a_name(self) -> None:
        """As the parser calls them."""
        proto = onnx.load("vit.onnx")
        expected = [p.kernels for p in explain("vit.onnx").parts]
        for node in proto.graph.node:
            node.name = ""
        onnx.save(proto, "unnamed.onnx")
        assert [p.kernels for p in explain("unnamed.onnx").parts] == expected

    def test_the_command_and_the_description(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["engine", "vit.onnx", "--gpu", "SM86", "--explain"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[3].split() == ["attention", "width", "kernels", "products", "padding", "precision"]
        assert lines[-2:] == ["fused attention: 0 of 6", "not fused: it needs float16 (blocks 0 to 5)"]
        described = json.loads((folder / "vit.plan.json").read_text())["layers"]
        assert described["parts"][1]["part"] == "blocks.0"
        assert described["attentions"] == 6
        build_engine("vit.onnx", force=True, gpus=("SM86",))
        assert json.loads((folder / "vit.plan.json").read_text())["layers"] is None

    def test_the_operator_attention(self) -> None:
        """Apart in float32, where the builder would refuse it; fused in float16, and its softmax_precision left out."""
        path = fixture_path("timm_vit_dynamo23_fused")
        whole = explain(path)
        assert (whole.fused, whole.attentions) == (0, 2)
        convert_model(path, "half.onnx", fp16=True)
        result = build_engine("half.onnx", "x.plan", force=True, explain=True, gpus=("SM86",))
        assert result.layers is not None
        assert (result.layers.fused, result.layers.attentions) == (2, 2)
        sentence = "softmax_precision of 2 Attention operators is left to TensorRT, which does not take it."
        assert sentence in result.warnings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo, with half of its MLPs, and with a third of the width of its queries and keys gone as well."""
    folder = tmp_path_factory.mktemp("pruned")
    found = {"dense": DEMO, "mlp": folder / "mlp.onnx", "paper": folder / "paper.onnx"}
    for name, attn in (("mlp", 0.0), ("paper", 1 / 3)):
        settings = PruneSettings(replace(PAPER, widths=Fractions(0.5, attn)), n_images=96)
        prune_model(DEMO, CALIB, found[name], settings=settings)
    return found


@pytest.mark.usefixtures("folder")
class TestPrecisions:
    """The demo dense and pruned in float32, float16 and static int8: built, and its attention counted."""

    @pytest.mark.parametrize("model", ["dense", "mlp", "paper"])
    @pytest.mark.parametrize(("options", "is_fused"), [
        ({}, False), ({"fp16": True}, True), ({"int8": "static"}, False), ({"int8": "static", "fp16": True}, True),
    ])  # fmt: skip
    def test_built(self, model: str, options: dict[str, Any], is_fused: bool, models: dict[str, Path]) -> None:
        path = models[model]
        if options:
            calib = {"calib": CALIB, "limit": 96} if "int8" in options else {}
            convert_model(path, "converted.onnx", **options, **calib)
            path = Path("converted.onnx")
        found = explain(path)
        assert found.attentions == 6
        widths = {part.widths for part in found.parts if part.is_block}
        assert widths == {(16, 24) if model == "paper" else (24, 24)}
        assert found.fused == (6 if is_fused and model != "paper" else 0)
        precisions = set().union(*(part.precision for part in found.parts))
        assert ("int8" in precisions) == ("int8" in options)
        assert ("float16" in precisions) == ("fp16" in options)

    def test_uint8_is_refused(self) -> None:
        convert_model("vit.onnx", "m.onnx", int8="static", activations="uint8", calib=CALIB, limit=32)
        with pytest.raises(
            ModelError, match=r"parser refuses it \(QuantizeLinear .*Non-zero zero point is not supported"
        ):
            build_engine("m.onnx", gpus=("SM86",))


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("tensorrt_builds", ROOT / "tools" / "tensorrt_builds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestFixtures:
    """docs/tensorrt.json, of which docs/compatibility.md has a section, is what the library does."""

    RECORD = json.loads((ROOT / "docs" / "tensorrt.json").read_text(encoding="utf-8"))

    def test_every_graph_is_in_the_record(self) -> None:
        tool = load_tool()
        assert [path.stem for path in tool.list_graphs()] == list(self.RECORD["files"])
        assert find_library("tensorrt-rtx").title == self.RECORD["library"]

    def test_every_graph_as_it_stands(self) -> None:
        tool = load_tool()
        found = {path.stem: tool.build(path) for path in tool.list_graphs()}
        assert found == {name: file["as_it_stands"] for name, file in self.RECORD["files"].items()}

    @pytest.mark.parametrize("name", list(RECORD["files"])[::12])
    def test_some_in_float16(self, name: str) -> None:
        assert load_tool().examine(fixture_path(name)) == self.RECORD["files"][name]
