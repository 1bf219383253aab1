"""Products that give the interpreter's lock away."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from corp_onnx.moments.blas import add_product, add_square


def test_the_upper_triangle_is_added_to() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    c = np.asfortranarray(rng.normal(size=(7, 7)).astype(np.float32))
    expected = np.triu(c + x.T @ x) + np.tril(c, -1)
    add_square(x, c)
    np.testing.assert_allclose(c, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_rows", "m", "n"), [(50, 7, 5), (1, 3, 4), (20, 1, 1)])
def test_a_product_is_added(n_rows: int, m: int, n: int) -> None:
    rng = np.random.default_rng(0)
    y, x = (rng.normal(size=(n_rows, size)).astype(np.float32) for size in (m, n))
    c = np.asfortranarray(rng.normal(size=(m, n)).astype(np.float32))
    expected = c + y.T @ x
    add_product(y, x, c)
    np.testing.assert_allclose(c, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("add", [add_square, lambda x, c: add_product(x, x, c)])
def test_other_threads_run_meanwhile(add: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """With the lock kept, the other thread is told of the product's begin only at its end."""
    x, c = np.ones((2000, 1500), np.float32), np.zeros((1500, 1500), np.float32, order="F")
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # nothing but a lock given away lets the other one run
    try:
        other = threading.Thread(target=tick)
        other.start()
        time.sleep(0.01)
        start = time.perf_counter()
        add(x, c)
        end = time.perf_counter()
        done.set()
        other.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(start < t < end for t in ticks) > 2
