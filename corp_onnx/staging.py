"""Files and folders that appear whole or not at all: made in hidden folders beside their places, renamed when complete.

A rename inside one file system is atomic, so whoever looks at the destination sees the old file or the new one. An
interrupt or an error removes the hidden folders and the folders made for them; a killed run leaves them behind, and
the next run to the same place removes them: a folder is in use while its owner holds a lock on it, whatever process
numbers say (in a container they start again at one).
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from corp_onnx.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: orphans stay
    fcntl = None

MARK = ".corp-onnx-partial-"
"""Begin of the name of every folder of unfinished files."""

OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
"""What is called like one and is a pipe would never open, and what is a link is not ours."""


RESERVE = 2**22
"""Bytes that are free again when a run that got no memory cleans up: to list a folder takes some, too."""


def is_text(path: Path) -> bool:
    """Whether a path is text in UTF-8; on Linux it may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_folder(destination: Path) -> None:
    """Refuse a folder before other names are made of its: `.` and `/` have none.

    Raises:
        OutputError: a folder is there.
    """
    if destination.is_dir():
        raise OutputError(f"{destination}: is a folder; give the name of a file.")


def check_destination(destination: Path, *, force: bool = False, option: str = "-o") -> None:
    """Refuse a place where no file can appear; `option` is what a person would change.

    Raises:
        OutputError: a folder, a device, or (without `force`) a file is there, or a file stands where a folder must be.
    """
    refuse_folder(destination)
    if not is_text(destination.absolute()):
        raise OutputError(
            f"{destination}: its absolute path is not UTF-8, and onnx and ONNX Runtime open no such path; give another "
            f"{option}."
        )
    if destination.exists() and not destination.is_file():
        raise OutputError(f"{destination}: is not a regular file; give another {option}.")
    if os.path.lexists(destination) and not force:
        raise OutputError(f"{destination}: exists already; give another {option}, or --force to replace it.")
    above = next(folder for folder in destination.absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{destination}: {above} is not a folder; give another {option}.")


def check_destinations(destinations: Mapping[str, Path], *, force: bool = False) -> None:
    """The same of several files, by the option that names each; none may be another."""
    for option, destination in destinations.items():
        check_destination(destination, force=force, option=option)
    if len({os.path.realpath(d) for d in destinations.values()}) < len(destinations):
        raise OutputError(f"{' and '.join(destinations)} name the same file; give each its own.")


@contextmanager
def staged_files(
    destinations: Mapping[str, Path],
    *,
    force: bool = False,
    outdated: Sequence[Path] = (),
    before: Callable[[], None] | None = None,
) -> Iterator[tuple[Path, ...]]:
    """A path to write each file to; when the block ends, they and what was written beside them get their places.

    Temporary files of the block lie in the hidden folder, too.

    Args:
        destinations: the files to be, by the option that names each; the first is the main one and appears last.
        force: whether files that exist may be replaced.
        outdated: files that belong to one that is replaced, and go with it unless they are written anew.
        before: called when everything is complete and nothing has its place; what it raises ends the run.

    Raises:
        OutputError: see `check_destination`; or a folder can not be written, or a file appeared meanwhile.
    """
    check_destinations(destinations, force=force)
    made: list[Path] = []
    stages: dict[Path, Path] = {}  # by the folder of the destination: the hidden one
    locks: list[int] = []
    reserve = [bytes(RESERVE)]
    try:
        for option, destination in destinations.items():
            parent = destination.absolute().parent
            if parent not in stages:
                _make_stage(parent, option, made, stages, locks)
        temporary = next(iter(stages.values())) / "temporary"
        temporary.mkdir()
        with temporary_files_in(temporary):
            yield tuple(stages[d.absolute().parent] / d.name for d in destinations.values())
        if before is not None:
            before()
        main = next(iter(destinations.values()))
        _publish({stage: parent for parent, stage in stages.items()}, main, force, outdated)
        made.clear()
    finally:
        reserve.clear()
        _clean_up(stages.values(), locks, made)


@contextmanager
def staged_folders(
    destinations: Sequence[Path], root: Path, *, force: bool = False, option: str = "-o"
) -> Iterator[tuple[Path, ...]]:
    """An empty folder to fill for each destination; when the block ends, all of them get their places below `root`.

    They are filled beside `root` and not in it: whoever watches `root`, as a server that polls it, sees whole folders
    only. Where `root` is a file system of its own, renames end at its border and they are filled inside.

    Args:
        destinations: the folders to be.
        root: the folder that they lie in, at any depth; made where it is missing.
        force: whether folders that exist may be replaced.
        option: what a person would change.

    Raises:
        OutputError: a destination exists, `root` is no folder or can not be written, or the disk is full.
    """
    root = root.absolute()
    made: list[Path] = []
    stages: dict[Path, Path] = {}
    locks: list[int] = []
    reserve = [bytes(RESERVE)]
    try:
        _make_stage(_folder_beside(root), option, made, stages, locks)
        (stage,) = stages.values()
        staged = [stage / str(i) for i in range(len(destinations))]
        for folder in staged:
            folder.mkdir()
        yield tuple(staged)
        places = dict(zip(staged, (d.absolute() for d in destinations), strict=True))
        _publish_folders(places, stage / "replaced", made, force)
        made.clear()
    finally:
        reserve.clear()
        _clean_up(stages.values(), locks, made)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """What would go into the system's temporary folder goes into this one: a killed run's is removed by the next.

    The place is a global of Python's; whoever else asks for a temporary file meanwhile gets it there too.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(folder.absolute())
    try:
        yield
    finally:
        tempfile.tempdir = before


def _folder_beside(root: Path) -> Path:
    """The folder that holds `root`, or `root` itself where it is another file system or its folder is closed to us."""
    parent = root.parent
    if not root.is_dir():
        return parent
    same_device = root.stat().st_dev == parent.stat().st_dev
    return parent if same_device and os.access(parent, os.W_OK) else root


def _publish_folders(places: Mapping[Path, Path], aside: Path, made: list[Path], force: bool) -> None:
    """Rename every folder to its place, what was there to `aside`; all of them or none."""
    done: list[tuple[Path, Path]] = []  # (from, to)
    target = next(iter(places.values()))
    try:
        aside.mkdir()
        for i, (folder, target) in enumerate(places.items()):
            for above in reversed(target.parents):
                if not above.exists():
                    made.append(above)
                    above.mkdir()
            if os.path.lexists(target):
                if not force:
                    raise OutputError(f"{target}: exists already; --force replaces it.")
                done.append((target, aside / str(i)))
                target.rename(aside / str(i))
            done.append((folder, target))
            folder.rename(target)
    except BaseException as error:
        for source, moved in reversed(done):
            if not os.path.lexists(source):  # the last one may not have moved, and what stands there is not ours
                moved.rename(source)
        if isinstance(error, OSError):
            raise OutputError(f"{target}: could not be written ({error.strerror or error}).") from error
        raise


def _clean_up(stages: Iterable[Path], locks: list[int], made: Sequence[Path]) -> None:
    """Remove the hidden folders and the empty ones that were made for them; again where a signal comes between."""
    try:
        _remove(stages, locks, made)
    except BaseException:
        _remove(stages, locks, made)
        raise


def _remove(stages: Iterable[Path], locks: list[int], made: Sequence[Path]) -> None:
    for stage in stages:
        shutil.rmtree(stage, ignore_errors=True)
    while locks:
        os.close(locks.pop())
    for folder in reversed(made):
        with suppress(OSError):  # not empty any more: somebody else uses it
            folder.rmdir()


def _make_stage(parent: Path, option: str, made: list[Path], stages: dict[Path, Path], locks: list[int]) -> None:
    """Make a fresh hidden folder and hold its lock; names are noted first: signals come at any moment."""
    try:
        for folder in reversed([parent, *parent.parents]):
            if not folder.exists():
                made.append(folder)
                folder.mkdir()
        _remove_orphans(parent)
        while True:
            stages[parent] = parent / f"{MARK}{secrets.token_hex(8)}"
            stages[parent].mkdir(mode=0o700)
            with suppress(FileNotFoundError):  # another run took it for an orphan before the lock was held
                locks.append(_lock(stages[parent]))
                return
    except OSError as error:
        raise OutputError(f"{parent}: can not be written ({error.strerror}); give another {option}.") from error


def _lock(stage: Path) -> int:
    """An open descriptor of a folder that holds its lock, where the system has any."""
    lock = os.open(stage, OPEN_FOLDER)
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks: nobody removes orphans there
            fcntl.flock(lock, fcntl.LOCK_EX)
    if not stage.exists():
        os.close(lock)
        raise FileNotFoundError(stage)
    return lock


def _remove_orphans(parent: Path) -> None:
    """Folders whose owner is gone."""
    for folder in parent.glob(f"{MARK}*") if fcntl is not None else []:
        with suppress(OSError):  # in use, or gone meanwhile
            lock = os.open(folder, OPEN_FOLDER)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[union-attr]
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _publish(stages: Mapping[Path, Path], main: Path, force: bool, outdated: Sequence[Path]) -> None:
    """Rename every staged file to its place, `main` last because it names the others; all of them or none.

    What is outdated goes when `main` does not name it any more.
    """
    files = [(file, parent / file.name) for stage, parent in stages.items() for file in stage.iterdir()]
    files = [(file, target) for file, target in files if file.is_file()]
    new: list[Path] = []
    old: list[tuple[Path, Path]] = []  # (second name, first name)
    try:
        for i, (file, target) in enumerate(sorted(files, key=lambda pair: pair[1] == main.absolute())):
            if not os.path.lexists(target):
                new.append(target)
            elif not force:
                raise OutputError(f"{target}: exists already; --force replaces it.")
            else:
                old += _link_aside(target, file.with_name(f"{i}.old"))
            file.replace(target)
        written = {target for _, target in files}
        for target in (path.absolute() for path in outdated):
            if target not in written and target.is_file():
                old += _link_aside(target, next(iter(stages)) / f"{target.name}.old")
                target.unlink()
    except BaseException as error:
        for target in new:
            target.unlink(missing_ok=True)
        for kept, target in old:
            kept.replace(target)
        if isinstance(error, OSError):
            raise OutputError(f"{main}: could not be written ({error.strerror or error}).") from error
        raise


def visible_folder(path: Path) -> Path:
    """The folder that a person knows: of a file in a hidden one, that which will hold it."""
    return next((above.parent for above in path.parents if above.name.startswith(MARK)), path.parent)


def _link_aside(target: Path, kept: Path) -> list[tuple[Path, Path]]:
    """A second name for a file that will be replaced, so that it never lacks its first one; not on all file systems."""
    try:
        kept.hardlink_to(target)
    except OSError:
        return []
    return [(kept, target)]


def write_text(text: str, path: Path, destination: Path) -> None:
    """Write a staged text file that will be `destination`.

    Raises:
        OutputError: the disk is full or the folder not writable.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{destination}: could not be written ({error.strerror or error}).") from error
