"""Faults that are being mended, by the point of the issue "Nothing breaks it" that names them.

A fault whose name and reason, `NAME: REASON`, hold one of these texts is counted and shown apart, and does not fail a
run. Empty once they are mended: what is here hides every other fault of the same text.
"""

from __future__ import annotations

KNOWN: tuple[tuple[int, str], ...] = (
    (26, "starve: hangs"),
    (15, "starve: "),
    (22, "exit code 120"),
    (23, "blames itself for its check structure"),
    (24, "UserWarning: Ignoring unknown external data key"),
    (25, "RuntimeWarning: "),
)
"""(point, text); points above 20 are not in the issue, this program found them.

22  a result on stdout that does not fit (/dev/full): Python ends with 120, without a sentence
23  metadata that holds a key twice, an output without a type: the checker refuses what was written, and the text says
    that it is our fault
24  an unknown key of external data: onnx warns on stderr, with a path and a line of the package
25  convert --int8 static on activations that overflow: NumPy's warnings on stderr
26  convert --int8 in about 250 MB of address space: waits for ever
"""

KNOWN_PLACES: tuple[tuple[int, str], ...] = ()
"""(point, begin of a path in the scratch folder): what stays there until it is mended, and is not looked at."""


def find_point(reason: str, known: tuple[tuple[int, str], ...] = KNOWN) -> int:
    """The point of the issue that names a fault; 0 where none does."""
    return next((point for point, text in known if text in reason), 0)
