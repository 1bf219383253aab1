"""The real model and its images, which are not part of the project: DeiT-Tiny and 650 photographs of ILSVRC2012.

Looked for in the folder that `CORP_ONNX_SHARED` names, else in `shared` beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "CORP_ONNX_SHARED"
SHARED = Path(os.environ.get(VARIABLE) or Path(__file__).parents[3] / "shared")
DEIT_TINY = SHARED / "models" / "deit_tiny_patch16_224.onnx"
VALIDATION = SHARED / "images" / "val"
CLASSES = SHARED / "images" / "wordnet_ids.txt"

needs_shared = pytest.mark.skipif(
    not (DEIT_TINY.is_file() and VALIDATION.is_dir() and CLASSES.is_file()),
    reason=f"the real model and its images are not in {SHARED}; {VARIABLE} names their folder",
)
