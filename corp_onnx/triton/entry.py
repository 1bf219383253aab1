"""What a Triton repository will hold, before any of it is written: whatever can be refused is refused here.

Enters paths of models and `TritonSettings`; leaves an `Entry` for each model: its name, its configuration, its class
names, and the files that become its versions, which all take and give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from corp_onnx.bench.candidates import ENGINE_SUFFIXES
from corp_onnx.errors import InputError, ModelError, OptionError, OutputError
from corp_onnx.images.label_files import read_class_names
from corp_onnx.images.labels import ClassNames, find_contradiction
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.images.regular import read_text
from corp_onnx.run.openvino import Place, is_installed, open_program
from corp_onnx.triton.config import (
    LABELS_FILE,
    MODEL_FILES,
    MODEL_PROGRAM,
    PLATFORMS,
    TritonSettings,
    import_schema,
    make_config,
    parse_config,
)  # fmt: skip
from corp_onnx.triton.signature import Signature, read_engine_signature, read_signature

CONFIG_FILE = "config.pbtxt"

OWN_NAMES = frozenset({*MODEL_FILES.values(), MODEL_PROGRAM, "__pycache__"})
"""What stands in the folder of a version, in lower case; the server itself writes the last one."""

PROGRAM_SUFFIXES = (".py", ".pyc", ".so", ".pyd", ".dll")
"""What Python imports."""


@dataclass(frozen=True, slots=True)
class Version:
    """One file of a model; `beside` names those with its weights, relative to its folder."""

    number: int
    path: Path
    beside: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One model.

    Attributes:
        name: of its folder.
        backend: as in `TritonSettings`.
        config: a message of Triton's schema.
        labels: class names by index, empty for none.
        versions: those that are to be written.
        is_new: whether its folder is to be made, and not only that of its versions.
        warnings: for the person.
        meaning: what the class names are and where they come from, empty for none.
    """

    name: str
    backend: str
    config: Any
    labels: tuple[str, ...]
    versions: tuple[Version, ...]
    is_new: bool
    warnings: tuple[str, ...]
    meaning: str = ""


def name_models(paths: Sequence[Path], name: str | None) -> dict[str, tuple[Path, ...]]:
    """The files of every model by its name.

    Raises:
        OptionError: no file, two of the same name, or a name that is none for a folder and an address.
    """
    if not paths:
        raise OptionError("nothing to serve: give at least one model.")
    if name is not None:
        if not name or name != _clean(name):
            raise OptionError(f"--name takes letters, digits, '.', '-' and '_', and no '.' in front; found '{name}'.")
        return {name: tuple(paths)}
    named: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        stem = _clean(path.stem) or "model"
        if stem in named:
            raise OptionError(
                f"{named[stem][0]} and {path} would both be called '{stem}'; rename one of the files, or give --name "
                "to serve them as versions of one model."
            )
        named[stem] = (path,)
    return named


