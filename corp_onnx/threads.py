"""How many threads NumPy and SciPy take beside ONNX Runtime's: few, because all of them wait by spinning.

Sums and solves come in turn with stretches of the model, thousands of times a run. NumPy's, SciPy's and ONNX Runtime's
threads each own every core and keep it busy for a while after they are done, so that they mostly wait for each other.
Measured on two cores, the whole of `prune` with one BLAS thread beside two: the demo model 27 s and 41 s (twice),
DeiT-Tiny 83 s and 121 s, a ViT-S with MLPs of 1536 channels 161 s and 175 s (once each).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

CORES_A_THREAD = 4
"""One BLAS thread for so many cores: its share of the time grows with the cores that ONNX Runtime has."""

ASKED = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""What a person who wants another number has set; then nothing is changed."""


@contextmanager
def few_blas_threads() -> Iterator[None]:
    """While it lasts, or while a function that it decorates runs; what was set before comes back."""
    if any(os.environ.get(name) for name in ASKED):
        yield
        return
    with threadpool_limits(max(1, (os.cpu_count() or 1) // CORES_A_THREAD), user_api="blas"):
        yield
