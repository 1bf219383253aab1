"""A headless Chromium, for tests that look at pages: where it is, how it starts, and what a test needs besides."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def require_browser(parts: Mapping[str, bool] | None = None) -> None:
    """Skip a test without Chromium, Playwright or other parts; fail it where a browser was asked for."""
    found = {
        "Chromium (apt-get install chromium)": CHROMIUM is not None,
        **(parts or {}),
        "playwright (pip install playwright)": importlib.util.find_spec("playwright") is not None,
    }
    missing = [name for name, there in found.items() if not there]
    if missing and os.environ.get("CORP_ONNX_BROWSER"):
        pytest.fail(f"the browser test was asked for and needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; make test-web")
