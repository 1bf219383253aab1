"""LAPACK by ctypes against NumPy, and that other threads run meanwhile."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from scipy.linalg import get_lapack_funcs

from corp_onnx.solve.lapack import (
    factor_lower,
    invert_factored,
    measure_reciprocal,
    solve_factored,
    subtract_cross,
    subtract_square,
)


def make_matrix(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(2 * n, n))
    return np.asfortranarray(x.T @ x / n + np.eye(n))


@pytest.mark.parametrize("n", [1, 2, 33])
def test_a_system_is_factored_solved_and_inverted_in_place(n):
    matrix, rng = make_matrix(n), np.random.default_rng(1)
    factor = matrix.copy(order="F")
    assert factor_lower(factor)
    np.testing.assert_allclose(np.tril(factor), np.linalg.cholesky(matrix), rtol=1e-12, atol=1e-14)
    rhs = np.asfortranarray(rng.normal(size=(n, 5)))
    solution = rhs.copy(order="F")
    solve_factored(factor, solution)
    np.testing.assert_allclose(matrix @ solution, rhs, atol=1e-12)
    norm = float(np.abs(matrix).sum(axis=0).max())
    (pocon,) = get_lapack_funcs(("pocon",), dtype=np.float64)
    assert measure_reciprocal(factor, norm) == pytest.approx(pocon(factor, norm, uplo="L")[0], rel=1e-12)
    invert_factored(factor)
    np.testing.assert_allclose(np.tril(factor), np.tril(np.linalg.inv(matrix)), rtol=1e-9, atol=1e-12)


def test_what_is_not_positive_definite_is_said():
    assert not factor_lower(np.asfortranarray(-np.eye(3)))


def test_products_are_taken_off_the_lower_triangle_and_nothing_else():
    matrix, rng = make_matrix(9), np.random.default_rng(1)
    a, b = (np.asfortranarray(rng.normal(size=(9, 4))) for _ in range(2))
    for take, less in (
        (lambda c: subtract_square(c, a), a @ a.T),
        (lambda c: subtract_cross(c, a, b), a @ b.T + b @ a.T),
    ):
        found = matrix.copy(order="F")
        take(found)
        np.testing.assert_allclose(np.tril(found), np.tril(matrix - less), atol=1e-13)
        np.testing.assert_array_equal(np.triu(found, 1), np.triu(matrix, 1))


def test_the_lock_is_given_away():
    """Another thread counts while a factor is made, which with the lock held it could not for as long as that takes."""
    matrix, begun, over = make_matrix(900), threading.Event(), threading.Event()
    seen: list[float] = []

    def count() -> None:
        begun.set()
        while not over.is_set():
            seen.append(time.perf_counter())
            time.sleep(0)

    other = threading.Thread(target=count)
    other.start()
    begun.wait()
    start = time.perf_counter()
    invert_factored(matrix)
    end = time.perf_counter()
    over.set()
    other.join()
    assert any(start + 0.1 * (end - start) < at < end - 0.1 * (end - start) for at in seen)
