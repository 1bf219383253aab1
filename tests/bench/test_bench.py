"""`bench_models`: real small models, and made-up ones on a clock that the test owns."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from devices import FakeNative, FakeValue
from samples import DEMO, FIXED, OPERATOR, TEXT, fixture_path

from corp_onnx.bench import bench
from corp_onnx.bench.bench import bench_models
from corp_onnx.bench.candidates import BenchModel, Candidate
from corp_onnx.bench.session import OnnxOpened, OnnxSubject
from corp_onnx.bench.subjects import read_subject
from corp_onnx.bench.values import BenchResult
from corp_onnx.errors import ModelError, OptionError
from corp_onnx.inspect import inspect_model
from corp_onnx.latency.turns import Schedule
from corp_onnx.report.bench import print_bench
from corp_onnx.results import to_json
from corp_onnx.run.sessions import Session

ONCE = Schedule(repeats=1, warmup=1)
IMAGE = (3, 8, 8)


@dataclass
class FakeSubject:
    """Costs `seconds` an image, and `transfer` more where its memory is not the host's; opens where it may."""

    facts: BenchModel
    machine: FakeMachine
    seconds: float
    transfer: float | None = None
    missing: tuple[str, ...] = ()
    pace: dict[str, float] = field(default_factory=dict)
    """Times as long on a provider."""
    provider: str = "cpu"

    def open(self, provider: str, threads: int | None) -> FakeSubject:
        if provider in self.missing:
            raise OptionError(f"provider '{provider}' could not be started.")
        self.machine.opened.append((self.facts.path, provider, threads))
        return replace(self, provider=provider)

    def bind(self, n_images: int) -> Candidate:
        seconds = n_images * self.seconds * self.pace.get(self.provider, 1)
        if self.provider.startswith("openvino:"):
            precision = self.provider.split(":")[1]
            return Candidate(self.machine.spend(seconds), precision=precision, settings={"NUM_STREAMS": "1"})
        if self.transfer is None:
            return Candidate(self.machine.spend(seconds))
        return Candidate(self.machine.spend(seconds + self.transfer), self.machine.spend(seconds))


