"""Symmetric systems in float64, in place, while other threads of Python run: SciPy's own wrappers keep its lock.

Enter matrices in Fortran order of which only the lower triangle counts; what leaves is written over them. So solves of
folds and of units go side by side (threads.Crew), each with one thread of BLAS.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from jaxtyping import Float

from corp_onnx.moments.blas import load_routine

LOWER, AS_IT_IS = b"L", b"N"


def factor_lower(a: Float[np.ndarray, "n n"]) -> bool:
    """A = L L': L in the lower triangle; n^3 / 3 flops. False where A is not positive definite: it is spoilt then."""
    return _call("dpotrf", a) == 0


def solve_factored(factor: Float[np.ndarray, "n n"], rhs: Float[np.ndarray, "n m"]) -> None:
    """R becomes (L L')^-1 R; 2 n^2 m flops."""
    _require(factor)
    _require(rhs)
    n, m, info = (ctypes.c_int(i) for i in (*rhs.shape, 0))
    load_routine("lapack", "dpotrs", 1, 7)(LOWER, *_at(n, m, factor, n, rhs, n, info))


def invert_factored(factor: Float[np.ndarray, "n n"]) -> None:
    """L becomes the lower triangle of (L L')^-1; 2 n^3 / 3 flops."""
    _call("dpotri", factor)


def measure_reciprocal(factor: Float[np.ndarray, "n n"], norm: float) -> float:
    """LAPACK's estimate of 1 / condition of L L' in the 1-norm, in which it has `norm`; some 10 n^2 flops."""
    _require(factor)
    n, info = ctypes.c_int(len(factor)), ctypes.c_int(0)
    found = ctypes.c_double(0.0)
    work, integers = np.empty(3 * len(factor)), np.empty(len(factor), dtype=np.int32)
    routine = load_routine("lapack", "dpocon", 1, 8)
    routine(LOWER, *_at(n, factor, n, ctypes.c_double(norm), found, work, integers, info))
    return found.value


def subtract_square(c: Float[np.ndarray, "n n"], a: Float[np.ndarray, "n k"]) -> None:
    """C - A A' in the lower triangle; n^2 k flops."""
    _require(c)
    _require(a)
    n, k = (ctypes.c_int(i) for i in a.shape)
    minus, one = ctypes.c_double(-1.0), ctypes.c_double(1.0)
    load_routine("blas", "dsyrk", 2, 8)(LOWER, AS_IT_IS, *_at(n, k, minus, a, n, one, c, n))


def subtract_cross(c: Float[np.ndarray, "n n"], a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> None:
    """C - A B' - B A' in the lower triangle; 2 n^2 k flops."""
    _require(c)
    _require(a)
    _require(b)
    n, k = (ctypes.c_int(i) for i in a.shape)
    minus, one = ctypes.c_double(-1.0), ctypes.c_double(1.0)
    load_routine("blas", "dsyr2k", 2, 10)(LOWER, AS_IT_IS, *_at(n, k, minus, a, n, b, n, one, c, n))


def _call(name: str, a: np.ndarray) -> int:
    """A routine that takes one matrix; what it says of how it went."""
    _require(a)
    n, info = ctypes.c_int(len(a)), ctypes.c_int(0)
    load_routine("lapack", name, 1, 4)(LOWER, *_at(n, a, n, info))
    return info.value


def _require(a: np.ndarray) -> None:
    assert a.dtype == np.float64
    assert a.flags.f_contiguous


def _at(*arguments: Any) -> list[Any]:
    """Where arrays and numbers lie."""
    return [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else ctypes.byref(a) for a in arguments]