def _clean(name: str) -> str:
    """A name that is safe as a folder and in an address."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name).lstrip(".")


def new_entry(name: str, files: tuple[Path, ...], root: Path, settings: TritonSettings, force: bool) -> Entry:
    """A model that is not in the repository, or is to be replaced there.

    Raises:
        InputError: it is there already, a file can not be read, or the files do not take and give the same.
    """
    if (root / name).exists() and not force:
        raise OutputError(
            f"{root / name}: exists already; --add makes a file its next version, --force replaces it, --name calls "
            "the new model something else."
        )
    for path in files:
        _require_suffix(path, settings.backend)
    is_engine = settings.backend == "tensorrt"
    found = [read_engine_signature(path, settings.like) if is_engine else read_signature(path) for path in files]
    first = _agree(found, files)
    labels, warnings = first.labels, []
    meaning = f"the {len(labels)} names of the model" if labels else ""
    if settings.labels is not None:
        given = read_class_names(settings.labels)
        labels, meaning = given.titles, given.meaning
        own = ClassNames(tuple((label,) for label in first.labels), files[0], "")
        if why := find_contradiction(given, own):
            raise InputError(f"{why}; leave --labels out, or give it in the order of the model.")
    elif labels and all(not t.shape or t.shape[-1] != len(labels) for t in first.outputs):
        warnings.append(f"{name}: no output has {len(labels)} classes, so its class names were left out.")
        labels, meaning = (), ""
    if first.sizes is None:
        warnings.append(f"{name}: no warm-up, because it ran on no size that was tried for its dynamic axes.")
    if not first.joins:
        warnings.append(
            f"{name}: requests are not joined, because several samples together do not give a row of every output for "
            "each, or fail."
        )
    config = make_config(name, first, labels, settings, files[0])
    if settings.backend == "openvino":
        warnings += _warn_of_openvino(name, files)
    beside = [_beside(one, path) for one, path in zip(found, files, strict=True)]
    return Entry(name, settings.backend, config, labels, _number(files, beside, 1), True, tuple(warnings), meaning)


def _warn_of_openvino(name: str, files: Sequence[Path]) -> list[str]:
    """What a person may not expect of that backend; where OpenVINO is installed, what it says of the files."""
    said = [
        f"{name}: where the server's processor computes in bfloat16, OpenVINO's backend does so, and has no parameter "
        "for float32; `corp-onnx evaluate --provider openvino:bf16` says what that costs."
    ]
    for path in files if is_installed() else ():
        try:
            open_program(path, Place(), None)
        except ModelError as error:
            said.append(f"{error} Another version of it in the server may.")
    return said


def _agree(found: Sequence[Signature], files: Sequence[Path]) -> Signature:
    """The signature that all versions have; a recipe or labels that only one carries are those of the others too."""
    recipe = next((f.recipe for f in found if f.carries_recipe), found[0].recipe)
    labels = next((f.labels for f in found if f.labels), ())
    for other, path in zip(found, files, strict=True):
        _require_equal("takes or gives", _spell_signature(found[0]), _spell_signature(other), path)
        _require_equal("prepares photographs by", recipe, other.recipe if other.carries_recipe else recipe, path)
        _require_equal("names classes as", labels, other.labels or labels, path)
    bounds = [f.max_batch for f in found if f.max_batch is not None]
    return replace(found[0], recipe=recipe, labels=labels, max_batch=min(bounds, default=None))


def _spell_signature(found: Signature) -> str:
    inputs, outputs = (
        ", ".join(f"{t.name} {t.dtype} [{', '.join('?' if a is None else str(a) for a in t.shape)}]" for t in tensors)
        for tensors in (found.inputs, found.outputs)
    )
    return f"{inputs} -> {outputs}{'' if found.joins else ', one request at a time'}"


def _require_equal(what: str, first: object, other: object, path: Path) -> None:
    if first != other:
        raise ModelError(
            f"{path}: {what} something else than the other versions ({_short(other)}, expected {_short(first)}); serve "
            "it under a name of its own."
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def extend_entry(name: str, files: tuple[Path, ...], root: Path) -> Entry:
    """The next versions of a model that is in the repository; its configuration stays as it is.

    Raises:
        InputError: there is no such model, or a file does not take and give what its versions do.
    """
    folder = root / name
    try:
        config = parse_config(_read_config(folder / CONFIG_FILE))
        stored = folder / LABELS_FILE
        labels = _read_stored_labels(stored) if stored.exists() else ()
        numbers = [int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]
    except OSError as error:
        known = sorted(p.parent.name for p in root.glob(f"*/{CONFIG_FILE}"))
        raise OutputError(
            f"{folder / CONFIG_FILE}: {(error.strerror or str(error)).lower()}, so there is no model '{name}' to add a "
            f"version to; the repository has {', '.join(known) or 'none'}. Give its --name, or leave --add out."
        ) from error
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    backend = next((b for b, platform in PLATFORMS.items() if config.platform == platform), config.backend)
    if backend not in MODEL_FILES:
        raise ModelError(f"{folder}: is served by '{backend}'; versions are added for {', '.join(MODEL_FILES)}.")
    for path in files:
        _require_suffix(path, backend)
    # of an engine the server itself compares the tensors
    beside = [() if backend == "tensorrt" else _read_alike(path, config, labels, backend) for path in files]
    return Entry(name, backend, config, labels, _number(files, beside, max(numbers, default=0) + 1), False, ())


def _read_config(path: Path) -> str:
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name} is not a configuration that Triton reads ({error.reason}).") from error


def _number(files: Sequence[Path], beside: Sequence[tuple[str, ...]], first: int) -> tuple[Version, ...]:
    return tuple(Version(first + i, *pair) for i, pair in enumerate(zip(files, beside, strict=True)))


def _read_alike(path: Path, config: Any, labels: tuple[str, ...], backend: Any) -> tuple[str, ...]:
    """The files beside a model that takes and gives what a configuration says."""
    found = read_signature(path)
    same = TritonSettings(backend, max_batch=config.max_batch_size or None if found.is_batched else None)
    new = make_config(config.name, found, (), same, path)
    _require_equal("takes or gives", _served_signature(config), _served_signature(new), path)
    if found.carries_recipe and METADATA_KEY in config.parameters:
        served = Recipe.from_json(config.parameters[METADATA_KEY].string_value)
        _require_equal("prepares photographs by", served, found.recipe, path)
    _require_equal("names classes as", labels, found.labels or labels, path)
    return _beside(found, path)


def _beside(found: Signature, path: Path) -> tuple[str, ...]:
    """The files with its weights, which keep their names because the model refers to them by these.

    None may get the place of a file of ours, on a file system that ignores case neither, nor be one that the Python of
    the server would import from there: a weight is a number and never a program.
    """
    for name in found.beside:
        first, *_ = parts = PurePosixPath(name.replace("\\", "/").casefold()).parts
        if first in OWN_NAMES or parts[-1].endswith(PROGRAM_SUFFIXES):
            raise ModelError(
                f"{path}: its weights lie in '{name}', which a server would take for the model or for a program; save "
                "it again with another name for them."
            )
    return found.beside


def _served_signature(config: Any) -> str:
    type_name = import_schema().DataType.Name
    inputs, outputs = (
        ", ".join(f"{t.name} {type_name(t.data_type).removeprefix('TYPE_')} {list(t.dims)}" for t in tensors)
        for tensors in (config.input, config.output)
    )
    return f"{inputs} -> {outputs}"


def _require_suffix(path: Path, backend: str) -> None:
    is_engine = path.suffix.lower() in ENGINE_SUFFIXES
    if is_engine and backend != "tensorrt":
        raise OptionError(f"{path}: is a TensorRT engine, and --backend {backend} runs ONNX files; "
                          "give --backend tensorrt.")  # fmt: skip
    if not is_engine and backend == "tensorrt":
        raise OptionError(f"{path}: --backend tensorrt serves engines ({', '.join(ENGINE_SUFFIXES)}); build one with "
                          "`corp-onnx engine`, or give --backend onnxruntime.")  # fmt: skip
    if is_engine and not path.is_file():
        raise ModelError(f"{path}: no such file. Give the path of an engine.")


def _read_stored_labels(path: Path) -> tuple[str, ...]:
    """The class names that a repository holds, one a line by index, whatever they look like."""
    try:
        labels = tuple(read_text(path).splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"{path}: the labels file can not be read ({reason}).") from error
    if not labels or not all(label.strip() for label in labels):
        raise InputError(f"{path}: expected a class name in every line of the labels file, and found an empty one.")
    return labels
