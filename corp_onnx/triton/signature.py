"""What a server must know of a model: its tensors, how photographs are prepared for it, the names of its classes.

Enters the path of an ONNX file or of an engine; leaves a `Signature`. ONNX Runtime is asked and not the file, because
Triton asks it too: what the graph does not declare is inferred there, and a file that does not load is refused here and
not by the server. Quantised models are as welcome as others. An engine says nothing where there is no GPU: the
description is read that `corp-onnx engine` wrote beside it, or the ONNX file that it was built from.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from corp_onnx.errors import InputError, ModelError, OptionError
from corp_onnx.graph.external import list_locations
from corp_onnx.graph.model import hash_file
from corp_onnx.graph.proto import has_bfloat16
from corp_onnx.images.label_files import read_model_names
from corp_onnx.images.preprocessing import find_own_recipe
from corp_onnx.images.recipe import METADATA_KEY, Recipe
from corp_onnx.images.regular import read_text
from corp_onnx.run.feeds import ELEMENT_TYPES
from corp_onnx.run.noise import IMAGE_SIZES, TOKEN_COUNTS, describe_feeds
from corp_onnx.run.sessions import Session, open_session
from corp_onnx.tensorrt.engine import description_path

PROBED_SAMPLES = 3
"""More than one, and no number that an axis of two views or two heads would have by chance."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; `dtype` is NumPy's name, an axis of unknown length is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs: in the model's order.
        outputs: in the model's order.
        sizes: for each input, the shape of one sample (without the batch axis where `is_batched`) that the model ran
            on; None where its dynamic axes were not guessed.
        recipe: preprocessing of photographs, None for other inputs.
        carries_recipe: whether `recipe` stands in the file or beside it, and is not only a guess for its input size.
        labels: class names by index, empty where the file has none.
        max_batch: the most samples that it takes at once, None where it knows no bound.
        beside: names of the files that hold its weights, relative to its folder.
        joins: whether several samples together give a row of every output for each; a file may say so and not do it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: tuple[tuple[int, ...], ...] | None
    recipe: Recipe | None
    carries_recipe: bool
    labels: tuple[str, ...]
    max_batch: int | None = None
    beside: tuple[str, ...] = ()
    joins: bool = True

    @property
    def is_batched(self) -> bool:
        """Whether the first axis of every tensor is the number of samples, and dynamic."""
        return self.joins and self.says_batched

    @property
    def says_batched(self) -> bool:
        """Whether the first axis of every tensor is dynamic."""
        return all(t.shape and t.shape[0] is None for t in (*self.inputs, *self.outputs))


def read_signature(path: Path) -> Signature:
    """Open a model with ONNX Runtime, and run it once on zeros.

    Raises:
        ModelError: it can not be loaded or run, or has tensors that no server takes.
    """
    session = open_session(path)
    proto = _parse(path)
    if has_bfloat16(proto):
        raise ModelError(f"{path}: holds bfloat16, which ONNX Runtime's backends do not serve; convert it to float16.")
    inputs = tuple(_read_spec(v, path) for v in session.native.get_inputs())
    outputs = tuple(_read_spec(v, path) for v in session.native.get_outputs())
    metadata = session.metadata
    try:
        own = find_own_recipe(path, metadata, inputs[0].shape)
        recipe, is_known = own.recipe, METADATA_KEY in metadata or not own.guessed
    except ModelError as error:
        if METADATA_KEY in metadata:
            raise ModelError(f"{path}: {error}") from error
        recipe, is_known = None, False  # token ids, features: nothing that photographs go into
    names, beside = read_model_names(path, metadata), _name_external_files(proto, path)
    found = Signature(inputs, outputs, None, recipe, is_known, names.titles if names else (), beside=beside)
    found = replace(found, sizes=_find_sizes(session, found))
    if found.sizes is None or not found.is_batched or _gives_rows(session, found, found.sizes):
        return found
    return replace(found, joins=False, sizes=tuple((1, *size) for size in found.sizes))


