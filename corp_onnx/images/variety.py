"""Whether images differ at all: a folder of one picture, or of plain colours, teaches nothing and shows nothing; nor do
the first images of a stream, where those are of one kind.

Enters images; leaves a sentence for the person, or none. Looks at up to `LOOKED_AT` of them, evenly spread, which were
decoded already or will be.
"""

from __future__ import annotations

import hashlib

import numpy as np

from corp_onnx.errors import ImageError
from corp_onnx.images.folder import ImageSet
from corp_onnx.images.open import Images, spread_images

LOOKED_AT = 32
BATCH = 8


def describe_monotony(images: Images) -> str:
    """Says that half of the images or more are copies of others or of one colour, and that they are no fair draw."""
    note = images.note if isinstance(images, ImageSet) else ""
    return " ".join(text for text in (note, _describe_copies(images)) if text)


def _describe_copies(images: Images) -> str:
    seen: set[bytes] = set()
    n_seen = n_plain = 0
    try:
        for batch in spread_images(images, LOOKED_AT).batches(BATCH):
            for i in range(len(batch.names)):
                rows = [np.ascontiguousarray(array[i]) for array in batch.arrays.values()]
                seen.add(hashlib.sha256(b"".join(row.tobytes() for row in rows)).digest())
                n_seen += 1
                n_plain += all(_is_plain(row) for row in rows)
    except ImageError:  # too few of them can be read, which is said elsewhere
        return ""
    if n_seen >= 2 and len(seen) <= n_seen / 2:
        return f"the {n_seen} images looked at are copies of {len(seen)}: nothing is learnt from copies, give others."
    if n_plain >= max(n_seen / 2, 1):
        return f"{n_plain} of {n_seen} images looked at are of one colour: give such photographs as the model will see."
    return ""


def _is_plain(row: np.ndarray) -> bool:
    """Whether every channel of an image [c, h, w] is one number."""
    return row.ndim == 3 and bool((row.min(axis=(1, 2)) == row.max(axis=(1, 2))).all())
