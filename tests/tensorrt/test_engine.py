"""Engines, built with a stand-in for TensorRT's Python API, both generations; with the real one on a GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
from samples import FIXED, OPERATOR, TEXT, fixture_path, listing
from schemas import require_valid

from corp_onnx.bench.bench import bench_models
from corp_onnx.cli import main
from corp_onnx.errors import CheckFailedError, MissingExtraError, ModelError, OptionError, OutputError
from corp_onnx.latency.turns import Schedule
from corp_onnx.results import to_json
from corp_onnx.tensorrt.blueprint import EngineSettings
from corp_onnx.tensorrt.engine import EngineResult, build_engine
from corp_onnx.tensorrt.library import MODULES

VERSIONS = ("10.16.1.11", "11.4.0.106")
QDQ = "timm_vit_ts17_qdq"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, version: str, *, has_gpu: bool = True) -> Any:
    """Put the stand-ins in place; gives TensorRT's, with CUDA's as `cuda` and its log as `log`."""
    library = fake_tensorrt.tensorrt(version, has_gpu=has_gpu)
    library.log = []
    library.cuda = fake_tensorrt.cuda(library.log, has_gpu=has_gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "cuda", fake_tensorrt.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", fake_tensorrt.ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", library.cuda)
    return library


def hide_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without any TensorRT."""
    for module in (module for modules in MODULES.values() for module in modules):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture(params=VERSIONS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(monkeypatch, request.param)


@pytest.fixture
def library10(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(monkeypatch, VERSIONS[0])


def is_typed(library: Any, network: Any) -> bool:
    return bool(network.flags & 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


class TestBuild:
    def test_an_engine_and_its_description(self, folder: Path, library: Any) -> None:
        result = build_engine("vit.onnx", settings=EngineSettings(1, 2, 4))
        assert listing(folder) == ["vit.onnx", "vit.plan", "vit.plan.json"]
        plan = (folder / "vit.plan").read_bytes()
        ((name, shapes),) = json.loads(plan)["profiles"][0].items()
        assert shapes == [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]
        assert result.sha256 == hashlib.sha256(plan).hexdigest()
        assert result.source_sha256 == hashlib.sha256(fixture_path(OPERATOR).read_bytes()).hexdigest()
        assert (result.tensorrt, result.gpu, result.builder) == (library.__version__, "NVIDIA Fake 1000", "python")
        assert (result.library, result.capabilities) == ("tensorrt", ())
        assert (result.precision, result.strongly_typed) == ("float32", True)
        tensor = result.inputs[0]
        assert (tensor.name, tensor.dtype, tensor.shape) == (name, "float32", (None, 3, 8, 8))
        assert (tensor.minimum, tensor.optimum, tensor.maximum) == ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
        assert result.outputs[0].minimum is None
        assert result.warnings == ("Using the default optimisation level.",)
        assert json.loads((folder / "vit.plan.json").read_text()) == json.loads(to_json(result))

    def test_networks_are_strongly_typed_unless_a_flag_says_otherwise(self, folder: Path, library: Any) -> None:
        shutil.copy(fixture_path(QDQ), folder / "qdq.onnx")
        build_engine("vit.onnx")
        build_engine("qdq.onnx")
        assert [is_typed(library, network) for network, _ in library.built] == [True, True]

    def test_version_10_takes_flags(self, folder: Path, library10: Any) -> None:
        shutil.copy(fixture_path(QDQ), folder / "qdq.onnx")
        result = build_engine("qdq.onnx", settings=EngineSettings(fp16=True, int8=True))
        ((network, config),) = library10.built
        assert not is_typed(library10, network)
        assert all(config.get_flag(f) for f in (library10.BuilderFlag.FP16, library10.BuilderFlag.INT8))
        assert (result.precision, result.strongly_typed) == ("int8 and float32, FP16 and INT8 allowed", False)

    @pytest.mark.usefixtures("folder", "library")
    def test_other_gpus_are_for_the_library_that_builds_ahead(self) -> None:
        sentence = (
            r"^TensorRT 1\d\.\S+ builds for the GPU of this machine and no other; .* --library tensorrt-rtx \(pip"
        )
        with pytest.raises(OptionError, match=sentence):
            build_engine("vit.onnx", settings=EngineSettings(library="tensorrt", gpus=("SM86",)))

    @pytest.mark.usefixtures("folder")
    def test_version_11_sends_to_convert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, VERSIONS[1])
        with pytest.raises(OptionError, match=r"run `corp-onnx convert vit\.onnx --fp16` first"):
            build_engine("vit.onnx", settings=EngineSettings(fp16=True))

    @pytest.mark.usefixtures("folder")
    def test_a_fixed_batch_has_no_profile(self, library: Any) -> None:
        result = build_engine(fixture_path(FIXED), "fixed.plan")
        assert library.built[0][1]._profiles == []
        assert result.inputs[0].shape == (1, 3, 8, 8)
        assert result.inputs[0].minimum is None

    @pytest.mark.usefixtures("folder", "library")
    def test_every_input_of_a_text_model_is_in_the_profile(self) -> None:
        result = build_engine(fixture_path(TEXT), "text.plan", settings=EngineSettings(maximum=4))
        assert [t.maximum[0] for t in result.inputs if t.maximum] == [4, 4, 4]
        assert {t.dtype for t in result.inputs} == {"int64"}

    @pytest.mark.usefixtures("folder")
    def test_workspace(self, library: Any) -> None:
        build_engine("vit.onnx", settings=EngineSettings(workspace=256))
        assert library.built[0][1].get_memory_pool_limit(library.MemoryPoolType.WORKSPACE) == 256 << 20

    @pytest.mark.usefixtures("folder", "library")
    def test_progress_counts_outer_phases(self) -> None:
        said: list[tuple[str, int, int]] = []
        build_engine("vit.onnx", progress=lambda *now: said.append(now))
        first, second = ("Building Engine", 2), ("Tactic Selection", 3)
        assert said == [(n, i + 1, steps) for n, steps in (first, second) for i in range(steps)]


class TestTimingCache:
    def test_it_is_written_and_read_again(self, folder: Path, library: Any) -> None:
        settings = EngineSettings(timing_cache=Path("kernels.cache"))
        result = build_engine("vit.onnx", settings=settings)
        assert (folder / "kernels.cache").read_bytes() == b"timings"
        assert result.timing_cache == "kernels.cache"
        (folder / "kernels.cache").write_bytes(b"older timings")
        build_engine("vit.onnx", settings=settings, force=True)
        assert library.built[1][1].get_timing_cache()._content == b"older timings"

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("content", [b"other GPU", b"damaged"])
    def test_one_of_another_gpu_is_started_anew(self, content: bytes, folder: Path) -> None:
        (folder / "kernels.cache").write_bytes(content)
        result = build_engine("vit.onnx", settings=EngineSettings(timing_cache=folder / "kernels.cache"))
        assert f"{folder / 'kernels.cache'} belongs to another TensorRT or GPU; it is started anew." in result.warnings
        assert (folder / "kernels.cache").read_bytes() == b"timings"


class TestFailures:
    """One sentence, and nothing is left behind."""

    def refuse(self, folder: Path, kind: type[Exception], sentence: str, *arguments: Any, **options: Any) -> None:
        before = listing(folder)
        with pytest.raises(kind, match=sentence):
            build_engine(*arguments, **options)
        assert listing(folder) == before

    def test_not_installed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hide_libraries(monkeypatch)
        sentence = r"^TensorRT's Python API is not installed \(no module tensorrt\): pip install"
        self.refuse(folder, MissingExtraError, sentence, "vit.onnx")

    def test_bindings_without_libraries(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What importing the wheel tensorrt_cu13_bindings alone says."""
        missing = "libnvonnxparser.so.11: cannot open shared object file: No such file or directory"
        (folder / "site").mkdir()
        (folder / "site" / "tensorrt.py").write_text(f"raise ImportError({missing!r})")
        monkeypatch.syspath_prepend(folder / "site")
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        sentence = (
            rf"^TensorRT's Python bindings are installed and its libraries are not found \({missing}\).*LD_LIBRARY_PATH"
        )
        self.refuse(folder, MissingExtraError, sentence, "vit.onnx")

    @pytest.mark.parametrize("version", VERSIONS)
    def test_no_gpu(self, version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """CUDA says it; where CUDA is content and TensorRT is not, its bindings give a null pointer."""
        library = install(monkeypatch, version, has_gpu=False)
        sentence = r"needs an NVIDIA GPU with its driver, and CUDA finds none here \(cudaErrorInsufficientDriver\)"
        self.refuse(folder, MissingExtraError, sentence, "vit.onnx")
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_tensorrt.cuda(library.log))
        self.refuse(folder, MissingExtraError, rf"TensorRT {version} can not start: it needs an NVIDIA GPU", "vit.onnx")

    @pytest.mark.usefixtures("library")
    def test_no_bindings_of_cuda(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
        self.refuse(folder, MissingExtraError, "CUDA's Python bindings are not installed", "vit.onnx")

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("name", ["vit.plan", "vit.plan.json"])
    def test_a_timing_cache_in_the_place_of_the_engine(self, name: str, folder: Path) -> None:
        settings = EngineSettings(timing_cache=folder / name)
        self.refuse(folder, OutputError, "--timing-cache and -o name the same file", "vit.onnx", settings=settings)

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("path", ["ext.onnx", "timm_vit_ts17_external.onnx.data"])
    def test_the_source_is_not_overwritten(self, path: str, folder: Path) -> None:
        source = fixture_path("timm_vit_ts17_external")
        shutil.copy(source, folder / "ext.onnx")
        shutil.copy(f"{source}.data", folder)
        before = (folder / path).read_bytes()
        sentence = rf"{path}: is the model itself; give another "
        self.refuse(folder, OutputError, f"{sentence}-o", "ext.onnx", path, force=True)
        settings = EngineSettings(timing_cache=Path(path))
        self.refuse(folder, OutputError, f"{sentence}--timing-cache", "ext.onnx", "e.plan", settings=settings)
        assert (folder / path).read_bytes() == before

    def test_the_file_is_read_before_an_extra_is_asked_for(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hide_libraries(monkeypatch)
        self.refuse(folder, ModelError, "no such file", "nothing.onnx")
        with pytest.raises(ModelError, match=r"no\.plan: no such file"):
            bench_models(["no.plan"])

    def test_the_parser_refuses(self, folder: Path, library: Any) -> None:
        name = "handmade_ms_attention"
        sentence = (
            r"TensorRT \S+'s parser refuses it \(Attention '\w*': Plugin not found, are .* correct\?, and \d+ more\)\."
        )
        self.refuse(folder, ModelError, sentence, fixture_path(name), "x.plan")
        assert library.built == []

    @pytest.mark.usefixtures("library")
    def test_the_build_fails(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fake_tensorrt, "_refuse", lambda *_: "Error Code 2: out of memory.\nmore")
        sentence = r"vit\.onnx: TensorRT \S+ could not build an engine \(Error Code 2: out of memory\)\.$"
        self.refuse(folder, CheckFailedError, sentence, "vit.onnx")

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
    def test_a_signal_stops_the_build(self, signal: type[BaseException], folder: Path) -> None:
        """It is raised in a callback from C++: the build is told to stop, and only then it goes on."""
        steps: list[int] = []

        def interrupt(_phase: str, done: int, _total: int) -> None:
            steps.append(done)
            raise signal

        before = listing(folder)
        with pytest.raises(signal):
            build_engine("vit.onnx", progress=interrupt)
        assert steps == [1]
        assert listing(folder) == before

    @pytest.mark.usefixtures("library")
    @pytest.mark.parametrize("name", ["vit.plan", "vit.plan.json"])
    def test_files_that_exist_are_kept(self, name: str, folder: Path) -> None:
        (folder / name).write_text("mine")
        self.refuse(folder, OutputError, rf"{name}: exists already; give another -o, or --force", "vit.onnx")
        assert (folder / name).read_text() == "mine"
        assert build_engine("vit.onnx", force=True).n_bytes > 4

    @pytest.mark.usefixtures("library")
    def test_bad_models(self, folder: Path) -> None:
        self.refuse(folder, ModelError, "no such file", "nothing.onnx")
        self.refuse(folder, ModelError, "quantised for CPUs", fixture_path("timm_vit_ts17_int8dynamic"), "x.plan")


class TestCommand:
    @pytest.mark.usefixtures("library10")
    def test_options_reach_the_settings(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        options = "--min 2 --opt 4 --max 6 --fp16 --workspace 64 --timing-cache k.cache --json -o out/e.plan"
        assert main(["engine", "vit.onnx", *options.split()]) == 0
        out, err = capfd.readouterr()
        found = json.loads(out)
        require_valid(found, "engine")
        assert found == json.loads((folder / "out" / "e.plan.json").read_text())
        assert [found["inputs"][0][k][0] for k in ("minimum", "optimum", "maximum")] == [2, 4, 6]
        assert (found["precision"], found["workspace"], found["timing_cache"]) == (
            "float32, FP16 allowed",
            64,
            "k.cache",
        )
        assert err == "warning: Using the default optimisation level.\n"

    @pytest.mark.usefixtures("folder", "library10")
    def test_what_it_prints(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert main(["engine", "vit.onnx"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0].startswith(
            "vit.plan: 0.0 MB, TensorRT 10.16.1.11, NVIDIA Fake 1000, float32 (strongly typed), "
        )
        assert lines[1].endswith(": 1 x 3 x 8 x 8 to 32 x 3 x 8 x 8, best at 8 x 3 x 8 x 8")
        assert lines[2] == "description: vit.plan.json"

    @pytest.mark.usefixtures("folder")
    def test_without_the_library(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        hide_libraries(monkeypatch)
        assert main(["engine", "vit.onnx"]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("corp-onnx: TensorRT's Python API is not installed")
        assert err.count("\n") == 1


class TestBench:
    """Engines on the stand-in, whose memory is this process's."""

    def build(self, *names: str, **options: Any) -> list[EngineResult]:
        return [build_engine("vit.onnx", name, settings=EngineSettings(1, 2, 4), **options) for name in names]

    @pytest.mark.usefixtures("folder")
    def test_engines_in_turns(self, library: Any) -> None:
        self.build("a.plan", "b.plan")
        result = bench_models(["a.plan", "b.plan"], batches=[1, 4], schedule=Schedule(repeats=3, warmup=1))
        assert [(r.model, r.provider, r.batch) for r in result.rows] == [
            ("a.plan", "engine", 1), ("b.plan", "engine", 1), ("a.plan", "engine", 4), ("b.plan", "engine", 4)
        ]  # fmt: skip
        assert {r.resident is not None for r in result.rows} == {True}
        assert [m.precision for m in result.models] == ["float32", "float32"]
        assert library.ran == [1] * 16 + [4] * 16  # two engines, two ways, four rounds

    @pytest.mark.usefixtures("folder")
    def test_what_each_way_of_running_moves(self, library: Any) -> None:
        from corp_onnx.bench.engine import read_engine

        self.build("a.plan")
        candidate = read_engine(Path("a.plan")).open("engine", None).bind(2)
        assert library.log == ["up"]
        library.log.clear()
        assert candidate.resident is not None
        candidate.resident()
        assert library.log == ["wait"]
        library.log.clear()
        candidate.run()
        assert library.log == ["up", "down", "wait"]
        assert len(library.cuda.memory) == 2
        del candidate
        assert library.cuda.memory == {}

    @pytest.mark.usefixtures("folder", "library")
    def test_a_batch_that_it_was_not_built_for(self) -> None:
        self.build("a.plan")
        with pytest.raises(OptionError, match=r"a\.plan takes batches of 1 to 4; found --batch 8\."):
            bench_models(["a.plan"], batches=[8])

    @pytest.mark.usefixtures("folder", "library")
    def test_engines_alone_need_no_onnx_runtime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.build("a.plan")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert bench_models(["a.plan"], batches=[1], schedule=Schedule(repeats=1)).rows[0].provider == "engine"
        with pytest.raises(MissingExtraError, match="ONNX Runtime is not installed"):
            bench_models(["a.plan"], batches=[1], providers=["cpu"])

    @pytest.mark.usefixtures("folder", "library")
    def test_a_fixed_batch(self) -> None:
        build_engine(fixture_path(FIXED), "fixed.plan")
        result = bench_models(["fixed.plan"], schedule=Schedule(repeats=1))
        assert [row.batch for row in result.rows] == [1]

    @pytest.mark.usefixtures("library")
    def test_files_that_are_no_engines(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"no\.plan: no such file\. Give the path of an engine"):
            bench_models(["no.plan"])
        (folder / "m.plan").write_bytes(b"\0\1\2")
        with pytest.raises(
            ModelError, match=r"m\.plan: TensorRT \S+ can not load it \(.*Serialization \(magicTag failed"
        ):
            bench_models(["m.plan"])

    def test_a_description_of_another_engine_is_not_believed(self, folder: Path, library: Any) -> None:
        self.build("a.plan")
        described = json.loads((folder / "a.plan.json").read_text())
        (folder / "a.plan.json").write_text(json.dumps(described | {"sha256": "0"}))
        assert (
            bench_models(["a.plan"], batches=[1], schedule=Schedule(repeats=1)).models[0].precision == "not described"
        )
        assert library.ran

    @pytest.mark.usefixtures("folder")
    def test_a_run_that_fails_and_a_full_gpu(self, library: Any) -> None:
        self.build("a.plan")
        library.runs_work = False
        with pytest.raises(CheckFailedError, match=r"a\.plan: TensorRT failed while running it"):
            bench_models(["a.plan"], batches=[1])
        library.cuda.free_bytes = 16
        with pytest.raises(CheckFailedError, match="CUDA: cudaErrorMemoryAllocation; the GPU may be out of memory"):
            bench_models(["a.plan"], batches=[1])

    def test_without_tensorrt(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hide_libraries(monkeypatch)
        (folder / "m.plan").write_bytes(b"ftrt")
        with pytest.raises(MissingExtraError, match=r"pip install 'corp-onnx\[tensorrt\]'"):
            bench_models([folder / "m.plan"])


@pytest.mark.gpu
class TestReal:
    """TensorRT itself, whichever version is installed."""

    def test_the_stand_in_has_no_member_that_the_library_lacks(self) -> None:
        real = pytest.importorskip("tensorrt")
        stand_in = fake_tensorrt.tensorrt(real.__version__)
        assert missing_members(stand_in, real) == []

    def test_an_engine_is_built_and_timed(self, folder: Path) -> None:
        pytest.importorskip("tensorrt")
        result = build_engine("vit.onnx", settings=EngineSettings(1, 2, 4, timing_cache=Path("k.cache")))
        assert result.n_bytes == (folder / "vit.plan").stat().st_size
        assert (folder / "k.cache").stat().st_size > 0
        rows = bench_models(["vit.plan", "vit.onnx"], batches=[2], schedule=Schedule(repeats=20)).rows
        assert "engine" in {row.provider for row in rows}
        with pytest.raises(OptionError, match="takes batches of 1 to 4"):
            bench_models(["vit.plan"], batches=[8])


def missing_members(stand_in: Any, real: Any) -> list[str]:
    """Names of the stand-in that the library lacks; what begins with an underscore is the stand-in's own."""
    missing: list[str] = []
    for name in (n for n in vars(stand_in) if n[0].isupper()):
        if not hasattr(real, name):
            missing.append(name)
            continue
        own = getattr(stand_in, name)
        inherited = {m for base in (int, bytes) if issubclass(own, base) for m in dir(base)}
        members = [m for m in dir(own) if not m.startswith("_") and m not in inherited]
        missing += [f"{name}.{m}" for m in members if not hasattr(getattr(real, name), m)]
    return missing
