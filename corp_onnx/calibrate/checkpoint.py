"""Running sums of an interrupted calibration, in a file from which it goes on as if nothing had happened.

Enters sums after some images; leaves one safetensors file, whole or not at all, with what they are of. Whoever goes on
from it meets the same batches at the same borders, so that every bit of the moments is that of a run in one go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from corp_onnx.errors import InputError, OutputError
from corp_onnx.images import Skipped
from corp_onnx.moments.sums import RunningSum
from corp_onnx.moments.tiles import under
from corp_onnx.staging import staged_files

SCHEMA = "corp_onnx.checkpoint/1"

SHARE = 20
"""A checkpoint is followed by so many times the seconds that it took: sums of large models are gigabytes."""


@dataclass(frozen=True, slots=True)
class Done:
    """How far a run came: images that are in the sums, and files that gave none until then."""

    n_images: int = 0
    skipped: tuple[Skipped, ...] = ()


@dataclass(slots=True, eq=False)
class Checkpoint:
    """Where an interrupted calibration is kept.

    Attributes:
        path: of the file; its folder is made where it is missing.
        identity: what the sums are of, in words: the model, the images, the recipe. Compared as it is.
        every: seconds of work between two writings; 0 writes after every group of calls.
        anew: whether sums of something else, or a file that is none, are written over; else they are an error.
        option: of the command line, by which errors name the place.
    """

    path: Path
    identity: Mapping[str, str]
    every: float = 30.0
    anew: bool = False
    option: str = "-o"
    _due: float = field(default=0.0, init=False)

    def resume(self, sums: Sequence[RunningSum], about: Mapping[str, str]) -> Done:
        """Fill empty sums with what is in the file; without one they stay as they are.

        Args:
            about: what besides the identity has to be as it was.

        Raises:
            InputError: the file is of something else, or no checkpoint.
        """
        self._due = monotonic() + self.every
        if not self.path.exists():
            return Done()
        try:
            return self._read(sums, {**self.identity, **about})
        except _OtherError as error:
            if self.anew:
                return Done()
            raise InputError(f"{error}; remove it to start anew.") from error

    def keep(self, sums: Sequence[RunningSum], done: Done, about: Mapping[str, str]) -> None:
        """Write the sums, where it is time.

        Raises:
            OutputError: the place can not be written, or the disk is full.
        """
        started = monotonic()
        if started < self._due:
            return
        states = [under(str(at), running.state()) for at, running in enumerate(sums)]
        arrays = {name: np.ascontiguousarray(array) for state in states for name, array in state.items()}
        text = {
            "schema": SCHEMA,
            "identity": json.dumps({**self.identity, **about}),
            "n_done": str(done.n_images),
            "skipped": json.dumps([(s.name, s.reason) for s in done.skipped]),
        }
        with staged_files({self.option: self.path}, force=True) as (path,):
            try:
                save_file(arrays, path, text)
            except (OSError, SafetensorError) as error:
                raise OutputError(
                    f"{self.path}: a checkpoint could not be written ({error}); free some room or give another "
                    f"{self.option}."
                ) from error
        now = monotonic()
        self._due = now + max(self.every, SHARE * (now - started) if self.every else 0)

    def remove(self) -> None:
        """The file is not needed any more."""
        self.path.unlink(missing_ok=True)

    def _read(self, sums: Sequence[RunningSum], identity: Mapping[str, str]) -> Done:
        try:
            with safe_open(self.path, framework="numpy") as file:
                text = file.metadata() or {}
                if text.get("schema") != SCHEMA:
                    raise _OtherError(f"{self.path}: is no checkpoint of this version of corp-onnx")
                _require_same(self.path, json.loads(text["identity"]), identity)
                names: dict[str, list[str]] = {}
                for name in file.keys():  # noqa: SIM118
                    at, _, own = name.partition(".")
                    names.setdefault(at, []).append(own)
                for at, running in enumerate(sums):  # one unit's arrays at a time
                    running.restore({own: file.get_tensor(f"{at}.{own}") for own in names[str(at)]})
                skipped = tuple(Skipped(name, reason) for name, reason in json.loads(text["skipped"]))
                return Done(int(text["n_done"]), skipped)
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise _OtherError(f"{self.path}: is no checkpoint that can be read ({error})") from error


class _OtherError(Exception):
    """The file holds something else."""


def _require_same(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for name in sorted({*found, *wanted}):
        then, now = found.get(name, "nothing"), wanted.get(name, "nothing")
        if then != now:
            raise _OtherError(f"{path}: is the checkpoint of another calibration ({name}: {then} there, {now} here)")
