"""What a report prints, line by line, on paper as wide as asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

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
