"""How the cores are shared between NumPy, SciPy and ONNX Runtime: few threads each, several calls side by side.

Sums and solves come in turn with stretches of the model, thousands of times a run. NumPy's, SciPy's and ONNX Runtime's
threads each own every core and keep it busy for a while after they are done, so that they mostly wait for each other.
Measured on two cores, the whole of `prune` with one BLAS thread beside two: the demo model 27 s and 41 s (twice),
DeiT-Tiny 83 s and 121 s, a ViT-S with MLPs of 1536 channels 161 s and 175 s (once each). What fills the cores instead
are calls that know nothing of each other: a `Crew` runs batches of images, and then the sums of units, side by side.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Barrier, local
from typing import TypeVar

from threadpoolctl import threadpool_limits

from corp_onnx.cpuinfo import list_cores, list_flags
from corp_onnx.memory import require_memory

T = TypeVar("T")
R = TypeVar("R")

CORES_A_THREAD = 4
"""One BLAS thread for so many cores: its share of the time grows with the cores that ONNX Runtime has."""

MAX_CALLS = 4
"""Side by side; from then on a call has several cores, and its part of a batch does not become too small."""

THREAD_BYTES = 2**26
"""What a further thread wants at once: its stack, and a buffer of each OpenBLAS."""

KERNELS = "OPENBLAS_CORETYPE"
"""What OpenBLAS takes for the processor, read when it is loaded."""

WIDE = frozenset({"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"})
"""What OpenBLAS's kernels for AVX-512 need."""

CORES = "CORP_ONNX_CORES"
"""How many of the machine's cores are ours, where that is not all: a worker of a cluster shares it with others."""

_member = local()
"""What a thread of a crew knows of it: its size."""

ASKED = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What a person who wants another number has set; then nothing is changed."""


def count_cores() -> int:
    """The cores that may be used."""
    asked = os.environ.get(CORES, "")
    return int(asked) if asked.isascii() and asked.isdecimal() and int(asked) > 0 else os.cpu_count() or 1


@contextmanager
def few_blas_threads() -> Iterator[None]:
    """While it lasts, or while a function that it decorates runs; what was set before comes back."""
    if any(os.environ.get(name) for name in ASKED):
        yield
        return
    with threadpool_limits(max(1, count_cores() // CORES_A_THREAD), user_api="blas"):
        yield


def choose_kernels() -> None:
    """Let OpenBLAS, where it is not loaded yet, use AVX-512 on processors of AMD that have it.

    OpenBLAS 0.3.31 does not know Zen 5 and takes its kernels for AVX2: 104 in place of 180 GFLOP/s a core in float32.
    What a person has set stays.
    """
    if KERNELS in os.environ or "numpy" in sys.modules:
        return
    if any(core.get("vendor_id") == "AuthenticAMD" for core in list_cores()) and list_flags() >= WIDE:
        os.environ[KERNELS] = "SkylakeX"


def share_cores() -> int | None:
    """The cores for a call that says nothing of them: a member's of a crew are those that the others leave; None where
    nobody is beside it, which is all of the machine's."""
    size, n_cores = getattr(_member, "size", 1), count_cores()
    return max(1, n_cores // size) if size > 1 or n_cores < (os.cpu_count() or 1) else None


def choose_size() -> int:
    """Calls side by side that this machine has cores for."""
    return min(MAX_CALLS, count_cores())


class Crew:
    """Threads that take calls side by side; the results come in the order of what was asked, whoever is done first.

    Where the system has no room for more threads, the one that asks does all of it.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = choose_size() if size is None else size
        self._pool = _start_pool(self.size) if self.size > 1 else None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """What the function gives for every item; the first error, when all that had begun is over."""
        return self.begin(function, items)()

    def begin(self, function: Callable[[T], R], items: Iterable[T]) -> Callable[[], list[R]]:
        """As `map`, of calls that have begun when this returns; what comes of them is to be asked for."""
        if self._pool is None:
            return lambda: [function(item) for item in items]
        results = self._pool.map(function, items)
        return lambda: list(results)

    def stream(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """As `map`, an item at a time: one more is taken than there are threads, so that none of them waits."""
        if self._pool is None:
            yield from map(function, items)
            return
        pending = deque[Future[R]]()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(pending) > self.size:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            wait(future for future in pending if not future.cancel())

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _join(size: int) -> None:
    _member.size = size


def _start_pool(size: int) -> ThreadPoolExecutor | None:
    """A pool all of whose threads run; None where the system has no room for them."""
    pool = ThreadPoolExecutor(size, "corp-onnx-crew", _join, (size,))
    met = Barrier(size)
    try:
        require_memory(size * THREAD_BYTES)
        for _ in range(size):
            pool.submit(met.wait)
    except (MemoryError, RuntimeError):
        met.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        return None
    return pool
