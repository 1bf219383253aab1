"""One command line in a process of its own: limited time and memory, a folder of its own, and what it left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from fuzz.forks import TOOLS, Fork, Server, Start, limit_process
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


def run_command(command: Command, scratch: Path, server: Server | None = None) -> Run:
    """Run `corp-onnx` in `scratch`, a folder that has work/, tmp/ and home/ (see `make_scratch`).

    Args:
        server: forks for it, unless the command is about how a process begins; None for a new process.
    """
    before = list_places(scratch)
    out, err = _make_streams(scratch)
    begin = Start(
        "corp_onnx", [os.fsdecode(word) for word in command.arguments], str(scratch / "work"),
        command.stdout or str(out), str(err), _environment(command, scratch), command.memory or MEMORY,
        command.file_size,
    )  # fmt: skip
    start = time.monotonic()
    process = _begin(begin, None if command.new else server)
    code = _wait(process, command)
    seconds = time.monotonic() - start
    orphans = _end_session(process.pid)
    return Run(code, _take(out), _take(err), seconds, before, list_places(scratch), orphans)


def run_program(module: str, arguments: list[str], scratch: Path, server: Server | None) -> tuple[int | None, str]:
    """(exit code, what it said) of a module of the attack; None where it hung."""
    out, err = _make_streams(scratch)
    own = {"PYTHONPATH": f"{TOOLS}:{ROOT}", "PATH": ""}
    environment = _environment(Command(()), scratch) | own
    process = _begin(Start(module, arguments, str(scratch / "work"), str(out), str(err), environment), server)
    code = _wait(process, Command(()))
    _end_session(process.pid)
    err.unlink()
    return code, _take(out)


def _make_streams(scratch: Path) -> tuple[Path, Path]:
    """Empty files beside the scratch folder, for stdout and stderr."""
    out, err = scratch.parent / f"{scratch.name}.out", scratch.parent / f"{scratch.name}.err"
    out.touch()
    err.touch()
    return out, err


def _take(path: Path) -> str:
    """What a stream says; it is gone then."""
    text = path.read_bytes()[:MAX_OUTPUT].decode("utf-8", "backslashreplace")
    path.unlink()
    return text


def start_server() -> Server:
    """A process that forks, with the environment that commands have."""
    return Server(_environment(Command(()), ROOT / "nowhere"))


def _begin(start: Start, server: Server | None) -> subprocess.Popen[bytes] | Fork:
    """A fork where there is a server, else a new process."""
    if server is not None:
        return server.start(start)
    with open(start.stdout, "wb") as stdout, open(start.stderr, "wb") as stderr:  # noqa: PTH123 - /dev/full is a file too
        return subprocess.Popen(
            [sys.executable, "-m", start.module, *start.arguments], cwd=start.cwd, env=start.environment,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
            preexec_fn=partial(limit_process, start.memory, start.file_size),
        )  # fmt: skip


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


def _wait(process: subprocess.Popen[bytes] | Fork, command: Command) -> int | None:
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
