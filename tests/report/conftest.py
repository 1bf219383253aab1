"""What a report prints, line by line, on paper as wide as asked for; and a browser to look at pages in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]

Printed = Callable[[], list[str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Lines of stdout since the last call, runs of spaces as one; rules under a table's head are left out."""

    def read() -> list[str]:
        lines = capsys.readouterr().out.splitlines()
        return [" ".join(line.split()) for line in lines if not line.startswith("─")]

    return read


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, printed: Printed) -> Callable[[str], None]:
    """Makes stdout, as `printed` reads it, a terminal of 30 columns of the named kind."""
    printed()

    def become(kind: str) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        for name, value in (("COLUMNS", "30"), ("TERM", kind), ("NO_COLOR", "1")):
            monkeypatch.setenv(name, value)

    return become


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    found = {
        "Chromium (apt-get install chromium)": CHROMIUM,
        "playwright (pip install playwright)": importlib.util.find_spec("playwright"),
    }
    missing = [name for name, there in found.items() if not there]
    if missing and os.environ.get("CORP_ONNX_BROWSER"):
        pytest.fail(f"the browser test was asked for and needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; make test-web")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()
