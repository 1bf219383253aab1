"""Files that appear whole or not at all: written in a hidden folder beside their place, renamed when complete.

A rename inside one file system is atomic, so whoever looks at the destination sees the old file or the new one. An
interrupt or an error removes the folder; a killed run leaves it behind, and the next run to the same place removes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import external_data_helper

from corp_onnx.errors import OutputError
from corp_onnx.graph import MAX_PROTO_BYTES

MARK = ".corp-onnx-partial-"
"""Begin of the name of every folder of unfinished files; the process number ends it."""


@contextmanager
def staged_folder(destination: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside `destination`; what stands in it at the end is renamed to the destination's folder.

    Args:
        destination: the main file to be; its name decides nothing but whether something is in the way.
        force: whether files that exist may be replaced.

    Raises:
        OutputError: the destination exists, or its folder is missing, not writable or full.
    """
    parent = destination.parent
    if destination.is_dir():
        raise OutputError(f"{destination}: is a folder; give the name of a file.")
    if destination.exists() and not force:
        raise OutputError(f"{destination}: exists already; give another -o, or --force to replace it.")
    _remove_orphans(parent)
    stage = parent / f"{MARK}{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir()
    except OSError as error:
        raise OutputError(f"{parent}: can not be written ({error.strerror}); give another -o.") from error
    try:
        yield stage
        for file in sorted(stage.iterdir(), key=lambda f: f.suffix == ".onnx"):  # the model last: it names the others
            file.replace(parent / file.name)
    except OSError as error:
        if error.filename is not None and str(stage) not in str(error.filename):
            raise
        raise OutputError(f"{destination}: could not be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _remove_orphans(parent: Path) -> None:
    """Folders whose process is gone."""
    for folder in parent.glob(f"{MARK}*") if parent.is_dir() else []:
        owner = folder.name.removeprefix(MARK)
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)


def write_model(proto: onnx.ModelProto, path: Path, source_folder: Path) -> None:
    """Write a model; one whose weights lived in external files, or that outgrows protobuf, gets one file of them.

    Args:
        source_folder: where external weights that are still references are read from.

    Raises:
        OutputError: the disk is full or the folder not writable.
    """
    external = any(external_data_helper.uses_external_data(t) for t in proto.graph.initializer)
    inline_bytes = sum(len(t.raw_data) for t in proto.graph.initializer)
    try:
        if not external and inline_bytes < MAX_PROTO_BYTES:
            path.write_bytes(proto.SerializeToString())
            return
        external_data_helper.load_external_data_for_model(proto, str(source_folder))
        onnx.save_model(
            proto, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
            location=f"{path.name}.data", size_threshold=1024, convert_attribute=False,
        )  # fmt: skip
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path.name}: could not be written to {path.parent.parent} ({reason}).") from error
