"""trtexec: its arguments, what it prints in several versions, and whole builds with a program that stands in for it."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import FIXED, OPERATOR, TEXT, environment, fixture_path, is_running, listing

from corp_onnx.cli import main
from corp_onnx.errors import CheckFailedError, MissingExtraError, OptionError
from corp_onnx.staging import MARK
from corp_onnx.tensorrt.blueprint import EngineSettings, plan_shapes, read_source
from corp_onnx.tensorrt.engine import build_engine
from corp_onnx.tensorrt.trtexec import USUAL_PLACES, find_trtexec, list_arguments, parse_output, probe_precisions

MEASURED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b42] # trtexec --onnx=m.onnx --saveEngine=m.plan
[01/02/2026-03:04:05] [I] === Device Information ===
[01/02/2026-03:04:05] [I] Available Devices:
[01/02/2026-03:04:05] [I]   Device 0: "NVIDIA Test 100" UUID: GPU-0
[01/02/2026-03:04:05] [I] Selected Device: NVIDIA Test 100
[01/02/2026-03:04:05] [I] Selected Device ID: 0
[01/02/2026-03:04:05] [I]
[01/02/2026-03:04:09] [W] [TRT] a warning
[01/02/2026-03:04:09] [I] Average on 10 runs - GPU latency: 0.5 ms - Host latency: 0.7 ms (enqueue 0.1 ms)
[01/02/2026-03:04:09] [I] === Performance summary ===
[01/02/2026-03:04:09] [I] Throughput: 1.25e+03 qps
[01/02/2026-03:04:09] [I] Latency: min = 0.5 ms, max = 2 ms, mean = 0.9 ms, median = 0.8 ms, percentile(90%) = 1 ms, \
percentile(95%) = 1.5 ms, percentile(99%) = 1.75 ms
[01/02/2026-03:04:09] [I] Enqueue Time: min = 0.125 ms, max = 0.5 ms, mean = 0.25 ms, median = 0.25 ms, \
percentile(90%) = 0.25 ms, percentile(95%) = 0.25 ms, percentile(99%) = 0.5 ms
[01/02/2026-03:04:09] [I] GPU Compute Time: min = 0.25 ms, max = 1 ms, mean = 0.5 ms, median = 0.5 ms, \
percentile(90%) = 0.75 ms, percentile(95%) = 0.75 ms, percentile(99%) = 1 ms
[01/02/2026-03:04:09] [I] Total Host Walltime: 3.00126 s
[01/02/2026-03:04:09] [W] * GPU compute time is unstable, with coefficient of variance = 7%.
&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b42] # trtexec --onnx=m.onnx --saveEngine=m.plan
"""

