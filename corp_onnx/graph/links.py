"""Models behind links, as downloads are kept: the path, the file of weights, or both may be links into another folder.

    snapshots/1a2b/model.onnx       ->  ../../blobs/7f3c
    snapshots/1a2b/model.onnx_data  ->  ../../blobs/9d0e

onnx reads no weights through a link, and ONNX Runtime none of a model in memory that leave its folder. So the message
names them by where they really lie. What a model may name is as ONNX Runtime has it: files in the folder of the path,
and in the folder of the file that the path leads to; a link to any other place would let a stranger's archive read it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnx import external_data_helper

from corp_onnx.errors import ModelError
from corp_onnx.graph.external import find_beside, iterate_tensors, list_locations, read_location
from corp_onnx.graph.model import Model
from corp_onnx.graph.model import load_model as load_plain
from corp_onnx.staging import is_text


@dataclass(frozen=True, slots=True, eq=False)
class LinkedModel(Model):
    """A model whose external weights lie elsewhere than beside its path."""

    weights_folder: Path

    @property
    def folder(self) -> Path:
        """The folder that relative names of external data start from: all of them lie below it."""
        return self.weights_folder


def load_model(path: Path | str) -> Model:
    """As `model.load_model`, with weights behind links named by where they lie.

    Raises:
        ModelError: as there; or a link leads weights out of its folders.
    """
    path = Path(path)
    loaded = _load(path)
    names = list_locations(loaded.proto)
    places = {name: _require_inside(path, name) for name in names}
    if all(place == Path(os.path.normpath(path.parent.resolve() / name)) for name, place in places.items()):
        return loaded
    root = Path(os.path.commonpath([place.parent for place in places.values()]))
    for tensor in iterate_tensors(loaded.proto):  # nobody else has seen it yet
        if external_data_helper.uses_external_data(tensor):
            entry = next(e for e in tensor.external_data if e.key == "location")
            entry.value = places[str(PurePosixPath(read_location(tensor)))].relative_to(root).as_posix()
    return LinkedModel(loaded.proto, path, loaded.sha256, root)


def require_readable_name(path: Path) -> None:
    """Refuse a path that onnx and ONNX Runtime can not open: they take text.

    Raises:
        ModelError: it is not UTF-8.
    """
    if not is_text(path):
        raise ModelError(f"{path}: is not UTF-8, and onnx and ONNX Runtime open no such path; rename it.")


def _load(path: Path) -> Model:
    """The model at a path, or at what it is a link to where its weights lie beside that only."""
    try:
        return load_plain(path)
    except ModelError:
        if path.is_symlink():
            with suppress(ModelError):
                return load_plain(path.resolve())
        raise


def _require_inside(path: Path, name: str) -> Path:
    """Where a file of weights really lies: below the folder of the path, or of what the path leads to."""
    found = None
    with suppress(ValueError, OSError):  # a name that no file can have
        found = find_beside(path, name).resolve()
        if found.is_relative_to(path.parent.resolve()) or found.is_relative_to(path.resolve().parent):
            return found
    raise ModelError(
        f"{path}: its weights lie in '{name}', which leads out of its folder to {found or 'nowhere'}; copy that file "
        "beside the model."
    )
