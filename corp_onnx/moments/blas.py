"""SciPy's ssyrk, called so that other threads of Python run meanwhile: its own wrapper keeps the interpreter's lock.

Enters rows of float32 and an accumulator; leaves the upper triangle of C + X' X in it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
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
    _load_ssyrk()(b"U", b"N", order, ctypes.byref(n_rows), ctypes.byref(one), pointers[0], order, ctypes.byref(one),
                  pointers[1], order)  # fmt: skip


@cache
def _load_ssyrk() -> Any:
    """The function that SciPy offers to Cython; a call by ctypes gives the lock away."""
    capsule = import_module("scipy.linalg.cython_blas").__pyx_capi__["ssyrk"]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    text, pointer = ctypes.c_char_p, ctypes.c_void_p
    return ctypes.CFUNCTYPE(None, text, text, *([pointer] * 8))(address)
