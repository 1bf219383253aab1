"""ONNX Runtime as a library: the module, its providers, and what it says made a sentence.

Enters a name of a provider or an exception; leaves ONNX Runtime's name or an error of ours. onnxruntime itself is an
extra, because its CPU and GPU wheels own the same import.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from io import StringIO
from typing import Any

import numpy as np
import scipy.linalg

from corp_onnx.errors import MissingExtraError, ModelError, OptionError
from corp_onnx.memory import require_memory
from corp_onnx.threads import share_cores

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""What a person types, and ONNX Runtime's name for it."""

EXACT = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""Options of providers with which products of float32 keep all their digits: CUDA's drops 13 of 23 by default, which a
person may want of a finished model, and sums and checks do not."""

OF_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
"""Providers that need CUDA's libraries."""

OPENVINO, OPENVINO_PROVIDER = "openvino", "OpenVINOExecutionProvider"
"""OpenVINO's own API (openvino.py), which runs finished files only; and ONNX Runtime's provider of it, which goes by
its full name."""

MAX_SENTENCE = 300
"""Characters of ONNX Runtime's message that an error quotes."""


OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "pthread_create failed", "Cannot allocate memory")
"""What ONNX Runtime says where the host has no memory left; of a device it speaks otherwise."""

RESERVED_BYTES, RESERVED_ROWS = 2**27, 256
"""Two buffers of OpenBLAS with their surroundings, and a product that is large enough for OpenBLAS to want one."""

QUIET = 4
"""ONNX Runtime's severity 'fatal': its warnings speak of its own optimiser, and its errors are raised as well."""

DEFAULT_SEVERITY = 2
"""Warnings: ONNX Runtime has no call that says what it was."""

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Read when onnxruntime is imported. Without it 1.32 keeps a database and a device id in the home folder, writes to the
temporary one and looks for a server."""


def import_runtime() -> Any:
    """The onnxruntime module, its telemetry off: nothing here uses the network.

    Raises:
        MissingExtraError: neither onnxruntime nor onnxruntime-gpu is installed, or it can not be loaded.
    """
    os.environ[NO_TELEMETRY] = "1"  # children that start ONNX Runtime have it, too
    if "onnxruntime" not in sys.modules:
        _reserve_buffers()
    try:
        import onnxruntime
    except (ImportError, OSError, SystemError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            raise MissingExtraError(
                "ONNX Runtime is not installed: pip install 'corp-onnx[cpu]', or 'corp-onnx[gpu]' on a machine with "
                "CUDA."
            ) from error
        raise MissingExtraError(
            f"ONNX Runtime is installed and can not be loaded ({first_sentence(error)}): free some memory, or install "
            "it again."
        ) from error
    if hasattr(onnxruntime, "disable_telemetry_events"):  # for who imported it before us
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def _reserve_buffers() -> None:
    """Let NumPy's and SciPy's OpenBLAS take the buffers of their first large product while there is memory.

    Raises:
        MemoryError: there is not even room for those.
    """
    require_memory(RESERVED_BYTES)
    square = np.ones((RESERVED_ROWS, RESERVED_ROWS))
    np.dot(square, square)
    multiply: Any = scipy.linalg.get_blas_funcs("gemm", (square,))
    multiply(1.0, square, square)


def resolve_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider that is there.

    Raises:
        OptionError: the name is unknown, or the installed onnxruntime has no such provider.
    """
    known = import_runtime().get_available_providers()
    if provider.lower().split(":")[0] == OPENVINO:
        raise OptionError(
            "provider 'openvino' is OpenVINO's own API, which runs finished files only (bench, evaluate); ONNX "
            f"Runtime's own is called {OPENVINO_PROVIDER}{'' if OPENVINO_PROVIDER in known else ', and not here'}."
        )
    name = PROVIDERS.get(provider.lower(), provider)
    if name not in known:
        short = [k for k, v in PROVIDERS.items() if v in known] + [k for k in known if k == OPENVINO_PROVIDER]
        raise OptionError(f"provider '{provider}' is not available here; this onnxruntime has: {', '.join(short)}.")
    return name


@cache
def load_cuda() -> None:
    """CUDA's libraries out of NVIDIA's packages, where ONNX Runtime does not look by itself; once in a process.

    Where they are not, whatever is on the system's path is taken, and what it says of that is not printed.
    """
    load = getattr(import_runtime(), "preload_dlls", None)  # from 1.21 on
    if load is not None:
        with redirect_stdout(StringIO()):
            load()


def require_provider(found: str, provider: str) -> None:
    """Refuse a session that ONNX Runtime started elsewhere, as it does in silence.

    Args:
        found: what it took.
        provider: what was asked for.

    Raises:
        OptionError: that is another.
    """
    wanted = resolve_provider(provider)
    if found != wanted:
        libraries = " (pip install 'onnxruntime-gpu[cuda,cudnn]')" if wanted in OF_CUDA else ""
        raise OptionError(
            f"provider '{provider}' could not be started, and ONNX Runtime took {found} instead; are the libraries "
            f"that {wanted} needs installed{libraries}?"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether what ONNX Runtime raised is that the host has no memory left, which is no fault of the model."""
    return any(text in str(error) for text in OUT_OF_MEMORY)


def explain_failure(what: str, error: Exception) -> ModelError:
    """The error for a run that ONNX Runtime broke off.

    Args:
        what: path of the model.
        error: onnxruntime raises a class of its own for every status code.

    Raises:
        MemoryError: it was broken off because the host has no memory left.
    """
    if is_out_of_memory(error):
        raise MemoryError from error
    return ModelError(f"{what}: ONNX Runtime failed while running it ({first_sentence(error)}).")


def explain_refusal(what: str, error: Exception) -> ModelError:
    """The error for a model that ONNX Runtime does not load; arguments and `Raises` as of `explain_failure`."""
    if is_out_of_memory(error):
        raise MemoryError from error
    if isinstance(error, UnicodeDecodeError):
        return ModelError(f"{what}: a name or text in it is not UTF-8. Export the model again.")
    return ModelError(f"{what}: ONNX Runtime can not load it ({first_sentence(error)}).")


def first_sentence(error: Exception) -> str:
    """The first line of an ONNX Runtime message without its status code and source position."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed:\s*", "", text)
    # file, line, and either a signature in C++ or the bare name of a function
    text = re.sub(r"\S+\.(?:cc|h|cpp):\d+ (?:(?:\S+ )?\S+\(.*?\) (?=[A-Z])|\S+ )", "", text)
    return text[:MAX_SENTENCE].rstrip(". ")


@contextmanager
def silent_runtime() -> Iterator[None]:
    """What ONNX Runtime logs outside of a session, in colours, is not printed: it raises the same."""
    runtime = import_runtime()
    runtime.set_default_logger_severity(QUIET)
    try:
        yield
    finally:
        runtime.set_default_logger_severity(DEFAULT_SEVERITY)


def make_options(threads: int | None, config: Mapping[str, str] | None = None, *, once: bool = False) -> Any:
    """Options of a session: threads inside an operator, and configuration entries; it says nothing by itself.

    Args:
        threads: None takes what there is for whoever asks (`share_cores`).
        once: it is run once: no pass of ONNX Runtime's rewrites the graph, and what reads a tensor is run as soon as
            that is there, so that no Shape keeps it until the end.
    """
    runtime = import_runtime()
    options = runtime.SessionOptions()
    if once:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = QUIET
    threads = share_cores() if threads is None else threads
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options
