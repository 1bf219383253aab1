"""Which TensorRT is installed, and what it offers; imported in functions.

Two libraries have nearly the same Python API:

    tensorrt      10 and 11: engines for the GPU of this machine
    tensorrt-rtx  TensorRT for RTX: engines ahead of time, for any list of compute capabilities, on a machine without a
                  GPU; always strongly typed

What one of them can do is asked of its module where that tells, and of its name where a call is there and does nothing.
A version decides nothing: 1.7 of the one is younger than 10.16 of the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from corp_onnx.errors import MissingExtraError, OptionError

LibraryName = Literal["tensorrt", "tensorrt-rtx"]
LIBRARIES: tuple[LibraryName, ...] = get_args(LibraryName)

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""What each is imported as; its wheels for CUDA 12 carry the bindings alone."""

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}

INSTALLS = {
    "tensorrt": "pip install 'corp-onnx[tensorrt]' --extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "pip install 'corp-onnx[tensorrt-rtx]'",
}

MAX_SENTENCE = 300
"""Characters of a message of TensorRT that an error quotes."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """An installed TensorRT. `trt` is its module."""

    name: LibraryName
    trt: Any

    @property
    def version(self) -> str:
        """10.16.1.11, or 1.7.1.116."""
        return self.trt.__version__

    @property
    def title(self) -> str:
        """What it is called, with its version."""
        return f"{TITLES[self.name]} {self.version}"

    @property
    def precisions(self) -> frozenset[str]:
        """Precisions that a flag can allow beside those of the file; none where networks are strongly typed only."""
        return frozenset(flag for flag in ("FP16", "INT8") if hasattr(self.trt.BuilderFlag, flag))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that engines can be built for ahead of time: SM75, ..., SM120; () where there are none.

        Such a library needs no GPU to build, and none is asked for.
        """
        names = vars(getattr(self.trt, "ComputeCapability", object))
        return tuple(sorted((n for n in names if n.startswith("SM") and n[2:].isdecimal()), key=lambda n: int(n[2:])))

    @property
    def keeps_timings(self) -> bool:
        """Whether a timing cache holds anything; TensorRT for RTX has the calls and ignores them."""
        return self.name == "tensorrt"


def find_library(name: LibraryName | None = None, *, ahead: bool = False) -> Library:
    """An installed TensorRT.

    Args:
        name: which; None takes the one that is there.
        ahead: of two that are there, take the one that builds without a GPU.

    Raises:
        OptionError: no library has this name.
        MissingExtraError: it is not installed, or its bindings are and its libraries are not.
    """
    if name is not None and name not in LIBRARIES:
        raise OptionError(f"--library must be {' or '.join(LIBRARIES)}; found {name}.")
    order = (name,) if name is not None else LIBRARIES[::-1] if ahead else LIBRARIES
    for one in order:
        if (module := _import_module(one)) is not None:
            return Library(one, module)
    if order[0] == "tensorrt-rtx":
        raise MissingExtraError(
            f"TensorRT for RTX is not installed (no module {' or '.join(MODULES[order[0]])}): {INSTALLS[order[0]]}; it "
            "needs no GPU to build."
        )
    raise MissingExtraError(
        f"TensorRT's Python API is not installed (no module {order[0]}): {INSTALLS['tensorrt']}, on a machine with an "
        f"NVIDIA GPU; without one, TensorRT for RTX builds for GPUs elsewhere: {INSTALLS['tensorrt-rtx']}; where only "
        "the command-line tool is there, --trtexec drives that."
    )


def _import_module(name: LibraryName) -> Any:
    """The module of a library, None where there is none."""
    for module in MODULES[name]:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == module:
                continue
            raise MissingExtraError(  # the bindings are there; a library that they load is not
                f"{TITLES[name]}'s Python bindings are installed and its libraries are not found ({error}): "
                f"{INSTALLS[name]}, or put the folder of your own TensorRT on LD_LIBRARY_PATH."
            ) from error
    return None


@dataclass(slots=True)
class Messages:
    """What TensorRT said while it worked; `layers` is its list of the finished engine's layers, where it wrote one."""

    errors: list[str]
    warnings: list[str]
    layers: str = ""

    def describe(self) -> str:
        """The first error, which the others follow from, as a part of a sentence."""
        lines = (self.errors[0] if self.errors else "it gives no reason").strip().splitlines()
        return lines[0][:MAX_SENTENCE].rstrip(". ")


def open_logger(library: Library, is_list: Callable[[str], bool] = lambda _text: False) -> tuple[Any, Messages]:
    """(a logger for TensorRT, where its errors and warnings go); what else it says is dropped.

    Args:
        library: whose logger.
        is_list: which of its messages is the list of layers.
    """
    trt, messages = library.trt, Messages([], [])

    class _Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                messages.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                messages.warnings.append(text)
            elif severity == trt.ILogger.VERBOSE and is_list(text):
                messages.layers = text

    return _Logger(), messages


def start(library: Library, make: Callable[[], Any]) -> Any:
    """An object of TensorRT.

    Raises:
        MissingExtraError: there is no GPU, or its driver is too old.
    """
    try:
        return make()
    except (TypeError, RuntimeError) as error:  # its bindings say nothing but that a pointer is null
        raise MissingExtraError(
            f"{library.title} can not start: it needs an NVIDIA GPU with a driver that is new enough (`nvidia-smi` "
            "shows both)."
        ) from error
