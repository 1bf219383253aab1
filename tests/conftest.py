"""Shapes in signatures are checked while the tests run: jaxtyping's hook rewrites the rooms of the mathematics."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook([f"corp_onnx.{room}" for room in ("solve", "moments")], "beartype.beartype")