def read_engine_signature(path: Path, like: Path | None) -> Signature:
    """What an engine takes and gives, by its description or by the ONNX file that it was built from.

    Recipe and labels are those of that file; the description knows where it was, and what it was.

    Raises:
        ModelError: the description or the ONNX file can not be read, or they are of different models.
        OptionError: neither is there.
    """
    described = description_path(path)
    if not described.is_file():
        if like is None:
            raise OptionError(
                f"{path}: {described.name}, which `corp-onnx engine` writes beside an engine, is not there; give the "
                "ONNX file that it was built from with --like."
            )
        return replace(read_signature(like), beside=())
    try:
        stored = json.loads(read_text(described))
        found = _read_description(stored)
        source = Path(stored["source"])
        is_there = source.is_file() and hash_file(source) == stored["source_sha256"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{described}: is no description that `corp-onnx engine` wrote ({error!r}).") from error
    model = like or (source if is_there else None)
    if model is None:
        return found
    origin = read_signature(model)
    if {t.name for t in (*origin.inputs, *origin.outputs)} != {t.name for t in (*found.inputs, *found.outputs)}:
        raise ModelError(f"{path}: was not built from {model}, whose tensors have other names; give another --like.")
    return replace(found, recipe=origin.recipe, carries_recipe=origin.carries_recipe, labels=origin.labels)


def _read_description(stored: dict[str, Any]) -> Signature:
    inputs, outputs = (
        tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in stored[side])
        for side in ("inputs", "outputs")
    )
    found = Signature(inputs, outputs, None, None, False, ())
    best = [tuple(t["optimum"] or t["shape"]) for t in stored["inputs"]]
    if not found.is_batched:
        return replace(found, sizes=tuple(best))
    largest = min(t["maximum"][0] for t in stored["inputs"])
    return replace(found, sizes=tuple(shape[1:] for shape in best), max_batch=largest)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:  # ONNX Runtime also loads its own format
        raise ModelError(f"{path}: is a model of ONNX Runtime's own format; give the .onnx file.") from error


def _name_external_files(proto: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Files beside the model; they are there, because ONNX Runtime has loaded it."""
    names = list_locations(proto)
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelError(f"{path}: its weights lie in '{name}', outside of its folder; save them beside the model.")
    return names


def _read_spec(value: Any, path: Path) -> TensorSpec:
    if value.type not in ELEMENT_TYPES:
        raise ModelError(f"{path}: tensor '{value.name}' has type {value.type}; expected a tensor of numbers.")
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in value.shape)
    return TensorSpec(value.name, ELEMENT_TYPES[value.type], shape)


def _find_sizes(session: Session, found: Signature) -> tuple[tuple[int, ...], ...] | None:
    """Sizes of one sample that the model runs on: its own, and where it has none the likely ones."""
    shapes = [t.shape[1:] if found.is_batched else t.shape for t in found.inputs]
    failure: InputError | None = None
    for image, tokens in itertools.zip_longest(IMAGE_SIZES, TOKEN_COUNTS, fillvalue=TOKEN_COUNTS[0]):
        sizes = tuple(_fill(shape, len(t.shape), image, tokens) for shape, t in zip(shapes, found.inputs, strict=True))
        try:
            _run_zeros(session, found, sizes)
        except ModelError as error:
            failure = failure or error
        else:
            return sizes
        if all(None not in shape for shape in shapes):
            raise failure
    return None


def _fill(shape: Sequence[int | None], rank: int, image: int, tokens: int) -> tuple[int, ...]:
    """Unknown axes of an image are its height and width, and its batch is 1; those of others count tokens."""
    if rank == 4:
        return tuple(axis or (image if i >= len(shape) - 2 else 1) for i, axis in enumerate(shape))
    return tuple(axis or tokens for axis in shape)


def _gives_rows(session: Session, found: Signature, sizes: Sequence[tuple[int, ...]]) -> bool:
    """Whether a batch of zeros gives as many rows of every output; one that is refused can not be joined either."""
    try:
        results = _run_zeros(session, found, sizes, PROBED_SAMPLES)
    except ModelError:
        return False
    return all(result.ndim > 0 and len(result) == PROBED_SAMPLES for result in results)


def _run_zeros(session: Session, found: Signature, sizes: Sequence[tuple[int, ...]], n: int = 1) -> list[np.ndarray]:
    batch = (n,) if found.is_batched else ()
    try:
        feeds = {t.name: np.zeros((*batch, *size), t.dtype) for t, size in zip(found.inputs, sizes, strict=True)}
    except ValueError as error:  # more numbers than an address can name
        raise MemoryError from error
    try:
        return session.run(None, feeds)
    except ModelError as error:
        raise ModelError(f"{error} It was fed zeros: {describe_feeds(feeds)}.") from error
