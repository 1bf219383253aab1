"""A real tritonserver on loopback, out of the environment that `make test-triton` installs.

Enters a model repository; leaves the ports and the log of a running server, which is gone when the block ends. The
binaries are those of the wheel nvidia-pytriton (Triton 2.51 with its Python backend and no other).
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CORP_ONNX_TRITON"
"""Names the server's own virtual environment."""

START_SECONDS, STOP_SECONDS = 60.0, 20.0
PR_SET_PDEATHSIG = 1
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    http: str
    grpc: str
    metrics: str
    log_path: Path
    region: str
    pid: int

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def run_server(
    repository: Path,
    scratch: Path,
    *,
    options: Sequence[str] = (),
    stand_in: Path | None = None,
    ready: bool = True,
) -> Iterator[Server]:
    """A server of this repository.

    Args:
        repository: of models.
        scratch: an empty folder for the backends and the log.
        options: more of tritonserver's own.
        stand_in: a model.py that takes the place of the backends onnxruntime and openvino, which this build does not
            have.
        ready: whether to wait until every model is ready, or only until the server answers.
    """
    home = Path(os.environ[VARIABLE]).absolute()
    region = f"corp_onnx_test_{secrets.token_hex(6)}"
    ports = _free_ports(3)
    log_path = scratch / "server.log"
    command = [
        str(_triton(home) / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={_make_backends(home, scratch / 'backends', stand_in)}",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1", f"--http-port={ports[0]}", "--http-thread-count=2",
        "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}",
        "--metrics-address=127.0.0.1", f"--metrics-port={ports[2]}", "--allow-gpu-metrics=false",
        "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name={region}",
        *options,
    ]  # fmt: skip
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env=_environment(home), stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_parent
        )
        server = Server(*(f"127.0.0.1:{port}" for port in ports), log_path, region, process.pid)
        try:
            path = "v2/health/ready" if ready else "v2/health/live"
            wait_until(
                lambda: _answers(f"http://{server.http}/{path}", process, server), "the server to answer", server
            )
            yield server
        finally:
            _stop(process)
            for orphan in SHARED_MEMORY.glob(f"{region}*"):
                orphan.unlink(missing_ok=True)


def wait_until(done: Callable[[], bool], what: str, server: Server, seconds: float = START_SECONDS) -> None:
    """Poll; with the log of the server in the error."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}\n{server.log[-4000:]}"
        time.sleep(0.05)


def _packages(home: Path) -> Path:
    return next((home / "lib").glob("python3.*")) / "site-packages"


def _triton(home: Path) -> Path:
    return _packages(home) / "pytriton" / "tritonserver"


def _make_backends(home: Path, folder: Path, stand_in: Path | None) -> Path:
    """The Python backend as the server wants to find it, and a stand-in that is written in Python."""
    binaries = _triton(home)
    version = _packages(home).parent.name.removeprefix("python")  # the stub is built for one
    python = folder / "python"
    python.mkdir(parents=True)
    shutil.copy(binaries / "backends" / "python" / "libtriton_python.so", python)
    shutil.copy(binaries / "backends" / "python" / "triton_python_backend_utils.py", python)
    shutil.copy(binaries / "python_backend_stubs" / version / "triton_python_backend_stub", python)
    (python / "triton_python_backend_stub").chmod(0o755)
    if stand_in is not None:
        for name in ("onnxruntime", "openvino"):
            (folder / name).mkdir()
            shutil.copy(stand_in, folder / name / "model.py")
    return folder


def _environment(home: Path) -> dict[str, str]:
    """The stub finds its packages through the first python3 on PATH, and the server its libraries by name."""
    program = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    asked = subprocess.run([home / "bin" / "python3", "-c", program], capture_output=True, text=True, check=True)
    libraries = _packages(home) / "nvidia_pytriton.libs"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{libraries}:{asked.stdout.strip()}",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",  # a server that polls would take __pycache__ for a change of the model
    }


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _die_with_parent() -> None:
    """A test that is killed leaves no server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answers(url: str, process: subprocess.Popen[bytes], server: Server) -> bool:
    assert process.poll() is None, f"the server ended with {process.returncode}\n{server.log[-4000:]}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for the process group, which is ours alone, if that is not enough."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
