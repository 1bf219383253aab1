"""A spoilt model file from (name, fixture, seed): every way by its name."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from fuzz import external, face, functions, names, nodes, raw, tensors
from fuzz.draw import Rng

FIXTURES = Path(__file__).resolve().parent.parent.parent / "tests" / "fixtures"

SMALL = (
    "timm_vit_dynamo23_fused", "timm_vit_ts17_fused_fixed", "hf_vit_ts14_eager", "timm_vit_dynamo18_fused",
    "hf_bert_dynamo18_sdpa",
)  # fmt: skip
"""Fixtures that cases are made from: the Attention operator, a fixed batch, old operators, tokens for images."""

PHOTO_FIXTURE = SMALL[0]
"""Takes photographs, and is the fastest: scenes use it."""


def _named(*tables: tuple[Callable, ...]) -> dict[str, Callable]:
    return {spoiler.__name__: spoiler for table in tables for spoiler in table}


IN_PLACE = _named(nodes.SPOILERS, face.SPOILERS, tensors.SPOILERS, names.SPOILERS, functions.SPOILERS)
"""Spoilers of a message: (model, rng)."""

BESIDE = _named(external.SPOILERS)
"""Spoilers of a message and of the files beside it: (model, rng, folder)."""

BYTES = _named(raw.SPOILERS)
"""Spoilers of bytes: (data, rng) -> data."""

SPOILERS = (*IN_PLACE, *BESIDE, *BYTES)
"""All names."""


def seed_of(name: str, seed: int) -> Rng:
    """The generator of a case: two ways of one seed have nothing in common."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


def fixture_path(fixture: str) -> Path:
    """The file of a fixture."""
    return FIXTURES / f"{fixture}.onnx"


def spoil_model(name: str, fixture: str, seed: int, path: Path) -> None:
    """Write the spoilt file.

    Raises:
        DoesNotApplyError: the fixture has nothing of the kind.
    """
    rng = seed_of(name, seed)
    source = fixture_path(fixture)
    if name in BYTES:
        path.write_bytes(BYTES[name](source.read_bytes(), rng))
        return
    model = onnx.load(source)
    if name in BESIDE:
        BESIDE[name](model, rng, path.parent)
    else:
        IN_PLACE[name](model, rng)
    path.write_bytes(model.SerializeToString())


def copy_model(fixture: str, path: Path) -> None:
    """The fixture as it is."""
    shutil.copy(fixture_path(fixture), path)


def write_arrays(fixture: str, path: Path, n: int = 12) -> None:
    """Noise for every input of a fixture, in an .npz."""
    rng = np.random.default_rng(0)
    arrays = {}
    for value in onnx.load(fixture_path(fixture)).graph.input:
        shape = [d.dim_value or 8 for d in value.type.tensor_type.shape.dim][1:]
        whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        noise = rng.integers(0, 2, (n, *shape)) if whole else rng.standard_normal((n, *shape)).astype(np.float32)
        arrays[value.name] = noise
    np.savez(path, **arrays)
