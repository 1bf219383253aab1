"""The few things that a TensorRT engine needs of CUDA, through NVIDIA's own bindings (cuda-python, extra `tensorrt`).

Every call gives a status first; one that is not success becomes a sentence.
"""

from __future__ import annotations

import importlib
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from corp_onnx.errors import CheckFailedError, MissingExtraError


def import_cuda() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        MissingExtraError: cuda-python is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingExtraError(
            f"CUDA's Python bindings are not installed ({error}): pip install 'corp-onnx[tensorrt]'."
        ) from error


def device_name() -> str:
    """The name of the GPU that engines are built on and run on.

    Raises:
        MissingExtraError: cuda-python is not installed, or there is no GPU or driver.
    """
    cuda = import_cuda()
    status, properties = cuda.cudaGetDeviceProperties(0)
    if status != cuda.cudaError_t.cudaSuccess:
        raise MissingExtraError(
            f"TensorRT needs an NVIDIA GPU with its driver, and CUDA finds none here ({status.name})."
        )
    return properties.name.split(b"\0")[0].decode(errors="replace")


def succeed(result: tuple[Any, ...]) -> Any:
    """What a call of CUDA gives behind its status: nothing, or one value.

    Raises:
        CheckFailedError: it did not succeed.
    """
    status, *values = result
    if int(status) != 0:
        raise CheckFailedError(f"CUDA: {status.name}; the GPU may be out of memory, or in use by another program.")
    return values[0] if values else None


@dataclass(frozen=True, eq=False)  # without slots, which would leave nothing for the finaliser to hang on
class Buffer:
    """Memory of the device beside memory of the host, of one tensor; freed with the object."""

    address: int
    host: np.ndarray

    def upload(self, stream: Any) -> None:
        """Queue a copy from the host."""
        cuda = import_cuda()
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        succeed(cuda.cudaMemcpyAsync(self.address, self.host.ctypes.data, self.host.nbytes, kind, stream))

    def download(self, stream: Any) -> None:
        """Queue a copy to the host."""
        cuda = import_cuda()
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        succeed(cuda.cudaMemcpyAsync(self.host.ctypes.data, self.address, self.host.nbytes, kind, stream))


def allocate(host: np.ndarray) -> Buffer:
    """Device memory for an array; its content is not copied yet."""
    cuda = import_cuda()
    address = int(succeed(cuda.cudaMalloc(max(host.nbytes, 1))))
    buffer = Buffer(address, host)
    weakref.finalize(buffer, cuda.cudaFree, address)
    return buffer