FAILED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v110400] # trtexec --onnx=m.onnx --fp16
[01/02/2026-03:04:05] [E] Unknown option: --fp16
[01/02/2026-03:04:05] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v110400] # trtexec --onnx=m.onnx --fp16
"""


class TestOutput:
    def test_a_measurement_in_seconds(self) -> None:
        found = parse_output(MEASURED)
        assert (found.version, found.gpu, found.passed, found.errors) == ("10.16.0", "NVIDIA Test 100", True, ())
        assert found.throughput == 1250
        assert [t.name for t in found.times] == ["Latency", "Enqueue Time", "GPU Compute Time"]
        latency = found.times[0]
        assert [latency.minimum, latency.maximum] == pytest.approx([0.0005, 0.002])
        assert [latency.mean, latency.median] == pytest.approx([0.0009, 0.0008])
        assert [share for share, _ in latency.percentiles] == [90, 95, 99]
        assert [seconds for _, seconds in latency.percentiles] == pytest.approx([0.001, 0.0015, 0.00175])

    def test_older_versions_have_one_percentile_and_leave_the_time_out(self) -> None:
        lines = (line.partition("] ")[2] if line.startswith("[") else line for line in MEASURED.splitlines())
        text = "\n".join(lines).replace("percentile(90%) = 1 ms, percentile(95%) = 1.5 ms, ", "")
        found = parse_output(text)
        assert found.throughput == 1250
        assert found.times[0].percentiles == ((99.0, pytest.approx(0.00175)),)

    def test_without_inference_there_is_no_measurement(self) -> None:
        text = MEASURED.split("=== Performance")[0] + "\n" + MEASURED.splitlines()[-1]
        found = parse_output(text)
        assert (found.passed, found.throughput, found.times) == (True, None, ())

    def test_a_failure(self) -> None:
        found = parse_output(FAILED)
        assert (found.version, found.passed) == ("11.4.0", False)
        assert found.errors == ("Unknown option: --fp16", "Engine set up failed")

    @pytest.mark.parametrize(
        ("mark", "version"),
        [
            ("v8601", "8.6.1"),
            ("v100001", "10.0.1"),
            ("v101303", "10.13.3"),
            ("v110400", "11.4.0"),
            ("v", ""),
            ("vX1", ""),
        ],
    )
    def test_versions(self, mark: str, version: str) -> None:
        assert parse_output(f"&&&& RUNNING TensorRT.trtexec [TensorRT {mark}] # trtexec").version == version

    def test_killed_half_way(self) -> None:
        found = parse_output(MEASURED.split("&&&& PASSED")[0])
        assert not found.passed
        assert found.throughput == 1250

    def test_nothing_and_nonsense(self) -> None:
        for text in ("", "Segmentation fault\n", "[", "[E]", "[] [E] \n]["):
            assert not parse_output(text).passed


class TestArguments:
    def arguments(self, name: str, settings: EngineSettings, flags: tuple[str, ...] = ()) -> list[str]:
        source = read_source(fixture_path(name))
        shapes = plan_shapes(source, settings)
        return list_arguments(source, shapes, settings, flags, Path("out/e.plan"), settings.timing_cache)

    def test_everything(self) -> None:
        settings = EngineSettings(1, 2, 4, fp16=True, workspace=512, timing_cache=Path("k.cache"))
        (name,) = read_source(fixture_path(OPERATOR)).inputs
        assert self.arguments(OPERATOR, settings, ("FP16", "INT8")) == [
            f"--onnx={fixture_path(OPERATOR)}",
            "--saveEngine=out/e.plan",
            "--fp16",
            "--int8",
            f"--minShapes={name}:1x3x8x8",
            f"--optShapes={name}:2x3x8x8",
            f"--maxShapes={name}:4x3x8x8",
            "--memPoolSize=workspace:512",
            "--timingCacheFile=k.cache",
        ]

    def test_a_fixed_batch_and_the_precision_of_the_file(self) -> None:
        found = self.arguments(FIXED, EngineSettings())
        assert found == [f"--onnx={fixture_path(FIXED)}", "--saveEngine=out/e.plan", "--stronglyTyped"]

    def test_several_inputs_are_one_argument(self) -> None:
        (found,) = (a for a in self.arguments(TEXT, EngineSettings(maximum=4)) if a.startswith("--maxShapes="))
        assert [part.partition(":")[2] for part in found.partition("=")[2].split(",")] == ["4x16"] * 3


class TestTool:
    def test_where_a_person_says(self, tmp_path: Path) -> None:
        with pytest.raises(MissingExtraError, match=r"trtexec: there is no trtexec; give the path"):
            find_trtexec(tmp_path)
        (tmp_path / "trtexec").touch()
        assert find_trtexec(tmp_path) == find_trtexec(tmp_path / "trtexec") == tmp_path / "trtexec"

    def test_on_path_or_where_nvidia_puts_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("corp_onnx.tensorrt.trtexec.USUAL_PLACES", (tmp_path / "usual",))
        with pytest.raises(MissingExtraError, match=r"neither on PATH nor in .*usual: install TensorRT"):
            find_trtexec(None)
        write_tool(tmp_path / "usual", "101600")
        assert find_trtexec(None) == tmp_path / "usual" / "trtexec"
        write_tool(tmp_path, "101600")
        assert find_trtexec(None) == tmp_path / "trtexec"
        assert Path("/usr/src/tensorrt/bin") in USUAL_PLACES  # NVIDIA's Debian packages and containers

    def test_a_relative_path_is_not_looked_for_on_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_tool(tmp_path / "other", "110400")
        write_tool(tmp_path, "101600")
        monkeypatch.setenv("PATH", str(tmp_path / "other"))
        monkeypatch.chdir(tmp_path)
        for path in (Path("trtexec"), Path()):
            assert probe_precisions(find_trtexec(path)) == ({"FP16", "INT8"}, "TensorRT 10.16.0")

    def test_a_file_that_is_no_program(self, tmp_path: Path) -> None:
        (tmp_path / "trtexec").touch()
        with pytest.raises(MissingExtraError, match=r"trtexec: can not be run \(Permission denied\)"):
            build_engine(fixture_path(OPERATOR), tmp_path / "e.plan", trtexec=tmp_path)


def write_tool(folder: Path, version: str, *, fails: bool = False) -> Path:
    """A program that prints and refuses as trtexec does, and keeps its arguments in the engine."""
    folder.mkdir(exist_ok=True)
    precisions = {"--fp16", "--int8"} if version < "110000" else set()
    program = f"""#!{sys.executable}
