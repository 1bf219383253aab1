"""One command line in a process of its own: limited time and memory, a folder of its own, and what it left behind."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fuzz.known import KNOWN_PLACES
from fuzz.values import Command, Run

ROOT = Path(__file__).resolve().parent.parent.parent

SECONDS = 60
"""Beyond this a command hangs."""

MEMORY = 6 << 30
"""Bytes of address space; ONNX Runtime alone reserves some hundred megabytes."""

GRACE = 2.0
"""Seconds in which a child notices that its parent is gone."""

MAX_OUTPUT = 200_000
"""Characters of a stream that are kept."""


def run_command(command: Command, scratch: Path) -> Run:
    """Run `corp-onnx` in `scratch`, a folder that has work/, tmp/ and home/ (see `make_scratch`)."""
    before = list_places(scratch)
    start = time.monotonic()
    out, err = scratch.parent / f"{scratch.name}.out", scratch.parent / f"{scratch.name}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        target = os.open(command.stdout, os.O_WRONLY) if command.stdout else stdout.fileno()
        arguments = [sys.executable, "-m", "corp_onnx", *command.arguments]
        process = subprocess.Popen(
            arguments, cwd=scratch / "work", env=_environment(command, scratch), stdin=subprocess.DEVNULL,
            stdout=target, stderr=stderr, start_new_session=True, preexec_fn=_limit(command),
        )  # fmt: skip
        if command.stdout:
            os.close(target)
        code = _wait(process, command)
    seconds = time.monotonic() - start
    orphans = _end_session(process.pid)
    texts = [path.read_bytes()[:MAX_OUTPUT].decode("utf-8", "backslashreplace") for path in (out, err)]
    out.unlink()
    err.unlink()
    return Run(code, *texts, seconds, before, list_places(scratch), orphans)


def make_scratch(folder: Path) -> Path:
    """A folder with work/, where a command starts, and tmp/ and home/, which it must leave as they are."""
    for name in ("work", "tmp", "home"):
        (folder / name).mkdir(parents=True)
    return folder


def _environment(command: Command, scratch: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH") if key in os.environ}
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch / "tmp"), "HOME": str(scratch / "home")}
    return kept | one | own | {"PYTHONDONTWRITEBYTECODE": "1"} | command.environment


def _limit(command: Command) -> Callable[[], None]:
    def limit() -> None:
        memory = command.memory or MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if command.file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (command.file_size, command.file_size))

    return limit


def _wait(process: subprocess.Popen[bytes], command: Command) -> int | None:
    """The exit code; None where it had to be ended."""
    try:
        if command.stop is not None:
            seconds, number = command.stop
            with suppress(subprocess.TimeoutExpired):
                return process.wait(seconds)
            process.send_signal(number)
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None


def _end_session(session: int) -> tuple[str, ...]:
    """End what a command left running, of its session only; the command lines. A child has a moment to end itself."""
    end = time.monotonic() + GRACE
    while (found := _list_session(session)) and time.monotonic() < end:
        time.sleep(0.05)
    for number in found:
        with suppress(OSError):
            os.kill(number, signal.SIGKILL)
    return tuple(found.values())


def _list_session(session: int) -> dict[int, str]:
    """Process numbers and command lines of a session."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                found[int(entry.name)] = " ".join(words.replace("\0", " ").split())
    return found


def list_places(folder: Path) -> dict[str, str]:
    """Everything below a folder, by its name: the hash of a file, the target of a link, else its kind."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if not any(name.startswith(place) for _, place in KNOWN_PLACES):
            found[name] = _describe(path)
    return found


def _describe(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link to {path.readlink()}"
    if stat.S_ISREG(mode):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "folder" if stat.S_ISDIR(mode) else "special"
