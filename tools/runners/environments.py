"""The runtimes, what each is installed from, and how its child process is called.

Only PyPI and npm. Versions are pinned, so that the record says what was tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corp_onnx.run.child import LAUNCHER

HERE = Path(__file__).resolve().parent
THREADS = 2

ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception|Fail|InvalidGraph|NotImplemented|InvalidArgument)\w*\b.*:")
"""How the last line of a traceback begins."""

HIDDEN = re.compile(r"(/[\w.+-]+){2,}/|\x1b\[[\d;]*m")
"""Folders and colours."""

LONGEST = 300
"""Characters of a sentence."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime.

    Attributes:
        name: of its file in this folder, or of its npm package.
        title: as the page says it.
        packages: with their versions; the first one's is the runtime's.
        bare: packages that are installed without what they ask for.
        batches: that it is asked for.
        note: what the page says of how it is driven.
        npm: it runs in node.
        timed: it is a runtime to be fast in.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    note: str
    bare: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 8)
    npm: bool = False
    timed: bool = True


RUNTIMES = (
    Runtime("onnxruntime", "ONNX Runtime", ("onnxruntime==1.32.0",), "CPU, every optimisation: the reference"),
    Runtime("openvino", "OpenVINO", ("openvino==2026.4.1",), "CPU, precision hint f32, latency"),
    Runtime("opencv", "OpenCV dnn", ("opencv-python-headless==5.0.0.93",), "`readNetFromONNX`"),
    Runtime("tract", "tract", ("tract==0.23.9",), "its Python package; batch fixed; one thread"),
    Runtime(
        "ncnn", "ncnn", ("ncnn==1.0.20261020",), "behind pnnx, batch 1, float32 kernels", ("pnnx==20261020",), (1,)
    ),
    Runtime(
        "mnn",
        "MNN",
        ("MNN==3.6.1", "onnx==1.23.2"),
        "its converter without `mnnconvert`, which reports usage; precision high",
    ),
    Runtime("tvm", "TVM", ("apache-tvm==0.27.0.post1", "onnx==1.23.2"), "Relax, LLVM, not tuned; batch fixed"),
    Runtime("onnxruntime-node", "onnxruntime-node", ("onnxruntime-node@1.30.0",), "CPU", npm=True),
    Runtime("onnxruntime-web", "onnxruntime-web", ("onnxruntime-web@1.30.0",), "WebAssembly, in node", npm=True),
    Runtime("reference", "onnx's evaluator", ("onnx==1.23.2",), "NumPy; what the standard says", timed=False),
)
"""In the order of the page."""


class Broken(Exception):  # noqa: N818 -- it is what became of a runtime, and no fault of the tool
    """A child process gave no result; the text says why."""


def make_environment(runtime: Runtime, cache: Path) -> Path:
    """The folder of a runtime's own environment, made where it is not there."""
    folder = cache / runtime.name
    done = folder / ".installed"
    wanted = "\n".join((*runtime.packages, *runtime.bare))
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if runtime.npm:
        _call(["npm", "init", "--yes", "--silent"], folder)
        # no scripts: onnxruntime-node would fetch CUDA
        _call(["npm", "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", *runtime.packages], folder)
    else:
        _call([sys.executable, "-m", "venv", str(folder)], cache)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _call([*pip, "numpy", *runtime.packages], folder)
        if runtime.bare:
            _call([*pip, "--no-deps", *runtime.bare], folder)
    done.write_text(wanted, encoding="utf-8")
    return folder


def _call(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def run_child(runtime: Runtime, cache: Path, command: Sequence[object], limit: float) -> str:
    """The JSON that one command of a runtime's child process writes.

    Args:
        command: `answer` or `time` and what follows, as child.py has it.
        limit: seconds.

    Raises:
        Broken: it refused, crashed or took too long.
    """
    environment = make_environment(runtime, cache)
    if runtime.npm:
        node = shutil.which("node")
        if node is None:
            raise Broken("node is not installed here")
        program = [node, str(HERE / "child.mjs"), str(environment), runtime.name]
    else:
        program = [str(environment / "bin" / "python"), "-m", "runners.child", runtime.name]
    variables = {**os.environ, "RUNNER_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        # Linux ends it with us, also where we are killed: it would go on and disturb what is timed
        asking = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())] if sys.platform == "linux" else []
        asked = [*asking, *program, str(out), *map(str, command)]
        try:
            done = subprocess.run(
                asked, cwd=HERE.parent, env=variables, capture_output=True, text=True, errors="replace", timeout=limit,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Broken(f"no answer within {limit:.0f} s") from None
        if done.returncode < 0:
            raise Broken(f"crashes (signal {-done.returncode})")
        if done.returncode or not out.exists():
            raise Broken(shorten(done.stderr or done.stdout))
        return out.read_text(encoding="utf-8")


def shorten(said: str) -> str:
    """The sentence in what a process said when it failed: of a traceback the error and what follows it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if ERROR.match(line)]
    text = " ".join(lines[starts[-1] :] if starts else lines[-3:])
    text = HIDDEN.sub("", text.partition("Stack backtrace:")[0]).strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
