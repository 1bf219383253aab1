"""Faults that are being mended, by the point of the issue "Nothing breaks it" that names them.

A fault whose reason holds one of these texts is counted and shown apart, and does not fail a run. Empty once they are
mended: what is here hides every other fault of the same text.
"""

from __future__ import annotations

KNOWN: tuple[tuple[int, str], ...] = (
    (7, "images/folder.py data_hash UnicodeEncodeError"),
    (9, "run/probe.py _element_types onnx"),
    (10, "precision/editable.py copy_editable onnx"),
    (14, "graph/model.py load_model onnx"),
    (14, "UnicodeDecodeError"),
    (14, "graph/model.py _require_external_data"),
)
"""(point, text of a reason)."""

KNOWN_PLACES: tuple[tuple[int, str], ...] = ((19, "home/.cache"), (19, "tmp/.ses"))
"""(point, begin of a path in the scratch folder): what ONNX Runtime's telemetry leaves, until it is turned off."""


def find_point(reason: str, known: tuple[tuple[int, str], ...] = KNOWN) -> int:
    """The point of the issue that names a fault; 0 where none does."""
    return next((point for point, text in known if text in reason), 0)
