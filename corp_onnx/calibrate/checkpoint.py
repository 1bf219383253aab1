"""Running sums of an interrupted calibration, in a file from which it goes on as if nothing had happened.

Enters sums after some images; leaves one safetensors file, whole or not at all, with what they are of. Whoever goes on
from it meets the same batches at the same borders, so that every bit of the moments is that of a run in one go. Where
units are collected in several passes, each has a file of its own, and one of what it found.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

from corp_onnx.calibrate.finished import Entries, map_finished, write_finished
from corp_onnx.errors import InputError
from corp_onnx.images import Skipped
from corp_onnx.moments.sums import RunningSum
from corp_onnx.moments.tiles import inside, under
from corp_onnx.staging import staged_files
from corp_onnx.tensor_file import read_tensors, write_tensors

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
        except InputError:
            if self.anew:
                return Done()
            raise

    def keep(self, sums: Sequence[RunningSum], done: Done, about: Mapping[str, str]) -> None:
        """Write the sums, where it is time.

        Raises:
            OutputError: the place can not be written, or the disk is full.
        """
        started = monotonic()
        if started < self._due:
            return
        states = [under(str(at), running.state()) for at, running in enumerate(sums)]
        text = {
            "schema": SCHEMA,
            "identity": json.dumps({**self.identity, **about}),
            "n_done": str(done.n_images),
            "skipped": json.dumps([(s.name, s.reason) for s in done.skipped]),
        }
        with staged_files({self.option: self.path}, force=True) as (path,):
            write_tensors(path, {k: a for state in states for k, a in state.items()}, text, self.path)
        now = monotonic()
        self._due = now + max(self.every, SHARE * (now - started) if self.every else 0)

    def at_pass(self, at: int) -> Checkpoint:
        """That of one of several passes."""
        return replace(self, path=self.path.with_name(f"{self.path.name}.{at}"))

    @property
    def finished(self) -> Path:
        """Where the moments of a finished pass lie."""
        return self.path.with_name(f"{self.path.name}.done")

    def find_finished(self, about: Mapping[str, str]) -> Entries | None:
        """The moments of this pass, mapped; None where it is not finished.

        Raises:
            InputError: the file is of something else.
        """
        if not self.finished.exists():
            return None
        try:
            return map_finished(self.finished, {**self.identity, **about})
        except InputError:
            if self.anew:
                return None
            raise

    def keep_finished(self, entries: Entries, about: Mapping[str, str]) -> Entries:
        """The moments of this pass, mapped; its sums are not needed any more."""
        identity = {**self.identity, **about}
        with staged_files({self.option: self.finished}, force=True) as (path,):
            write_finished(entries, path, identity, self.finished)
        self.path.unlink(missing_ok=True)
        return map_finished(self.finished, identity)

    def remove(self) -> None:
        """The files are not needed any more; what is mapped from them stays readable on Linux and macOS."""
        for path in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.[0-9]*")):
            with suppress(PermissionError):  # Windows removes nothing that is mapped
                path.unlink(missing_ok=True)

    def _read(self, sums: Sequence[RunningSum], identity: Mapping[str, str]) -> Done:
        file = read_tensors(self.path)
        if file.metadata.get("schema") != SCHEMA:
            raise InputError(f"{self.path}: is no checkpoint of this version of corp-onnx; remove it to start anew.")
        found = json.loads(file.metadata["identity"])
        for name in sorted({*found, *identity}):
            then, now = found.get(name, "nothing"), identity.get(name, "nothing")
            if then != now:
                raise InputError(
                    f"{self.path}: is the checkpoint of another calibration ({name}: {then} there, {now} here); "
                    "remove it to start anew."
                )
        for at, running in enumerate(sums):
            running.restore(inside(str(at), file.arrays))
        skipped = tuple(Skipped(name, reason) for name, reason in json.loads(file.metadata["skipped"]))
        return Done(int(file.metadata["n_done"]), skipped)
