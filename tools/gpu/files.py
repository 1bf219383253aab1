"""Which files are measured, and where they lie: FOLDER/skeletons/SHAPE.PRECISION.NAME.onnx, filled beside that folder.

Skeletons are made once, on any machine; two gigabytes of weights then become noise where they are measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shape_model import SHAPES, save_model, write_vit

from corp_onnx.graph import load_model
from corp_onnx.run.probe import probe_graph
from gpu.shapes import RECIPES, keep_skeleton, restore, write_half, write_pruned

DENSE, FUSED = "dense", "fused "
"""Name of what is not pruned, and what stands before a name where attentions are ONNX Runtime's own operator."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One file."""

    shape: str
    precision: str
    name: str

    @property
    def file(self) -> str:
        """Its name."""
        slug = self.name.replace(" ", "-").replace("%", "")
        return f"{self.shape}.{self.precision}.{slug}.onnx"


def list_variants(shape: str, precision: str, names: Iterable[str]) -> list[Variant]:
    """Files of one shape."""
    return [Variant(shape, precision, name) for name in names]


def prepare(folder: Path, variants: Sequence[Variant]) -> None:
    """Every skeleton that is not there yet."""
    missing = [v for v in variants if not _skeleton(folder, v).exists()]
    for shape, fused in dict.fromkeys((v.shape, v.name.startswith(FUSED)) for v in missing):
        wanted = [v for v in missing if (v.shape, v.name.startswith(FUSED)) == (shape, fused)]
        with tempfile.TemporaryDirectory() as scratch:
            _prepare_shape(folder, Path(scratch), wanted, fused=fused)


def _prepare_shape(folder: Path, scratch: Path, wanted: Sequence[Variant], *, fused: bool) -> None:
    dense = scratch / "dense.onnx"
    save_model(write_vit(SHAPES[wanted[0].shape], fused=fused), dense)
    graph = probe_graph(load_model(dense))
    for variant in wanted:
        source, half, name = scratch / "whole.onnx", scratch / "half.onnx", variant.name.removeprefix(FUSED)
        if name == DENSE:
            source = dense
        else:
            write_pruned(graph, RECIPES[name], source)
        if variant.precision == "float16":
            write_half(source, half)
            source = half
        keep_skeleton(source, _skeleton(folder, variant))


def find_files(folder: Path, variants: Sequence[Variant]) -> dict[str, Path]:
    """The filled files by name; made where they are missing."""
    prepare(folder, variants)
    for variant in variants:
        if not (folder / variant.file).exists():
            restore(_skeleton(folder, variant), folder / variant.file)
    return {v.name: folder / v.file for v in variants}


def _skeleton(folder: Path, variant: Variant) -> Path:
    return folder / "skeletons" / variant.file
