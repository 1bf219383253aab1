"""Faults that are being mended, by the point of the issue "Nothing breaks it" that names them.

A fault whose name and reason, `NAME: REASON`, hold one of these texts is counted and shown apart, and does not fail a
run. Empty once they are mended: what is here hides every other fault of the same text.
"""

from __future__ import annotations

KNOWN: tuple[tuple[int, str], ...] = ()
"""(point, text)."""

KNOWN_PLACES: tuple[tuple[int, str], ...] = ()
"""(point, begin of a path in the scratch folder): what stays there until it is mended, and is not looked at."""


def find_point(reason: str, known: tuple[tuple[int, str], ...] = KNOWN) -> int:
    """The point of the issue that names a fault; 0 where none does."""
    return next((point for point, text in known if text in reason), 0)
