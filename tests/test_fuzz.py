"""The attack itself: every way spoils what it is given, a seed is a case, and the verdicts are told apart."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from samples import ROOT, environment

TOOLS = ROOT / "tools"

TRACE = 'Traceback (most recent call last)\n  File "/x/corp_onnx/run/probe.py", line 3, in _types\nValueError: no\n'


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(TOOLS)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fuzz"]:
        del sys.modules[name]


def spoilers() -> list[str]:
    sys.path.insert(0, str(TOOLS))
    try:
        from fuzz.models import SPOILERS
    finally:
        sys.path.remove(str(TOOLS))
    return list(SPOILERS)


def scenes() -> list[str]:
    sys.path.insert(0, str(TOOLS))
    try:
        from fuzz.plan import SCENES
    finally:
        sys.path.remove(str(TOOLS))
    return list(SCENES)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made(code: int | None = 0, err: str = "", out: str = "", **changes: object):
    from fuzz.values import Run

    return replace(Run(code, out, err, 1.0, {"work/m.onnx": "1"}, {"work/m.onnx": "1"}), **changes)


class TestModels:
    @pytest.mark.long
    @pytest.mark.parametrize("name", spoilers())
    def test_it_changes_the_file_and_a_seed_is_a_case(self, name: str, tmp_path: Path) -> None:
        from fuzz.models import SMALL, fixture_path, spoil_model

        for fixture in SMALL:
            written = []
            for turn in ("first", "second"):
                folder = tmp_path / fixture / turn
                folder.mkdir(parents=True)
                spoil_model(name, fixture, 3, folder / "m.onnx")
                # absolute names of data, which hold the folder
                written.append(
                    (folder / "m.onnx").read_bytes().replace(turn.encode(), b"").replace(str(tmp_path).encode(), b"")
                )
            assert (tmp_path / fixture / "first" / "m.onnx").read_bytes() != fixture_path(fixture).read_bytes()
            assert (
                len(written[0]) - len(written[1]) in (0, -1, 1) if name == "odd_location" else written[0] == written[1]
            )

    def test_there_are_many(self) -> None:
        names = spoilers()
        assert len(set(names)) == len(names) >= 60

    def test_every_name_is_one_thing(self) -> None:
        from fuzz.plan import NAMES

        assert len(set(NAMES)) == len(NAMES)

    @pytest.mark.parametrize("name", ["insert_identity", "insert_transposes", "store_typed", "wrap_in_function"])
    def test_what_is_called_legal_computes_the_same(self, name: str, tmp_path: Path) -> None:
        from fuzz import oracle
        from fuzz.models import SMALL, fixture_path, spoil_model

        for fixture in SMALL:
            spoil_model(name, fixture, 0, tmp_path / "m.onnx")
            assert oracle.main(str(fixture_path(fixture)), str(tmp_path / "m.onnx"), "1e-5") == oracle.SAME


class TestWhole:
    def test_a_prune_leaves_its_whole_copy_as_well(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from fuzz import oracle, whole
        from fuzz.models import SMALL, copy_model, write_arrays

        monkeypatch.setattr(whole.problem, "plan_rewrite", whole.problem.plan_rewrite)  # put back afterwards
        model, pruned, kept = tmp_path / "m.onnx", tmp_path / "p.onnx", tmp_path / "whole.onnx"
        copy_model(SMALL[0], model)
        write_arrays(SMALL[0], tmp_path / "calib.npz")
        whole.keep_whole(kept)
        arguments = ["--preset", "paper", "--calib", str(tmp_path / "calib.npz"), "-o", str(pruned)]
        with pytest.raises(SystemExit, match=r"^0$"):
            sys.exit(whole.main(["prune", str(model), *arguments]))
        assert oracle.main(str(model), str(kept), "1e-4") == oracle.SAME
        assert oracle.main(str(model), str(pruned), "1e-4") == oracle.DIFFERENT


class TestScenes:
    @pytest.mark.long
    @pytest.mark.parametrize("name", scenes())
    def test_it_is_a_command_of_the_package(self, name: str, tmp_path: Path) -> None:
        from fuzz import images
        from fuzz.models import PHOTO_FIXTURE, copy_model, seed_of, write_arrays
        from fuzz.plan import SCENES

        from corp_onnx.cli.main import cli

        for seed in range(3):
            work = tmp_path / str(seed)
            work.mkdir()
            images.write_photos(work / "photos")
            copy_model(PHOTO_FIXTURE, work / "m.onnx")
            write_arrays(PHOTO_FIXTURE, work / "calib.npz")
            command = SCENES[name](work, seed_of(name, seed))
            assert command.arguments[0] in cli.commands
            assert SCENES[name].__doc__, "a scene says what it is"


class TestVerdict:
    REFUSAL = "corp-onnx: m.onnx: no such file. Give the path of an .onnx file.\n"

    def test_done(self) -> None:
        from fuzz.values import DONE
        from fuzz.verdict import judge

        run = made(after={"work/m.onnx": "1", "work/p.onnx": "2"}, err="warning: few images.\n")
        assert judge(run, ("p.onnx",), ("p.onnx",)) == (DONE, "")

    @pytest.mark.parametrize("code", [1, 2])
    def test_refused(self, code: int) -> None:
        from fuzz.values import REFUSED
        from fuzz.verdict import judge

        assert judge(made(code, self.REFUSAL)) == (REFUSED, "")
        assert judge(made(code, "warning: few images.\n" + self.REFUSAL)) == (REFUSED, "")
        assert judge(made(2, "Usage: corp-onnx prune\nTry --help.\n\nError: no such option.\n")) == (REFUSED, "")

    @pytest.mark.parametrize(("changes", "reason"), [
        ({"code": None}, "hangs"),
        ({"code": 1, "err": TRACE}, "traceback: run/probe.py _types ValueError"),
        ({"code": -11}, "ended by signal 11"),
        ({"code": 120}, "exit code 120"),
        ({"orphans": ("trtexec",)}, "leaves a process running: trtexec"),
        ({"out": "a\x1b[31mb"}, r"control character '\x1b' on stdout"),
        ({"code": 2, "err": "corp-onnx: a\x9bb.\n"}, r"control character '\x9b' on stderr"),
        ({"code": 1, "err": "corp-onnx: it failed its 'padding' check. This is a fault of corp-onnx.\n"},
         "blames itself for its check padding"),
        ({"code": 2, "err": "corp-onnx: ONNX Runtime is not installed: do.\n"}, "says that ONNX Runtime is not"),
        ({"code": 1}, "exit code 1 with 0 lines on stderr: ''"),
        ({"code": 2, "err": REFUSAL + "more\n"}, "exit code 2 with 2 lines on stderr"),
        ({"code": 2, "err": "no prefix\n"}, "exit code 2 with 1 lines on stderr: 'no prefix'"),
        ({"code": 2, "err": REFUSAL, "after": {"work/m.onnx": "1", "work/p.onnx": "2"}},
         "refused, and left work/p.onnx"),
        ({"code": 2, "err": REFUSAL, "after": {}}, "refused, and removed work/m.onnx"),
        ({"after": {"work/m.onnx": "2", "work/p.onnx": "2"}}, "done, and changed work/m.onnx"),
        ({"after": {"work/m.onnx": "1", "work/0.p.onnx": "2"}}, "done, and left work/0.p.onnx"),
        ({}, "done, and there is no p.onnx"),
        ({"err": "Exception ignored in\n", "after": {"work/m.onnx": "1", "work/p.onnx": "2"}}, "done, and stderr says"),
    ])  # fmt: skip
    def test_fault(self, changes: dict[str, object], reason: str) -> None:
        from fuzz.values import FAULT
        from fuzz.verdict import judge

        verdict, found = judge(made(**changes), ("p.onnx",), ("p.onnx",))
        assert verdict == FAULT
        assert found.startswith(reason)

    def test_a_fault_that_is_being_mended_is_known_by_its_reason(self) -> None:
        from fuzz.known import find_point

        known = ((9, "run/probe.py _types"),)
        assert find_point("traceback: run/probe.py _types ValueError", known) == 9
        assert find_point("traceback: run/probe.py other ValueError", known) == 0

    def test_summary(self) -> None:
        from fuzz.journal import summarise
        from fuzz.values import DONE, FAULT, Case, Finding

        case = Case("close_cycle", 7, "vit", "prune")
        findings = [Finding(case, DONE), Finding(case, FAULT, "hangs"), Finding(case, FAULT, "old", known=9)]
        assert summarise(findings) == (
            "3 cases: 1 done and verified, 0 refused in one sentence, 2 fault (1 of them known)\n"
            "   1 x hangs\n"
            "       python tools/run_fuzz.py --case close_cycle --seed 7 --fixture vit --verb prune\n"
            "   1 x old (point 9)\n"
            "       python tools/run_fuzz.py --case close_cycle --seed 7 --fixture vit --verb prune"
        )


class TestKills:
    def judge(self, after: dict[str, str], code: int = 143, number: str = "SIGTERM") -> str:
        from signal import Signals

        from fuzz import kills
        from fuzz.verbs import VERBS

        before = {"work/m.onnx": "1", "work/p.onnx": "old", "work/p.report.json": "old"}
        new = {"work/p.onnx": "new", "work/p.report.json": "other"}
        run = made(code, before=before, after=before | after)
        return kills._judge_stopped(run, VERBS["prune"], new, Signals[number])

    def test_old_or_new_and_nothing_between(self) -> None:
        assert self.judge({}) == ""
        assert self.judge({"work/p.onnx": "new", "work/p.report.json": "newer"}) == ""
        assert self.judge({"work/p.onnx": "half"}) == "changed work/p.onnx, which is neither old nor new"
        assert self.judge({"work/m.onnx": "2"}) == "changed work/..."

    def test_only_a_kill_may_leave_something_hidden(self) -> None:
        hidden = {"work/.corp-onnx-partial-01": "folder"}
        assert self.judge(hidden, -9, "SIGKILL") == ""
        assert self.judge(hidden) == "left work/.corp-onnx-partial-..."
        assert self.judge({}, 1) == "exit code 1"

    def test_an_interrupt_of_python_itself_is_not_ours(self) -> None:
        from signal import SIGINT

        from fuzz import kills
        from fuzz.verbs import VERBS

        outside = made(1, 'Traceback (most recent call last):\n  File "<frozen site>", line 1\nKeyboardInterrupt\n')
        ours = made(1, TRACE.replace("(most recent call last)", "(most recent call last):"))
        assert kills._judge_stopped(outside, VERBS["inspect"], {}, SIGINT) == ""
        assert kills._judge_stopped(ours, VERBS["inspect"], {}, SIGINT) == "traceback"


PROGRAM = """
import atexit, os, resource, sys, tempfile
print(sys.argv[1:], os.getcwd() == sys.path[0], sorted(k for k in os.environ if k in ("HOME", "ORT_DISABLE_TELEMETRY")))
print(os.getsid(0) == os.getpid(), tempfile.gettempdir() == os.environ["TMPDIR"], sys.stdin.read() == "")
print([path for path in sys.path if path.endswith("tools")], __name__)
atexit.register(print, "at exit")
if sys.argv[1] == "crash":
    os.kill(os.getpid(), 11)
