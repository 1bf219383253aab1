"""What a run finds out about a model on images, kept for the next one: arrays by name, bound to what they are of.

A stage that is dear asks here before it works (`recall`): under the name of what it finds and a key of everything that
this depends on besides the model and the images, which a `Findings` is of as a whole. Nobody who asks can get what was
found under other conditions: the key is part of the name.

    moments/blocks.0.mlp/4a1c.../gram        an array of the moments of one unit
    probes/7be0.../losses                    ...

A file of it is a safetensors file (tensor_file.py): mapped, so that what nobody asks for is never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from corp_onnx._version import __version__
from corp_onnx.errors import InputError
from corp_onnx.tensor_file import read_tensors, write_tensors

T = TypeVar("T")

SCHEMA = 1

Arrays = Mapping[str, np.ndarray]
"""What one stage finds out, by names of its own."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What findings are of; only those of the same are of any use.

    Attributes:
        model: sha256 of the file.
        images: of what they were found on: the hash of the images (or a hash of the hashes of several sets).
        recipe: the preprocessing as JSON; empty for arrays.
    """

    model: str
    images: str
    recipe: str = ""

    @property
    def name(self) -> str:
        """A file name for it."""
        return f"{self.model[:16]}-{digest_key([self.images, self.recipe])}"


@dataclass(slots=True, eq=False)
class Findings:
    """What was found out so far about one subject.

    Attributes:
        subject: None remembers for this run only, whatever it is.
        about: texts that are kept beside the arrays: where the images lie (calibrate/file.py).
    """

    subject: Subject | None = None
    about: dict[str, str] = field(default_factory=dict)
    _arrays: dict[str, np.ndarray] = field(default_factory=dict)
    _n_stored: int = 0
    _part: str = ""
    _values: dict[str, Any] | None = None

    @property
    def is_new(self) -> bool:
        """Whether something was found that its file does not hold."""
        return len(self._arrays) > self._n_stored

    @property
    def is_shared(self) -> bool:
        """Whether another run on the same images follows."""
        return self._values is not None

    def part(self, name: str) -> Findings:
        """Those on a part of the images, which lie in the same file."""
        return replace(self, _part=f"{self._part}{name}:")

    def share(self) -> None:
        """From now on, what `hold` is asked for stays in memory: another run on the same images follows."""
        self._values = {}

    def hold(self, stage: str, key: Mapping[str, Any], make: Callable[[], T]) -> T:
        """As `recall`, of a value that is made of findings and lies in no file; made anew unless runs share it."""
        if self._values is None:
            return make()
        name = self._name(stage, key)
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]

    def recall(self, stage: str, key: Mapping[str, Any], make: Callable[[], Arrays]) -> Arrays:
        """What a stage finds: as it was found before, or by `make`.

        Args:
            stage: its name, and of what part, with slashes.
            key: everything that it depends on besides the subject, as JSON takes it.
        """
        found = self.find(stage, key)
        if found is None:
            found = make()
            self.keep(stage, key, found)
        return found

    def find(self, stage: str, key: Mapping[str, Any]) -> Arrays | None:
        """What was found before; None where it was not."""
        start = self._name(stage, key)
        every = list(self._arrays.items())  # at once: units that are traced beside this one keep theirs meanwhile
        found = {name.removeprefix(start): array for name, array in every if name.startswith(start)}
        return found or None

    def keep(self, stage: str, key: Mapping[str, Any], found: Arrays) -> None:
        """Remember what a stage found."""
        start = self._name(stage, key)
        self._arrays.update({start + name: np.asarray(array) for name, array in found.items()})

    def _name(self, stage: str, key: Mapping[str, Any]) -> str:
        return f"{stage}/{digest_key([self._part, key])}/"

    def list_stages(self) -> tuple[str, ...]:
        """The first words of what is remembered, each once."""
        return tuple(dict.fromkeys(name.split("/")[0] for name in self._arrays))

    def list_parts(self, stage: str) -> tuple[str, ...]:
        """Stages by their whole name, with slashes, whose first word is this one."""
        parts = ("/".join(name.split("/")[:-2]) for name in self._arrays)
        return tuple(dict.fromkeys(part for part in parts if part.startswith(f"{stage}/")))

    def write(self, path: Path, destination: Path | None = None) -> int:
        """Write all of it.

        Args:
            destination: what an error calls the file.

        Returns:
            the size of the file in bytes.

        Raises:
            OutputError: the disk is full or the folder not writable.
        """
        assert self.subject is not None
        subject = {"model": self.subject.model, "images": self.subject.images, "recipe": self.subject.recipe}
        head = {"schema": str(SCHEMA), "corp_onnx": __version__, **{f"subject.{k}": v for k, v in subject.items()}}
        write_tensors(path, self._arrays, head | {f"about.{k}": v for k, v in self.about.items()}, destination)
        self._n_stored = len(self._arrays)
        return path.stat().st_size


def read_findings(path: Path) -> Findings:
    """What `write` wrote; the arrays stay in the file until somebody looks at them.

    Raises:
        InputError: it is missing, damaged or no such file.
    """
    file = read_tensors(path)
    schema = file.metadata.get("schema")
    if schema != str(SCHEMA) or "subject.model" not in file.metadata:
        raise InputError(
            f"{path}: expected what `corp-onnx calibrate` wrote, of schema {SCHEMA}, found "
            f"{'another safetensors file' if schema is None else f'schema {schema}'}; calibrate anew."
        )
    subject = Subject(*(file.metadata.get(f"subject.{name}", "") for name in ("model", "images", "recipe")))
    about = {k.removeprefix("about."): v for k, v in file.metadata.items() if k.startswith("about.")}
    return Findings(subject, about, dict(file.arrays), len(file.arrays))


def digest_key(key: Any) -> str:
    """A short name for whatever JSON can say."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=list).encode()).hexdigest()[:16]
