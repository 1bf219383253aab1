"""Shapes in signatures are checked while the tests run: jaxtyping's hook rewrites the rooms of the mathematics.

One thread for NumPy's and SciPy's products, and for a session of ONNX Runtime that is not told how many: matrices are
small here, and threads of several workers of pytest that wait for each other keep every core busy.

What a shell runs in the background ignores Ctrl-C, and so would every program that a test starts and interrupts.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import scipy.linalg  # loads the BLAS of both, or the limit would not reach them
from browsers import CHROMIUM, QUIET, require_browser
from jaxtyping import install_import_hook
from threadpoolctl import threadpool_limits

install_import_hook([f"corp_onnx.{room}" for room in ("solve", "moments")], "beartype.beartype")

from corp_onnx.run import sessions  # noqa: E402  behind the hook

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

assert scipy.linalg
threadpool_limits(1, user_api="blas")
make_options = sessions.make_options


def make_small_options(threads: int | None, config: Mapping[str, str] | None = None, **more: Any) -> Any:
    """As `make_options`, with one thread where none are named."""
    return make_options(1 if threads is None else threads, config, **more)


sessions.make_options = make_small_options


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium for all tests that look at pages: Playwright drives one at a time in a process."""
    require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()