@dataclass
class FakeMachine:
    now: float = 0.0
    opened: list[tuple[str, str, int | None]] = field(default_factory=list)
    subjects: dict[str, FakeSubject] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def spend(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run

    def add(self, name: str, seconds: float, macs: int | None = 100, **options: Any) -> str:
        facts = BenchModel(name, "0" * 64, 1, "float32", macs, None, (IMAGE,), is_engine=False)
        own = {k: options.pop(k) for k in ("transfer", "missing", "pace") if k in options}
        self.subjects[name] = FakeSubject(replace(facts, **options), self, seconds, **own)
        return name

    def bench(self, *names: str, **options: Any) -> BenchResult:
        options = {"providers": ["cpu"], "schedule": Schedule(repeats=5)} | options
        return bench_models(names, clock=self.clock, **options)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    found = FakeMachine()
    monkeypatch.setattr(bench, "read_subject", lambda path: found.subjects[str(path)])
    return found


class TestFigures:
    def test_speed_beside_what_macs_promise(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        machine.add("b", 0.25, macs=50)
        result = machine.bench("a", "b", batches=[1, 8])
        assert [(r.model, r.batch, r.rounds) for r in result.rows] == [
            ("a", 1, 5),
            ("b", 1, 5),
            ("a", 8, 5),
            ("b", 8, 5),
        ]
        first, second = result.rows[2:]
        assert first.speed.latency.p50 == pytest.approx(3.2)
        assert first.speed.throughput == pytest.approx(2.5)
        assert (first.speed.speedup, first.ideal, first.achieved, first.resident) == (None, None, None, None)
        assert second.speed.speedup is not None
        assert second.speed.speedup.median == pytest.approx(1.6)
        assert second.ideal == 2.0
        assert second.achieved == pytest.approx(0.8)

    @pytest.mark.parametrize("change", [{"precision": "int8"}, {"macs": None}])
    def test_macs_promise_nothing_at_another_precision(self, change: dict[str, Any], machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        machine.add("b", 0.2, **change)
        row = machine.bench("a", "b").rows[1]
        assert row.speed.speedup is not None
        assert (row.ideal, row.achieved) == (None, None)

    def test_transfers_are_apart_and_what_is_achieved_is_without_them(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4, transfer=0.6)
        machine.add("b", 0.2, macs=50, transfer=0.6)
        row = machine.bench("a", "b", batches=[1]).rows[1]
        assert row.speed.latency.p50 == pytest.approx(0.8)
        assert row.speed.speedup is not None
        assert row.speed.speedup.median == pytest.approx(1.25)
        assert row.resident is not None
        assert row.resident.latency.p50 == pytest.approx(0.2)
        assert row.resident.speedup is not None
        assert row.resident.speedup.median == pytest.approx(2.0)
        assert row.achieved == pytest.approx(1.0)

    def test_engines_are_compared_among_themselves(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        machine.add("a.plan", 0.1, macs=None, is_engine=True)
        machine.add("b.plan", 0.05, macs=None, is_engine=True)
        result = machine.bench("a", "a.plan", "b.plan", batches=[1])
        assert [(r.model, r.provider) for r in result.rows] == [
            ("a", "cpu"),
            ("a.plan", "engine"),
            ("b.plan", "engine"),
        ]
        assert [r.speed.speedup is None for r in result.rows] == [True, True, False]
        assert result.environment.provider == "cpu, engine"


class TestAcrossRuntimes:
    """`cpu` and OpenVINO take turns together; the machine is made up, so nothing of OpenVINO is needed."""

    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = ("openvino:f32", "openvino:bf16")
        monkeypatch.setattr(bench, "list_places", lambda name: both if name == "openvino" else (name,))
        monkeypatch.setattr(bench, "is_installed", lambda: True)
        monkeypatch.setattr(bench, "find_version", lambda: "9.9")

    def test_the_first_model_on_the_first_runtime_is_the_baseline_of_all(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4, pace={"openvino:bf16": 0.5})
        machine.add("b", 0.2, macs=50, pace={"openvino:bf16": 0.5})
        result = machine.bench("a", "b", batches=[1], providers=["cpu", "openvino"])
        rows = {(r.provider, r.model): r for r in result.rows}
        assert list(rows) == [(p, m) for p in ("cpu", "openvino:f32", "openvino:bf16") for m in "ab"]
        assert rows["cpu", "b"].across is None
        for place, speedup in (("openvino:f32", 2.0), ("openvino:bf16", 4.0)):
            row = rows[place, "b"]
            assert row.across is not None
            assert (row.across.provider, row.across.model) == ("cpu", "a")
            assert row.across.speedup.median == pytest.approx(speedup)
            assert row.speed.speedup is not None
            assert row.speed.speedup.median == pytest.approx(2.0)  # over the same runtime
            assert row.achieved == pytest.approx(1.0)
            assert row.precision == place.split(":")[1]
        assert rows["openvino:f32", "a"].speed.speedup is None
        assert result.session.openvino == {"NUM_STREAMS": "1"}
        assert result.environment.versions["openvino"] == "9.9"

    def test_they_share_their_rounds(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        said: list[tuple[str, int, int]] = []
        machine.bench(
            "a", batches=[2], providers=["openvino:bf16", "cpu"], schedule=Schedule(seconds=16, warmup=1),
            progress=lambda *now: said.append(now),
        )  # fmt: skip
        name = "openvino:bf16 + cpu, batch 2"
        assert said[0] == (name, 0, 0)
        assert said[-1] == (name, 20, 20)  # 16 seconds for each of two, 1.6 seconds a round
        assert {at[0] for at in said} == {name}

    def test_devices_have_rounds_of_their_own(self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.add("a", 0.4)
        monkeypatch.setattr(bench, "resolve_provider", lambda name: name)
        result = machine.bench("a", batches=[1], providers=["cuda", "cpu", "openvino:f32"])
        assert [row.across is None for row in result.rows] == [True, True, False]
        across = result.rows[2].across
        assert across is not None
        assert across.provider == "cpu"

    def test_what_it_refuses_is_left_out_by_default_only(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4, missing=("openvino:bf16",))
        result = machine.bench("a", batches=[1, 2], providers=None)
        assert [row.provider for row in result.rows] == ["cpu", "openvino:f32"] * 2
        assert result.notes == ("not measured: provider 'openvino:bf16' could not be started.",)
        with pytest.raises(OptionError, match="'openvino:bf16' could not be started"):
            machine.bench("a", providers=["cpu", "openvino"])

    def test_the_table(self, machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
        machine.add("dense.onnx", 0.4)
        machine.add("small.onnx", 0.25, macs=50, pace={"openvino:f32": 0.5}, precision="int8")
        print_bench(
            machine.bench("dense.onnx", "small.onnx", batches=[2], threads=1, providers=["cpu", "openvino:f32"])
        )
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if not line.startswith("─")]
        assert lines[4] == "openvino:f32, batch 2, 5 rounds"
        assert lines[8:14] == [
            "products computed in: f32",
            "across runtimes, batch 2: over dense.onnx on cpu, in the same rounds",
            "model runtime p50 speed-up",
            "dense.onnx openvino:f32 800.00 1.00 (1.00-1.00)",
            "small.onnx openvino:f32 250.00 3.20 (3.20-3.20)",
            lines[13],
        ]
        assert "; openvino 9.9, compiled for the batch, NUM_STREAMS 1; " in lines[-1]


class TestChoices:
    def test_the_same_model_twice_is_a_comparison(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        rows = machine.bench("a", "a", batches=[1]).rows
        assert rows[1].speed.speedup is not None
        assert rows[1].speed.speedup.median == pytest.approx(1.0)

    def test_each_provider_and_batch_once(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        result = machine.bench("a", batches=[4, 2, 4], providers=["cpu", "cpu"], threads=3)
        assert [r.batch for r in result.rows] == [4, 2]
        assert machine.opened == [("a", "cpu", 3)]
        assert (result.session.threads, result.environment.threads) == (3, 3)

    def test_a_fixed_batch_sets_it_for_all(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        machine.add("b", 0.2, batch=4)
        result = machine.bench("a", "b", batches=[1, 8])
        assert [r.batch for r in result.rows] == [4, 4]
        assert result.notes == ("b has a fixed batch of 4, so everything is measured there.",)
        assert machine.bench("b", batches=[4]).notes == ()

    def test_a_provider_that_is_listed_and_does_not_start(
        self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By default it is left out with a note; asked for, it is an error."""
        machine.add("a", 0.4, missing=("cuda",))
        known = ["CUDAExecutionProvider", "CPUExecutionProvider", "AzureExecutionProvider"]
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: known)
        result = machine.bench("a", providers=None)
        assert {r.provider for r in result.rows} == {"cpu"}
        assert result.notes == ("not measured: provider 'cuda' could not be started.",)
        with pytest.raises(OptionError, match="'cuda' could not be started"):
            machine.bench("a", providers=["cuda"])

    def test_progress_names_what_is_measured(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        said: list[tuple[str, int, int]] = []
        machine.bench("a", batches=[8], schedule=Schedule(repeats=2), progress=lambda *now: said.append(now))
        assert said == [("cpu, batch 8", 0, 0), ("cpu, batch 8", 1, 2), ("cpu, batch 8", 2, 2)]


class TestRefused:
    def test_other_inputs(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        machine.add("b", 0.4, inputs=((3, 16, 16), (5,)))
        sentence = r"a takes \[batch, 3, 8, 8\] and b takes \[batch, 3, 16, 16\] and \[batch, 5\]; only models with"
        with pytest.raises(ModelError, match=sentence):
            machine.bench("a", "b")

    def test_different_fixed_batches(self, machine: FakeMachine) -> None:
        machine.add("a", 0.4, batch=1)
        machine.add("b", 0.4, batch=8)
        with pytest.raises(ModelError, match=r"different fixed batch sizes \(a takes 1 and b takes 8 at a time\)"):
            machine.bench("a", "b")

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"batches": []}, "give at least one batch size"),
            ({"batches": [0]}, "batch size must be at least 1, found 0"),
            ({"threads": 0}, "--threads must be at least 1; found 0"),
            ({"threads": 1_000_000}, "--threads must be at most 1024; found 1000000"),
            ({"providers": ["npu"]}, "provider 'npu' is not available here; this onnxruntime has: cpu"),
            ({"providers": []}, "no provider: give one or more of cpu, cuda, .*, openvino"),
        ],
    )
    def test_numbers_and_names(self, options: dict[str, Any], sentence: str, machine: FakeMachine) -> None:
        machine.add("a", 0.4)
        with pytest.raises(OptionError, match=sentence):
            machine.bench("a", **options)

    def test_no_model(self) -> None:
        with pytest.raises(OptionError, match="at least one model"):
            bench_models([])

    def test_missing_and_damaged_files(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"nothing\.onnx: no such file"):
            bench_models([tmp_path / "nothing.onnx"])
        (tmp_path / "m.onnx").write_bytes(fixture_path(OPERATOR).read_bytes()[:9000])
        with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime can not load it"):
            bench_models([tmp_path / "m.onnx"])


class TestRealModels:
    def test_result_and_json(self) -> None:
        result = bench_models([DEMO, DEMO], batches=[1, 2], providers=["cpu"], schedule=Schedule(repeats=3), threads=1)
        assert len(result.rows) == 4
        for row in result.rows:
            latency = row.speed.latency
            assert 0 < latency.q1 <= latency.p50 <= latency.q3
            assert latency.p50 <= latency.p90 <= latency.p99
            assert row.speed.throughput == row.batch / latency.p50
        found = json.loads(to_json(result))
        assert found["schema"] == 1
        assert found["models"][0]["macs"] == inspect_model(DEMO).model.macs
        assert found["session"]["threads"] == 1
        assert found["environment"]["versions"]["onnxruntime"]

    def test_text_models(self) -> None:
        """Three integer inputs whose length is dynamic."""
        result = bench_models([fixture_path(TEXT)], batches=[2], providers=["cpu"], schedule=ONCE)
        assert len(result.models[0].inputs) == 3
        assert len(result.rows) == 1

    def test_a_fixed_batch(self) -> None:
        result = bench_models([fixture_path(FIXED)], providers=["cpu"], schedule=ONCE)
        assert [row.batch for row in result.rows] == [1]
        assert "has a fixed batch of 1, so it is measured there" in result.notes[0]

    @pytest.mark.parametrize(
        ("name", "precision"),
        [("timm_vit_ts17_fp16", "float16"), ("timm_vit_ts17_int8dynamic", "int8"), ("timm_vit_ts17_qdq", "int8")],
    )
    def test_precision_and_macs_of_small_numbers(self, name: str, precision: str) -> None:
        """The three come from one model; integer products are products."""
        facts = read_subject(fixture_path(name)).facts
        assert (facts.precision, facts.macs) == (precision, 59120)

    def test_bfloat16_is_said_to_run_as_its_twin(self) -> None:
        path = fixture_path("timm_vit_ts17_bf16")
        result = bench_models([path], batches=[1], providers=["cpu"], schedule=ONCE)
        assert result.notes == (f"{path} is bfloat16 and runs as its float32 twin.",)

    def test_different_images_are_refused(self) -> None:
        with pytest.raises(ModelError, match="only models with the same inputs can be compared"):
            bench_models([DEMO, fixture_path(OPERATOR)], schedule=ONCE)


class TestDevice:
    def test_each_way_of_running_is_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        log: list[str] = []
        monkeypatch.setattr("onnxruntime.OrtValue", FakeValue)
        monkeypatch.setattr(FakeValue, "log", log)
        subject = read_subject(fixture_path(OPERATOR))
        assert isinstance(subject, OnnxSubject)
        candidate = OnnxOpened(subject, Session(FakeNative(log), "m.onnx"), "cuda").bind(2)
        assert candidate.resident is not None
        candidate.run()
        candidate.resident()
        assert log == ["copy", "run to cpu", "wait", "run to cuda", "wait"]

    @pytest.mark.gpu
    def test_cuda(self) -> None:
        result = bench_models([DEMO], batches=[8], providers=["cuda"], schedule=Schedule(repeats=20))
        assert result.rows[0].resident is not None
        assert result.rows[0].resident.latency.p50 < result.rows[0].speed.latency.p99


def test_the_table(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.add("dense.onnx", 0.4, transfer=0.6)
    machine.add("small.onnx", 0.25, macs=50, transfer=0.6)
    print_bench(machine.bench("dense.onnx", "small.onnx", batches=[2], threads=1))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if not line.startswith("─")]
    assert lines[0] == "cpu, batch 2, 5 rounds"
    assert lines[1] == "with transfers:"
    assert lines[2] == "model p50 p99 images/s speed-up of ideal"
    assert lines[3] == "dense.onnx 1400.00 1400.00 1.4 - -"
    assert lines[4] == "small.onnx 1100.00 1100.00 1.8 1.27 (1.27-1.27) 64% of 2.00"
    assert lines[5] == "on the device:"
    assert lines[8].endswith(" 1.60 (1.60-1.60) 80% of 2.00")
    assert lines[11].startswith("models in turns, 3 rounds of warm-up; onnxruntime ")
    assert " 1 thread, graph optimisation all, sequential; " in lines[11]
