"""A run that is stopped, at several moments: the right exit code, no traceback, and nothing at the destination."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samples import OPERATOR, environment, fixture_path, listing, without_warnings, write_photos

from corp_onnx.cli import main
from corp_onnx.run.tapped import Tapped
from corp_onnx.staging import MARK

ARGUMENTS = ["prune", "vit.onnx", "--calib", "photos", "--preset", "paper", "-o", "new/small.onnx"]
DONE = ["photos", "vit.onnx"]

PAUSED = """
import importlib, sys, time
from corp_onnx import cli
(room, moment), arguments = sys.argv[1].split(":"), sys.argv[2:]
module = importlib.import_module(f"corp_onnx.{room}")
real = getattr(module, moment)
def paused(*args, **kwargs):
    result = real(*args, **kwargs)
    print("here", flush=True)
    time.sleep(60)
    return result
setattr(module, moment, paused)
sys.exit(cli.main(arguments))
"""
"""The command line, which waits where it has done one step."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(fixture_path(OPERATOR), tmp_path / "vit.onnx")
    write_photos(tmp_path / "photos", 8)
    return tmp_path


def top(folder: Path) -> list[str]:
    return [name for name in listing(folder) if not name.startswith("photos/")]


@contextmanager
def paused_run(folder: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PAUSED, moment, *ARGUMENTS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        try:
            yield run
        finally:
            run.kill()


@pytest.mark.long
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("search.statistics:collect_moments", signal.SIGINT),
        ("rewrite.passes:write_model", signal.SIGINT),
        ("prune:write_text", signal.SIGINT),
        ("case:load_model", signal.SIGTERM),
        ("prune:check_rewrite", signal.SIGTERM),
        ("prune:measure_model", signal.SIGTERM),
    ],
)
def test_signal(moment: str, number: int, folder: Path) -> None:
    with paused_run(folder, moment) as run:
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    word, code = ("interrupted", 130) if number == signal.SIGINT else ("terminated", 143)
    assert run.returncode == code, err
    assert out == ""
    assert without_warnings(err) == f"corp-onnx: {word}; nothing was written.\n"
    assert top(folder) == DONE


@pytest.mark.long
def test_kill_leaves_a_hidden_folder_that_the_next_run_removes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with paused_run(folder, "prune:write_text") as run:
        run.kill()
        run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert [p.name for p in (folder / "new").iterdir() if not p.name.startswith(MARK)] == []
    assert any(p.name.startswith(MARK) for p in (folder / "new").iterdir())
    monkeypatch.chdir(folder)
    assert main(ARGUMENTS) == 0
    assert listing(folder / "new") == ["small.onnx", "small.report.json"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_at_a_moment_that_nobody_chose(number: int, folder: Path) -> None:
    """As soon as the hidden folder is there, somewhere in calibration; the run may also be faster."""
    write_photos(folder / "photos", 400, seed=1)
    command = [sys.executable, "-m", "corp_onnx", *ARGUMENTS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True) as run:
        deadline = time.monotonic() + 60
        while not any((folder / "new").glob(f"{MARK}*")) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert "Traceback" not in err
    if run.returncode == 0:
        assert listing(folder / "new") == ["small.onnx", "small.report.json"]
    else:
        assert run.returncode == 128 + number
        assert top(folder) == DONE


@pytest.mark.long
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM, signal.SIGINT)])
def test_signals_right_behind_each_other(numbers: tuple[int, ...], folder: Path) -> None:
    """The later ones come while the first one's cleaning up is at work, which ends all the same."""
    slow = PAUSED.replace(
        "setattr(module, moment, paused)",
        "setattr(module, moment, paused)\n"
        "import shutil\n"
        "rmtree = shutil.rmtree\n"
        "def slow(*args, **kwargs):\n"
        "    print('cleaning', flush=True); time.sleep(1); rmtree(*args, **kwargs)\n"
        "shutil.rmtree = slow",
    )
    command = [sys.executable, "-c", slow, "prune:write_text", *ARGUMENTS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        lines = iter(run.stdout.readline, "")
        next(line for line in lines if line == "here\n")
        run.send_signal(numbers[0])
        next(line for line in lines if line == "cleaning\n")
        for number in numbers[1:]:
            time.sleep(0.1)
            run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 128 + numbers[0]
    assert "Traceback" not in err
    assert top(folder) == DONE


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_signal_while_the_libraries_load(number: int, word: str, folder: Path) -> None:
    """One that comes from outside, while a library waits that makes an error of its own of every exception."""
    program = (
        "import runpy, sys, time\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            try:\n"
        "                print('here', flush=True); time.sleep(60)\n"
        "            except BaseException: raise ImportError('broken')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('corp_onnx', run_name='__main__')\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, "inspect", "vit.onnx"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(number)
        _, err = run.communicate(timeout=60)
    assert (run.returncode, without_warnings(err)) == (128 + number, f"corp-onnx: {word}; nothing was written.\n")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ignored_signal_stays_ignored(number: int, folder: Path) -> None:
    """As a shell wants it of what it runs in the background."""
    program = (
        "import signal, sys, os\n"
        f"signal.signal({int(number)}, signal.SIG_IGN)\n"
        "import corp_onnx.cli.inspect as verb\n"
        "real = verb.inspect_model\n"
        "def signalled(*args, **kwargs):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    return real(*args, **kwargs)\n"
        "verb.inspect_model = signalled\n"
        "from corp_onnx.__main__ import main\n"
        "sys.argv = ['corp-onnx', 'inspect', 'vit.onnx']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "blocks" in done.stdout


def test_interrupt_while_the_libraries_load(folder: Path) -> None:
    """A module that numpy is waiting for is interrupted."""
    program = (
        "import runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('corp_onnx', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", "vit.onnx"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "corp-onnx: interrupted; nothing was written.\n")


def test_interrupt_inside_onnx_runtime(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python raises it when ONNX Runtime returns; nothing on the way may take it for an error of the model."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(folder)
    monkeypatch.setattr(Tapped, "run", interrupted)
    assert main(ARGUMENTS) == 130
    assert without_warnings(capfd.readouterr().err) == "corp-onnx: interrupted; nothing was written.\n"
    assert top(folder) == DONE
    assert main(["calibrate", *ARGUMENTS[1:4], "-o", "c.safetensors"]) == 130
    said = without_warnings(capfd.readouterr().err)
    assert said == "corp-onnx: interrupted; the same command goes on from what is kept.\n"


@pytest.mark.long
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_signal_that_a_library_makes_an_error_of(number: int, word: str, folder: Path) -> None:
    """As ONNX Runtime does while it loads: `ImportError: initialization failed`."""
    program = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime':\n"
        "            try:\n"
        f"                os.kill(os.getpid(), {int(number)})\n"
        "            except BaseException as error: raise ImportError('initialization failed') from error\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from corp_onnx.cli import main\n"
        "sys.exit(main(['inspect', 'vit.onnx']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (128 + number, f"corp-onnx: {word}; nothing was written.\n")


def test_no_memory_for_a_system_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(Tapped, "run", exhausted)
    assert main(ARGUMENTS) == 1
    assert "out of memory; free some" in capfd.readouterr().err


def test_out_of_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.chdir(folder)
    monkeypatch.setattr(Tapped, "run", exhausted)
    assert main(ARGUMENTS) == 1
    assert "out of memory; free some, or give a smaller --batch" in capfd.readouterr().err
    assert top(folder) == DONE


def test_handler_of_the_caller_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    """`main` can be called from a program that has its own."""
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--version"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    capfd.readouterr()
