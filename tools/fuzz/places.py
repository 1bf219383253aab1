"""Scenes with bad places: full disks, links, pipes and folders where files should be, streams that are closed.

A full disk is a limit on the size of a file, which needs no rights, and /dev/full.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fuzz.draw import Rng, pick
from fuzz.values import Command
from fuzz.verbs import VERBS

WRITING = ("prune", "paper", "fp16", "int8", "static")
"""Verbs that write p.onnx."""

HIDDEN = ".corp-onnx-partial-"
"""Begin of the names of hidden folders, written out: an attack does not ask the package."""


def _writing(rng: Rng, *more: str) -> Command:
    command = VERBS[pick(rng, WRITING)]
    return replace(command, arguments=(*command.arguments, *more))


def full_disk(work: Path, rng: Rng) -> Command:
    """No file may grow beyond some kilobytes."""
    del work
    return replace(VERBS[pick(rng, [*WRITING, "triton", "python"])], file_size=int(rng.integers(1, 60_000)))


def output_full(work: Path, rng: Rng) -> Command:
    """The result goes to a disk that is full."""
    del work
    return replace(VERBS[pick(rng, ["inspect", "evaluate", "bench"])], stdout="/dev/full")


def odd_destination(work: Path, rng: Rng) -> Command:
    """A folder, a pipe, a link, a device where the new file should be."""
    path = work / "p.onnx"
    makers = (
        lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/full"),
        lambda: path.symlink_to("/dev/null"), lambda: path.symlink_to("p.onnx"), lambda: path.symlink_to("nowhere/x"),
        lambda: path.symlink_to("m.onnx"), lambda: path.hardlink_to(work / "m.onnx"), lambda: path.write_bytes(b"old"),
        lambda: (work / "p.report.json").mkdir(), lambda: (work / "p.onnx.data").mkdir(),
        lambda: (work / "p.onnx.data").symlink_to("m.onnx"), lambda: path.symlink_to("new.onnx"),
    )  # fmt: skip
    pick(rng, makers)()
    force = pick(rng, [(), ("--force",)])
    command = _writing(rng, *force)
    return replace(command, outputs=(*command.outputs, "new.onnx", "nowhere"))


def odd_parent(work: Path, rng: Rng) -> Command:
    """A folder for the new file that is none, or that is missing."""
    (work / "file").write_bytes(b"a file")
    (work / "loop").symlink_to("loop")
    (work / "dangling").symlink_to("nowhere")
    parent = pick(rng, ["file", "loop", "dangling", "new/deep", "m.onnx", "/dev/full", "/proc/self", "/dev/fd/9"])
    command = VERBS[pick(rng, WRITING)]
    words = tuple(f"{parent}/p.onnx" if word == "p.onnx" else word for word in command.arguments)
    return replace(command, arguments=words, outputs=("new/deep/p.onnx", "new/deep", "new"))


def odd_repository(work: Path, rng: Rng) -> Command:
    """A Triton repository that is a file, a pipe, a link, or holds something of the model's name."""
    path = work / "repository"

    def fill(make: object) -> None:
        path.mkdir()
        make()  # type: ignore[operator]

    makers = (
        lambda: path.write_bytes(b"a file"), lambda: os.mkfifo(path), lambda: path.symlink_to("repository"),
        lambda: path.symlink_to("/dev/full"), lambda: fill(lambda: (path / "m").write_bytes(b"a file")),
        lambda: fill(lambda: os.mkfifo(path / "m")), lambda: fill(lambda: (path / "m").symlink_to("..")),
        lambda: fill(lambda: (path / "m").mkdir()), lambda: fill(lambda: (path / "m" / "1").mkdir(parents=True)),
        lambda: fill(lambda: (path / "m" / "config.pbtxt").mkdir(parents=True)),
    )  # fmt: skip
    pick(rng, makers)()
    more = pick(rng, [(), ("--force",), ("--name", "m", "--add")])
    command = VERBS["triton"]
    return replace(command, arguments=(*command.arguments, *more))


def odd_leftover(work: Path, rng: Rng) -> Command:
    """Something that looks like the hidden folder of a run that was killed."""
    path = work / f"{HIDDEN}0123456789abcdef"
    makers = (
        lambda: path.mkdir(), lambda: path.write_bytes(b"a file"), lambda: os.mkfifo(path),
        lambda: path.symlink_to("photos"), lambda: path.symlink_to("nowhere"), lambda: path.symlink_to("/dev/zero"),
    )  # fmt: skip
    pick(rng, makers)()
    command = VERBS[pick(rng, [*WRITING, "triton"])]
    return replace(command, outputs=(*command.outputs, path.name))


def odd_model_place(work: Path, rng: Rng) -> Command:
    """The model is a folder, a pipe, a device, or behind links."""
    path, real = work / "m.onnx", work / "real.onnx"
    path.rename(real)
    makers = (
        lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("m.onnx"), lambda: path.symlink_to("real.onnx"), lambda: path.hardlink_to(real),
        lambda: path.symlink_to("/dev/stdin"), lambda: path.symlink_to("."), lambda: None,
    )  # fmt: skip
    pick(rng, makers)()
    return VERBS[pick(rng, list(VERBS))]


def odd_environment(work: Path, rng: Rng) -> Command:
    """No home, no temporary folder, another language."""
    odd = ({"HOME": "/nowhere"}, {"TMPDIR": "/nowhere"}, {"LC_ALL": "C"}, {"LC_ALL": "tr_TR.UTF-8"}, {"TERM": "dumb"},
           {"COLUMNS": "1"}, {"COLUMNS": "x"}, {"PYTHONUTF8": "0", "LC_ALL": "POSIX"}, {"FORCE_COLOR": ""})  # fmt: skip
    del work
    return replace(VERBS[pick(rng, list(VERBS))], environment=pick(rng, odd))


SCENES = (
    full_disk, output_full, odd_destination, odd_parent, odd_repository, odd_leftover, odd_model_place, odd_environment,
)  # fmt: skip
