"""Whether there is memory, asked before it is needed: for C code that ends the process, or never ends, without.

OpenBLAS tries for ever to get the buffer of its first product, and protobuf reads from what it did not get. Both come
to pass where memory is limited by address space (`ulimit -v`, a batch system), not where the kernel ends processes.
"""

from __future__ import annotations

import mmap


def require_memory(n_bytes: int) -> None:
    """Ask for memory and give it back untouched, so that it costs a system call.

    Raises:
        MemoryError: there is none of that size.
    """
    try:
        mmap.mmap(-1, max(n_bytes, 1)).close()
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no {n_bytes >> 20} MiB are left") from error
