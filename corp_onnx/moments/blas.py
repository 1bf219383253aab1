"""SciPy's BLAS and LAPACK, called so that other threads of Python run meanwhile: its own wrappers keep the lock.

Enter rows of float32 and an accumulator; leaves C + Y' X in it, or the upper triangle of C + X' X. `load_routine` is
how others (solve/lapack.py) come by the rest.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  its OpenBLAS is there from now on, for `threads.few_blas_threads` to find
from jaxtyping import Float


def add_square(x: Float[np.ndarray, "tokens n"], c: Float[np.ndarray, "n n"]) -> None:
    """C += X' X in its upper triangle, in place; both float32, x in C order and c in Fortran order."""
    assert x.dtype == c.dtype == np.float32
    assert x.flags.c_contiguous
    assert c.flags.f_contiguous
    n_rows, n = (ctypes.c_int(size) for size in x.shape)
    one = ctypes.c_float(1.0)
    order = ctypes.byref(n)
    pointers = (x.ctypes.data_as(ctypes.c_void_p), c.ctypes.data_as(ctypes.c_void_p))
    load_routine("blas", "ssyrk", 2, 8)(b"U", b"N", order, ctypes.byref(n_rows), ctypes.byref(one), pointers[0], order,
                                        ctypes.byref(one), pointers[1], order)  # fmt: skip


def add_product(
    y: Float[np.ndarray, "tokens m"], x: Float[np.ndarray, "tokens n"], c: Float[np.ndarray, "m n"]
) -> None:
    """C += Y' X, in place; all float32, x and y in C order and c in Fortran order."""
    assert y.dtype == x.dtype == c.dtype == np.float32
    assert y.flags.c_contiguous
    assert x.flags.c_contiguous
    assert c.flags.f_contiguous
    n_rows, m, n = (ctypes.c_int(size) for size in (len(y), *c.shape))
    one, of_m = ctypes.byref(ctypes.c_float(1.0)), ctypes.byref(m)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (y, x, c)]
    load_routine("blas", "sgemm", 2, 11)(b"N", b"T", of_m, ctypes.byref(n), ctypes.byref(n_rows), one, pointers[0],
                                         of_m, pointers[1], ctypes.byref(n), one, pointers[2], of_m)  # fmt: skip


@cache
def load_routine(library: str, name: str, n_letters: int, n_pointers: int) -> Any:
    """A function that SciPy offers to Cython; a call by ctypes gives the lock away.

    Args:
        library: `blas` or `lapack`.
        n_letters: arguments that are a letter (upper or lower, transposed or not), which come first.
        n_pointers: all others.
    """
    capsule = import_module(f"scipy.linalg.cython_{library}").__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    letters, pointers = [ctypes.c_char_p] * n_letters, [ctypes.c_void_p] * n_pointers
    return ctypes.CFUNCTYPE(None, *letters, *pointers)(address)
