"""Sums over images and tokens, as values: everything that is solved is solved from these, nothing else is kept.

Frozen moments of one unit, or a `Moments` of many units; they can be merged, saved and loaded. `sums.py` fills them.
Sums are raw and float64, means and covariances are derived from them; a covariance has ddof 0.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from corp_onnx.errors import InputError, OutputError
from corp_onnx.memory import forget_pages

SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMoments:
    """Sums of one tensor x [tokens, n] over tokens: `count`, sum of x, and sum of x x'.

    `count` is the number of tokens, or the sum of the token weights where weights were given.
    """

    count: int | float
    total: Float[np.ndarray, "n"]
    gram: Float[np.ndarray, "n n"]

    def __post_init__(self) -> None:
        n = self.total.size
        _require_shapes((self.total, (n,)), (self.gram, (n, n)))

    @property
    def n_tokens(self) -> int | float:
        """`count`, under the name that all moments have."""
        return self.count

    @property
    def mean(self) -> Float[np.ndarray, "n"]:
        """E[x]."""
        return self.total / self.count

    @property
    def covariance(self) -> Float[np.ndarray, "n n"]:
        """E[(x - E x)(x - E x)'], ddof 0; a new n x n array at every call."""
        covariance = self.gram / self.count
        covariance -= np.outer(self.mean, self.mean)
        forget_pages(self.gram)
        return covariance

    @property
    def energy(self) -> Float[np.ndarray, "n"]:
        """E[x_j^2]."""
        energy = np.diagonal(self.gram) / self.count
        forget_pages(self.gram)  # reading the diagonal maps what lies around it
        return energy


@dataclass(frozen=True, slots=True, eq=False)
class CrossMoments:
    """Sums of a regressor x [tokens, n] and a target y [tokens, m] over (weighted) tokens: what a refit needs."""

    count: int | float
    x_total: Float[np.ndarray, "n"]
    x_gram: Float[np.ndarray, "n n"]
    y_total: Float[np.ndarray, "m"]
    y_energy: Float[np.ndarray, "m"]
    cross: Float[np.ndarray, "m n"]

    def __post_init__(self) -> None:
        n, m = self.x_total.size, self.y_total.size
        _require_shapes((self.x_total, (n,)), (self.x_gram, (n, n)), (self.cross, (m, n)))
        _require_shapes((self.y_total, (m,)), (self.y_energy, (m,)))

    @property
    def n_tokens(self) -> int | float:
        """`count`, under the name that all moments have."""
        return self.count

    @property
    def regressor(self) -> ChannelMoments:
        """The moments of x alone."""
        return ChannelMoments(self.count, self.x_total, self.x_gram)

    @property
    def cross_covariance(self) -> Float[np.ndarray, "m n"]:
        """E[(y - E y)(x - E x)'], ddof 0."""
        return self.cross / self.count - np.outer(self.y_total / self.count, self.x_total / self.count)


@dataclass(frozen=True, slots=True, eq=False)
class LogitMoments:
    """Sums of the queries and keys of one attention unit, per head, over all images and tokens.

    Grams are sums of q q' and k k'; `k_centred_gram` has the keys centred over the tokens of their own image (softmax
    does not see the difference). `logit_energy` is the sum over images of |q_j|^2 |k_j|^2, j a head dimension and the
    norms over the tokens of the image (paper eq. 12, not yet divided by n_images).
    """

    n_images: int
    n_tokens: int
    n_key_tokens: int
    q_gram: Float[np.ndarray, "h d d"]
    k_gram: Float[np.ndarray, "h d d"]
    k_centred_gram: Float[np.ndarray, "h d d"]
    logit_energy: Float[np.ndarray, "h d"]

    def __post_init__(self) -> None:
        n_heads, d_head = self.logit_energy.shape
        _require_shapes(*((a, (n_heads, d_head, d_head)) for a in (self.q_gram, self.k_gram, self.k_centred_gram)))


AnyMoments = ChannelMoments | CrossMoments | LogitMoments
_Kind = TypeVar("_Kind", ChannelMoments, CrossMoments, LogitMoments)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The moments of a model: (unit key, moments of that unit), in the order of the units; reads like a dict."""

    entries: tuple[tuple[str, AnyMoments], ...]

    def __post_init__(self) -> None:
        if len(set(self.keys())) != len(self.entries):
            raise ValueError("expected every unit key once")

    def keys(self) -> tuple[str, ...]:
        """The unit keys, in order."""
        return tuple(key for key, _ in self.entries)

    def __getitem__(self, key: str) -> AnyMoments:
        return dict(self.entries)[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.entries)


def merge_moments(a: _Kind, b: _Kind) -> _Kind:
    """The moments of both sets of images together; either may come first."""
    if type(a) is not type(b):
        raise InputError(f"expected two moments of one kind, found {type(a).__name__} and {type(b).__name__}")
    names = [f.name for f in dataclasses.fields(a)]
    merged: dict[str, Any] = {name: _merge_field(name, getattr(a, name), getattr(b, name)) for name in names}
    return type(a)(**merged)


def pack_moments(unit: AnyMoments) -> dict[str, np.ndarray]:
    """The moments of a unit as arrays by name, float64 and int64 as they are."""
    kind = type(unit).__name__
    return {f"{kind}.{f.name}": np.asarray(getattr(unit, f.name)) for f in dataclasses.fields(unit)}


def unpack_moments(arrays: Mapping[str, np.ndarray]) -> AnyMoments:
    """What `pack_moments` was given; arrays that are mapped stay so.

    Raises:
        InputError: arrays are missing, or of shapes that do not go together.
    """
    kinds = {kind.__name__: kind for kind in (ChannelMoments, CrossMoments, LogitMoments)}
    try:
        kind = kinds[next(iter(arrays), "").split(".")[0]]
        return kind(**{f.name: _plain(arrays[f"{kind.__name__}.{f.name}"]) for f in dataclasses.fields(kind)})
    except (KeyError, ValueError) as error:
        raise InputError(f"the stored moments are damaged ({error}); calibrate anew.") from error


def flatten_moments(entries: Iterable[tuple[str, AnyMoments]]) -> dict[str, np.ndarray]:
    """The moments of several units as arrays of one file, `unit/name`."""
    return {f"{key}/{name}": array for key, unit in entries for name, array in pack_moments(unit).items()}


def gather_moments(arrays: Mapping[str, np.ndarray]) -> dict[str, AnyMoments]:
    """What `flatten_moments` was given, by unit; arrays that are mapped stay so.

    Raises:
        InputError: as `unpack_moments`.
    """
    by_unit: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        key, _, own = name.rpartition("/")
        by_unit.setdefault(key, {})[own] = array
    return {key: unpack_moments(own) for key, own in by_unit.items()}


def save_moments(moments: Moments, path: str | os.PathLike[str]) -> None:
    """Writes one .npz (schema 1, no pickles), whole or not at all; float64 as it is: n x n x 8 bytes for each unit."""
    path = Path(path)
    arrays: dict[str, np.ndarray] = {
        "schema": np.array(SCHEMA),
        "keys": np.array(moments.keys(), dtype=np.str_),
        "kinds": np.array([type(unit).__name__ for _, unit in moments.entries], dtype=np.str_),
    }
    for i, (_, unit) in enumerate(moments.entries):
        for f in dataclasses.fields(unit):
            arrays[f"{i}.{f.name}"] = np.asarray(getattr(unit, f.name))
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"can not write the moments to {path}: {error}; choose a writable destination") from error


def load_moments(path: str | os.PathLike[str]) -> Moments:
    """What `save_moments` wrote.

    Raises:
        InputError: the file is missing, damaged, or of another schema.
    """
    kinds = {kind.__name__: kind for kind in (ChannelMoments, CrossMoments, LogitMoments)}
    try:
        # opened here: np.load leaves the handle open when what it reads is no zip
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if int(file["schema"]) != SCHEMA:
                raise InputError(f"expected moments of schema {SCHEMA} in {path}, found {file['schema']}; collect anew")
            units: list[tuple[str, AnyMoments]] = []
            for i, (key, kind) in enumerate(zip(file["keys"], file["kinds"], strict=True)):
                names = [f.name for f in dataclasses.fields(kinds[kind])]
                units.append((str(key), kinds[kind](**{name: _plain(file[f"{i}.{name}"]) for name in names})))
    except (OSError, KeyError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"expected moments written by corp-onnx in {path}: {error}; collect them anew") from error
    return Moments(tuple(units))


def _merge_field(name: str, a: Any, b: Any) -> Any:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape != b.shape:
        raise InputError(f"expected moments of one model, found {name} of shapes {a.shape} and {b.shape}")
    return a + b


def _plain(array: np.ndarray) -> Any:
    return array if array.ndim else array.item()


def _require_shapes(*expected: tuple[np.ndarray, tuple[int, ...]]) -> None:
    for array, shape in expected:
        if array.shape != shape:
            raise ValueError(f"expected an array of shape {shape}, found {array.shape}")