import json, pathlib, sys
given = dict(a.split("=", 1) if "=" in a else (a, "") for a in sys.argv[1:])
known = {{"--onnx", "--saveEngine", "--stronglyTyped", "--minShapes", "--optShapes", "--maxShapes", "--memPoolSize",
         "--timingCacheFile", "--help"}} | {precisions!r}
head, tail = "TensorRT.trtexec [TensorRT v{version}] [b1] # trtexec", []
print("&&&& RUNNING", head)
if "--help" in given:
    sys.exit(0)
tail += ["Unknown option: " + a for a in given if a not in known]
tail += ["Engine could not be created from network", "Engine set up failed"] if {fails!r} else []
if tail:
    print("\\n".join("[01/02/2026-03:04:05] [E] " + t for t in tail))
    print("&&&& FAILED", head)
    sys.exit(1)
if "--timingCacheFile" in given:
    cache = pathlib.Path(given["--timingCacheFile"])
    cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"+")
pathlib.Path(given["--saveEngine"]).write_text(json.dumps(sorted(given)))
print({MEASURED!r}.split("\\n", 1)[1].rsplit("&&&&", 1)[0], end="")
print("&&&& PASSED", head)
"""
    tool = folder / "trtexec"
    tool.write_text(program)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return tool


class TestBuild:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "work").mkdir()
        shutil.copy(fixture_path(OPERATOR), tmp_path / "work" / "vit.onnx")
        monkeypatch.chdir(tmp_path / "work")
        return tmp_path / "work"

    def test_an_engine_its_description_and_a_measurement(self, folder: Path, tmp_path: Path) -> None:
        tool = write_tool(tmp_path / "bin", "101600")
        (folder / "k.cache").write_bytes(b"older")
        settings = EngineSettings(1, 2, 4, fp16=True, timing_cache=Path("k.cache"))
        result = build_engine("vit.onnx", settings=settings, trtexec=tool)
        assert listing(folder) == ["k.cache", "vit.onnx", "vit.plan", "vit.plan.json"]
        assert "--fp16" in json.loads((folder / "vit.plan").read_text())
        assert (folder / "k.cache").read_bytes() == b"older+"
        assert (result.builder, result.tensorrt, result.gpu) == ("trtexec", "10.16.0", "NVIDIA Test 100")
        assert (result.precision, result.strongly_typed) == ("float32, FP16 allowed", False)
        assert result.measured is not None
        described = json.loads((folder / "vit.plan.json").read_text())
        assert described["measured"]["times"][0]["median"] == result.measured.times[0].median == pytest.approx(8e-4)

    @pytest.mark.usefixtures("folder")
    def test_version_11_sends_to_convert(self, tmp_path: Path) -> None:
        tool = write_tool(tmp_path / "bin", "110400")
        assert build_engine("vit.onnx", trtexec=tool).strongly_typed
        with pytest.raises(OptionError, match=r"run `corp-onnx convert vit\.onnx --fp16` first"):
            build_engine("vit.onnx", "other.plan", settings=EngineSettings(fp16=True), trtexec=tool)

    @pytest.mark.usefixtures("folder")
    @pytest.mark.parametrize(
        ("settings", "names"),
        [
            (EngineSettings(library="tensorrt-rtx", gpus=("SM86",)), "--library and --gpu"),
            (EngineSettings(explain=True), "--explain"),
        ],
    )
    def test_what_belongs_to_the_libraries(self, settings: EngineSettings, names: str) -> None:
        sentence = rf"^{names} and --trtexec: the tool builds for the GPU that it runs on, .* leave one of them out\.$"
        with pytest.raises(OptionError, match=sentence):
            build_engine("vit.onnx", settings=settings, trtexec=True)

    def test_a_failure_leaves_nothing(self, folder: Path, tmp_path: Path) -> None:
        tool = write_tool(tmp_path / "bin", "101600", fails=True)
        sentence = r"vit\.onnx: trtexec 10\.16\.0 failed \(Engine could not be created from network\)\."
        with pytest.raises(CheckFailedError, match=sentence):
            build_engine("vit.onnx", settings=EngineSettings(timing_cache=Path("k.cache")), trtexec=tool)
        assert listing(folder) == ["vit.onnx"]

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child of its parent's end")
    def test_a_killed_run_takes_it_along(self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """It builds for minutes; and what it began is gone with the next run."""
        tool, pid = write_tool(tmp_path / "bin", "101600"), tmp_path / "pid"
        whole = tool.read_text()
        saving = 'pathlib.Path(given["--saveEngine"]).write_text('
        waiting = f"import os, time; pathlib.Path({str(pid)!r}).write_text(f'{{os.getpid()}} '); time.sleep(120)\n"
        tool.write_text(whole.replace(saving, f'{saving}"half")\n{waiting}{saving}'))
        command = ["engine", "vit.onnx", "-o", "a.plan", "--trtexec", str(tool)]
        deadline = time.monotonic() + 60
        with subprocess.Popen([sys.executable, "-m", "corp_onnx", *command], env=environment()) as run:
            while not pid.exists() or not pid.read_text().endswith(" "):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            run.kill()
        while is_running(int(pid.read_text())):
            assert time.monotonic() < deadline, "trtexec outlives the run"
            time.sleep(0.02)
        assert any(name.startswith(MARK) for name in listing(folder))
        tool.write_text(whole)
        assert main(command) == 0, capfd.readouterr().err
        assert listing(folder) == ["a.plan", "a.plan.json", "vit.onnx"]

    def test_the_command(self, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        tool = write_tool(tmp_path / "bin", "101600")
        assert main(["engine", "vit.onnx", "-o", "a.plan", "--trtexec", str(tool)]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[2] == (
            "trtexec, median at the shape it chose: Latency 0.800 ms, Enqueue Time 0.250 ms, "
            "GPU Compute Time 0.500 ms; 1250.0 batches/s"
        )
        assert listing(folder) == ["a.plan", "a.plan.json", "vit.onnx"]

    @pytest.mark.usefixtures("folder")
    def test_the_command_without_a_path_looks_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        write_tool(tmp_path / "bin", "101600")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        assert main(["engine", "vit.onnx", "--trtexec", "-o", "a.plan"]) == 0
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr("corp_onnx.tensorrt.trtexec.USUAL_PLACES", ())
        capfd.readouterr()
        assert main(["engine", "vit.onnx", "-o", "b.plan", "--trtexec"]) == 2
        assert capfd.readouterr().err.startswith("corp-onnx: trtexec is neither on PATH nor in ")
