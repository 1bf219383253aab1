"""Commands that begin with the package imported: a process that forks for every one of them. Also a program.

    python -m fuzz.forks        a start as JSON on a line of stdin -> the process number, then its exit code, on stdout

Half of a case's time is a new process that imports NumPy, SciPy, onnx and ONNX Runtime. A fork has done that: it takes
its folder, environment, streams and limits, and then runs the module as `python -m` does, up to the interpreter's own
end. What depends on the imports themselves (little memory, kills, another environment) needs a process that is new.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

TOOLS = str(Path(__file__).resolve().parent.parent)

PRELOADED = (
    "corp_onnx.cli.main", "onnxruntime.quantization", "onnxruntime.transformers.float16",
    "tritonclient.grpc.model_config_pb2", "google.protobuf.text_format",
)  # fmt: skip
"""What the verbs import, some of it late. None of it may start a thread: a fork has only the one that forked."""


@dataclass(frozen=True, slots=True)
class Start:
    """A module, as `python -m` runs it, in a session of its own.

    Attributes:
        arguments: behind the module; bytes that are no text as `os.fsdecode` writes them.
        stdout, stderr: paths that are written.
        memory, file_size: limits in bytes; 0 for none.
    """

    module: str
    arguments: list[str]
    cwd: str
    stdout: str
    stderr: str
    environment: dict[str, str] = field(default_factory=dict)
    memory: int = 0
    file_size: int = 0


def limit_process(memory: int, file_size: int) -> None:
    """Limit this process: bytes of address space, bytes of a file; 0 for none. It writes no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, n_bytes in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size)):
        if n_bytes:
            resource.setrlimit(kind, (n_bytes, n_bytes))


class Fork:
    """A command that was started; it has what is used of `subprocess.Popen`."""

    def __init__(self, pid: int, server: Server) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        if self._code is None:
            self._code = self._server.read_number(timeout)
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        """To the command alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Server:
    """The process that forks; one command at a time. It ends with us, or with the block that it is opened for."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True, env=environment | {"PYTHONPATH": f"{TOOLS}:{environment['PYTHONPATH']}"},
        )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(self, start: Start) -> Fork:
        """A command that runs."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(start)).encode() + b"\n")
        self._process.stdin.flush()
        return Fork(self.read_number(None), self)

    def read_number(self, timeout: float | None) -> int:
        """The next number that the process says."""
        assert self._process.stdout is not None
        stream = self._process.stdout
        if not select.select([stream], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("fork", timeout or 0)
        line = stream.readline()
        if not line:
            raise RuntimeError(f"the process that forks ended with {self._process.wait()}")
        return int(line)


def serve() -> Start:
    """In the process that forks: never returns. In a fork: what it has to run."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    import_module("corp_onnx.run.runtime").import_runtime()  # without its telemetry
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):
            import_module(name)
    n_threads = len(list(Path("/proc/self/task").iterdir()))
    assert n_threads == 1, f"a fork would have lost {n_threads - 1} threads"
    while line := requests.readline():
        pid = os.fork()
        if pid == 0:
            requests.close()
            os.close(answers)
            return Start(**json.loads(line))
        os.write(answers, f"{pid}\n".encode())
        os.write(answers, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    sys.exit()


def become(start: Start) -> None:
    """Give this process what a new one would have been started with."""
    os.setsid()
    streams = (os.devnull, os.O_RDONLY), (start.stdout, os.O_WRONLY), (start.stderr, os.O_WRONLY)
    for number, (path, flags) in enumerate(streams):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    limit_process(start.memory, start.file_size)
    os.chdir(start.cwd)
    os.environ.clear()
    os.environ.update(start.environment)
    tempfile.tempdir = None
    sys.path[:3] = [start.cwd, *start.environment["PYTHONPATH"].split(":")]  # in place of ours: cwd, TOOLS, ROOT
    sys.argv = [start.module, *start.arguments]


if __name__ == "__main__":
    started = serve()
    become(started)
    runpy.run_module(started.module, run_name="__main__", alter_sys=True)
