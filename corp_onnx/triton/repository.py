"""A Triton model repository: folders that a Triton Inference Server loads as they are.

Enters model files; leaves, below the folder of the repository,

    NAME/config.pbtxt         what the server must know, checked against Triton's own schema
    NAME/labels.txt           class names, where the model has any
    NAME/1/model.onnx         the file, byte for byte, with its external weights beside it (or model.plan)
    NAME/1/model.py           for the Python backend

Every version is served; a request that asks for none gets the highest. So a version is rolled out by adding it, and
rolled back by removing its folder. Folders appear whole or not at all, so a server may watch them meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from corp_onnx.errors import OptionError, OutputError
from corp_onnx.graph.external import find_beside
from corp_onnx.graph.model import hash_file
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.options import fill_settings
from corp_onnx.results import Result, Rows
from corp_onnx.staging import staged_folders, write_text
from corp_onnx.triton.config import (
    LABELS_FILE,
    MODEL_FILES,
    MODEL_PROGRAM,
    TritonSettings,
    config_text,
    import_schema,
)
from corp_onnx.triton.entry import (
    CONFIG_FILE,
    Entry,
    Version,
    extend_entry,
    name_models,
    new_entry,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServedTensor:
    """One input or output as a client sees it; `dims` without the batch axis where requests are joined."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One file of a model; `n_bytes` with its external weights."""

    version: int
    source: str
    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the repository.

    `versions` are those that were written now; `max_batch_size` 0 joins nothing; `labels` says what the class names are
    and where they come from.
    """

    name: str
    path: str
    backend: str
    max_batch_size: int
    inputs: tuple[ServedTensor, ...]
    outputs: tuple[ServedTensor, ...]
    n_labels: int
    recipe: Recipe | None
    versions: tuple[ServedVersion, ...]
    labels: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class TritonRepository(Result):
    """What `triton` returns."""

    verb: ClassVar[str] = "triton"
    path: str
    models: tuple[ServedModel, ...]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """Where it is and what it serves."""
        return f"{self.path}: {', '.join(model.name for model in self.models)}"

    @property
    def table(self) -> Rows:
        """One row a model."""
        rows = [(m.name, m.backend, ", ".join(str(v.version) for v in m.versions)) for m in self.models]
        return [("model", "backend", "versions written"), *rows]


def write_triton_repository(
    models: Sequence[Path | str],
    output: Path | str,
    *,
    name: str | None = None,
    add: bool = False,
    settings: TritonSettings | None = None,
    force: bool = False,
    **options: Any,
) -> TritonRepository:
    """Write models into a Triton model repository.

    Args:
        models: ONNX files, or engines for the backend `tensorrt`. Without `name` each is a model of its own, called
            like its file: a pair to compare.
        output: the folder of the repository; other models in it stay.
        name: makes all of `models` versions 1, 2, ... of one model.
        add: makes them the next versions of a model that is there; its config.pbtxt stays as it is.
        settings: how they are served, as one value, or
        options: its fields by name; not with `add`.
        force: replace a model that is there, with all of its versions.

    Raises:
        MissingExtraError: tritonclient or ONNX Runtime is not installed.
        InputError: a model, an option or the destination can not be used; nothing was written.
    """
    import_schema()
    if add and (settings is not None or options or force):
        raise OptionError("--add leaves the model's config.pbtxt as it is: give it no option but --name.")
    settings = fill_settings(TritonSettings, settings, options)
    root = Path(output)
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is not a folder; give the folder of a model repository.")
    groups = name_models([Path(m) for m in models], name).items()
    entries = [
        extend_entry(n, files, root) if add else new_entry(n, files, root, settings, force) for n, files in groups
    ]
    with staged_folders([f for e in entries for f in _folders(e, root)], root, force=force) as staged:
        folders = iter(staged)
        for entry in entries:
            if entry.is_new:
                _write_model(entry, next(folders), root)
            else:
                for version in entry.versions:
                    _write_version(version, next(folders), entry.backend)
    warnings = tuple(warning for entry in entries for warning in entry.warnings)
    return TritonRepository(str(root), tuple(_report(entry, root) for entry in entries), warnings)


def _folders(entry: Entry, root: Path) -> tuple[Path, ...]:
    """The folders that an entry brings: that of the model, or those of its next versions."""
    home = root / entry.name
    return (home,) if entry.is_new else tuple(home / str(version.number) for version in entry.versions)


def _write_model(entry: Entry, folder: Path, root: Path) -> None:
    write_text(config_text(entry.config), folder / CONFIG_FILE, root / entry.name / CONFIG_FILE)
    if entry.labels:
        lines = "".join(f"{label}\n" for label in entry.labels)
        write_text(lines, folder / LABELS_FILE, root / entry.name / LABELS_FILE)
    for version in entry.versions:
        _write_version(version, folder / str(version.number), entry.backend)


def _write_version(version: Version, folder: Path, backend: str) -> None:
    """The file under Triton's name, its external weights under their own: the model refers to them by it."""
    path, target = version.path, folder
    try:
        folder.mkdir(exist_ok=True)
        for name, target in ((path.name, folder / MODEL_FILES[backend]), *((n, folder / n) for n in version.beside)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(find_beside(path, name), target)
        if backend == "python":
            target = folder / MODEL_PROGRAM
            target.write_bytes(resources.files("corp_onnx.triton").joinpath("model.py").read_bytes())
    except OSError as error:
        raise OutputError(f"{path}: could not be copied as {target.name} ({error.strerror or error}).") from error


def _report(entry: Entry, root: Path) -> ServedModel:
    config = entry.config
    type_name = import_schema().DataType.Name
    inputs, outputs = (
        tuple(ServedTensor(t.name, type_name(t.data_type).removeprefix("TYPE_"), tuple(t.dims)) for t in tensors)
        for tensors in (config.input, config.output)
    )
    recipe = config.parameters[METADATA_KEY].string_value if METADATA_KEY in config.parameters else None
    return ServedModel(
        name=entry.name,
        path=str(root / entry.name),
        backend=entry.backend,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        n_labels=len(entry.labels),
        recipe=None if recipe is None else Recipe.from_json(recipe),
        versions=tuple(_describe(version) for version in entry.versions),
        labels=entry.meaning,
    )


def _describe(version: Version) -> ServedVersion:
    path = version.path
    n_bytes = sum(find_beside(path, name).stat().st_size for name in (path.name, *version.beside))
    return ServedVersion(version.number, str(path), hash_file(path), n_bytes)
