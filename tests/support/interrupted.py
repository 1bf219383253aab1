"""A calibration that is interrupted at a given image, and what it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from graphs import images_of, probed

from corp_onnx.calibrate.checkpoint import Checkpoint
from corp_onnx.calibrate.collect import collect_moments
from corp_onnx.images import Images
from corp_onnx.moments import Moments
from corp_onnx.units import list_units

KINDS = ("mlp", "qk", "vo")
N_IMAGES = 41


class StopError(Exception):
    """The run is ended in the middle."""


def stop_after(n_images: int) -> Callable[[int], None]:
    seen = 0

    def count(n: int) -> None:
        nonlocal seen
        seen += n
        if seen > n_images:
            raise StopError

    return count


def keep(folder: Path, **changed: object) -> Checkpoint:
    return Checkpoint(folder / "half.safetensors", {"model": "a", "images": "b"}, **{"every": 0.0, **changed})  # type: ignore[arg-type]


def collect(
    name: str, images: Images | None = None, checkpoint: Checkpoint | None = None,
    progress: Callable[[int], None] | None = None,
) -> Moments:  # fmt: skip
    graph, blocks = probed(name)
    given = images_of(graph, N_IMAGES) if images is None else images
    units = list_units(blocks, KINDS)
    return collect_moments(graph, units, given, batch_size=4, progress=progress, checkpoint=checkpoint)


def require_same_bytes(found: Moments, expected: Moments) -> None:
    assert found.keys() == expected.keys()
    for key, moments in expected.entries:
        for field in dataclasses.fields(moments):
            one, other = (np.asarray(getattr(m, field.name)) for m in (found[key], moments))
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes(), (key, field.name)
