"""Memory of this process: whether there is some before C code needs it, how much is taken and may be, and back with it.

OpenBLAS tries for ever to get the buffer of its first product, and protobuf reads from what it did not get: both come
to pass where memory is limited by address space (`ulimit -v`, a batch system), not where the kernel ends processes.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corp_onnx.errors import OptionError

if TYPE_CHECKING:  # whoever chooses OpenBLAS's kernels asks for memory before NumPy is loaded
    import numpy as np

STATUS = Path("/proc/self/status")
SYSTEM = Path("/proc/meminfo")
CGROUPS = ((Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
           (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
            Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")))  # fmt: skip
"""Limit and use of a container, in both versions of control groups."""

UNITS = {"": 1, "B": 1, "K": 2**10, "KB": 10**3, "KIB": 2**10, "M": 2**20, "MB": 10**6, "MIB": 2**20, "G": 2**30,
         "GB": 10**9, "GIB": 2**30, "T": 2**40, "TB": 10**12, "TIB": 2**40}  # fmt: skip

AT_START = 160 << 20
"""Bytes of Python with its libraries and a small model, where the system does not tell."""

ARENA = 64 << 20
"""Bytes that a session takes whatever the model."""

MARGIN = 1.2
"""Of a limit that a person gives: runs were seen to take up to 1.12 times what is expected."""


def list_batches(batch_size: int) -> list[int]:
    """Images at a time that are tried one after the other until there is room: each half of the one before."""
    return [batch_size >> n for n in range(batch_size.bit_length())] or [batch_size]


def require_memory(n_bytes: int) -> None:
    """Ask for memory and give it back untouched, so that it costs a system call.

    Raises:
        MemoryError: there is none of that size.
    """
    try:
        mmap.mmap(-1, max(n_bytes, 1)).close()
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no {n_bytes >> 20} MiB are left") from error


def read_size(text: str, option: str) -> int:
    """Bytes of a size as people write it: `2GiB`, `1.5 G`, `800MB`; G is 2^30 and GB is 10^9.

    Raises:
        OptionError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    size = float(found[1]) * UNITS.get(found[2].upper(), math.nan) if found else math.nan
    if not size >= 1 or math.isinf(size):
        raise OptionError(f"{option} takes a size such as 2GiB or 800MB; found '{text}'.")
    return int(size)


def write_size(n_bytes: float) -> str:
    """A size as texts show it: `1.4 GiB`, `310 MiB`."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 0.95 * 2**30 else f"{math.ceil(n_bytes / 2**20)} MiB"


def resident_bytes() -> int | None:
    """What this process has in memory now; None where the system does not tell."""
    return _read_kib(STATUS, "VmRSS")


def peak_bytes() -> int | None:
    """The most that it had so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """What the machine, or the container around this process, can still give; None where neither tells."""
    found = [free for free in (_read_kib(SYSTEM, "MemAvailable"), *map(_free_of_group, CGROUPS)) if free is not None]
    return min(found, default=None)


def _free_of_group(group: tuple[Path, Path]) -> int | None:
    with suppress(OSError, ValueError):  # no such group, or no limit: `max`
        limit, used = (int(path.read_text()) for path in group)
        return max(limit - used, 0)
    return None


def _read_kib(path: Path, name: str) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return None


def forget_pages(array: np.ndarray) -> None:
    """Tell the system that an array which lies in a mapped file was read: it is read again when it is looked at."""
    base: Any = array
    while hasattr(base, "base"):
        base = base.base
    base = getattr(base, "obj", base)  # of a memoryview
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def release_memory() -> None:
    """Give the system back what has been freed: sessions leave the C library with hundreds of MiB that it keeps."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