sys.exit(3)
"""


class TestForks:
    @pytest.fixture
    def scratch(self, tmp_path: Path) -> Path:
        from fuzz.models import PHOTO_FIXTURE, copy_model
        from fuzz.runner import make_scratch

        scratch = make_scratch(tmp_path / "case")
        copy_model(PHOTO_FIXTURE, scratch / "work" / "m.onnx")
        (scratch / "work" / "odd.py").write_text(PROGRAM)
        return scratch

    @pytest.mark.long
    @pytest.mark.parametrize("argument", ["ends", "crash"])
    def test_a_fork_is_as_a_new_process(self, argument: str, scratch: Path) -> None:
        """Arguments, folder, environment, streams, the end of the interpreter and a signal."""
        from fuzz.runner import run_program, start_server

        with start_server() as server:
            new, *forked = (run_program("odd", [argument], scratch, one) for one in (None, server, server))
        assert new[0] == (3 if argument == "ends" else -11)
        assert ("at exit" in new[1]) == (argument == "ends")
        assert forked == [new, new]

    @pytest.mark.long
    @pytest.mark.parametrize(
        "arguments", [("inspect", "m.onnx", "--json"), ("inspect", b"n\xff.onnx"), ("inspect",), ("--version",)]
    )
    def test_a_command_says_the_same(self, arguments: tuple[str | bytes, ...], scratch: Path) -> None:
        from fuzz.runner import run_command, start_server
        from fuzz.values import Command

        with start_server() as server:
            new, forked = (run_command(Command(arguments), scratch, one) for one in (None, server))
        assert (forked.code, forked.out, forked.err) == (new.code, new.out, new.err)
        assert forked.before == forked.after

    def test_what_is_about_the_process_itself_is_new(self) -> None:
        from signal import SIGTERM

        from fuzz.values import Command

        plain = Command(("inspect",))
        assert not plain.new
        for change in ({"environment": {"HOME": "/"}}, {"memory": 1}, {"file_size": 1}, {"stop": (1.0, SIGTERM)}):
            assert replace(plain, **change).new


class TestOracle:
    def test_compare(self) -> None:
        from fuzz.oracle import compare

        one = np.array([1.0, -2.0, np.nan], np.float32)
        assert compare(one, one, 0.0) == ""
        assert compare(one, one[:2], 1.0) == "shape [2] instead of [3]"
        assert compare(one, np.array([1.0, -2.0, 0.0], np.float32), 1.0) == "other numbers are not finite"
        assert compare(one, one + np.float32(0.1), 1e-3) == "by 0.05 of its largest"
        assert compare(one, one + np.float32(0.1), None) == ""

    def test_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from fuzz import oracle
        from fuzz.models import PHOTO_FIXTURE, fixture_path

        source = fixture_path(PHOTO_FIXTURE)
        model = onnx.load(source)
        last = next(n for n in reversed(model.graph.node) if len(n.input) > 1)
        stored = next(t for t in model.graph.initializer if t.name in last.input)
        stored.raw_data = bytes(len(stored.raw_data))
        onnx.save(model, tmp_path / "other.onnx")
        (tmp_path / "none.onnx").write_bytes(b"none")
        assert oracle.main(str(source), str(source), "0") == oracle.SAME
        assert oracle.main(str(source), str(tmp_path / "other.onnx"), "1e-3") == oracle.DIFFERENT
        assert "differs" in capsys.readouterr().out
        assert oracle.main(str(source), str(tmp_path / "other.onnx"), "shapes") == oracle.SAME
        assert oracle.main(str(tmp_path / "none.onnx"), str(source), "0") == oracle.UNKNOWN
        assert oracle.main(str(source), str(tmp_path / "none.onnx"), "0") == oracle.DIFFERENT


@pytest.mark.long
def test_the_program_repeats_a_case(tmp_path: Path) -> None:
    """As a person starts it: from the command that a fault is printed with."""
    words = ["--case", "missing_outside", "--seed", "1", "--fixture", "hf_vit_ts14_eager", "--verb", "inspect"]
    command = [sys.executable, "tools/run_fuzz.py", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "which is not beside the model" in done.stdout
    assert "1 cases: 0 done and verified, 1 refused in one sentence, 0 fault\n" in done.stdout
    assert content(tmp_path) == {}


@pytest.mark.slow
def test_so_many_of_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In two processes; what does not apply to a fixture does not count."""
    spec = importlib.util.spec_from_file_location("run_fuzz", TOOLS / "run_fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.main(["--count", "models=3", "inputs=2", "--jobs", "2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "models: 3 cases: " in said
    assert "inputs: 2 cases: " in said
    with pytest.raises(SystemExit):
        program.main(["--count", "modles=5"])


def test_the_short_list_is_fixed() -> None:
    from fuzz.plan import NAMES, list_short

    assert list_short() == list_short()
    assert {case.name for case in list_short()} <= set(NAMES)
    assert all(case.fixture for case in list_short())


def test_the_page_counts_the_ways() -> None:
    """docs/reliability.md, in the order of its table."""
    from fuzz import arrays, images, models, places, texts

    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    counts = [len(models.IN_PLACE), len(models.BESIDE), len(models.BYTES)]
    counts += [len(room.SCENES) for room in (images, arrays, texts, places)]
    rows = [line.split(" | ") for line in page.splitlines() if line.endswith(".py` |")]
    assert [int(row[1]) for row in rows if row[1].isdigit()] == counts
