"""What CUDA's driver says of the first GPU that this process sees. Elsewhere nothing."""

from __future__ import annotations

import ctypes
from functools import cache

DRIVER = "libcuda.so.1"
MAX_NAME = 256


@cache
def name_gpu() -> str:
    """The GPU's name; empty without a driver or a GPU."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(MAX_NAME)
    found = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDeviceGetName(name, MAX_NAME, device) == 0
    )
    return name.value.decode(errors="replace") if found else ""
