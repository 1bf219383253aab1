"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from samples import environment, listing

from corp_onnx import staging
from corp_onnx.errors import OutputError
from corp_onnx.staging import MARK, check_destination, staged_files, staged_folders, write_text


class RunFailedError(Exception):
    pass


def one(path: Path) -> dict[str, Path]:
    return {"-o": path}


class TestPublishing:
    def test_files_get_their_places_at_the_end_only(self, tmp_path: Path) -> None:
        output, report = tmp_path / "m.onnx", tmp_path / "m.json"
        with staged_files({"-o": output, "--report": report}) as (staged, staged_report):
            staged.write_text("model")
            staged_report.write_text("report")
            (staged.parent / "m.onnx.data").write_text("weights")
            (staged.parent / "scratch").mkdir()
            assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(MARK)] == []
        assert listing(tmp_path) == ["m.json", "m.onnx", "m.onnx.data"]
        assert output.read_text() == "model"

    def test_main_file_comes_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        moved = spy_on_replace(monkeypatch)
        output = tmp_path / "a.onnx"
        with staged_files({"-o": output, "--report": tmp_path / "z.json"}) as staged:
            for path in (*staged, staged[0].parent / "zz.data"):
                path.write_text("x")
        assert moved[-1] == "a.onnx"
        assert len(moved) == 3

    def test_two_folders(self, tmp_path: Path) -> None:
        destinations = {"-o": tmp_path / "a" / "m.onnx", "--report": tmp_path / "b" / "c" / "m.json"}
        with staged_files(destinations) as (staged, staged_report):
            staged.write_text("model")
            staged_report.write_text("report")
        assert listing(tmp_path) == ["a", "a/m.onnx", "b", "b/c", "b/c/m.json"]

    def test_relative_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with staged_files(one(Path("m.onnx"))) as (staged,):
            staged.write_text("model")
            monkeypatch.chdir("/")  # a library may change it; the destination was named before
        assert listing(tmp_path) == ["m.onnx"]

    @pytest.mark.parametrize("error", [RunFailedError, KeyboardInterrupt, SystemExit])
    def test_nothing_stays_of_a_run_that_fails(self, error: type[BaseException], tmp_path: Path) -> None:
        def fail() -> None:
            with staged_files(one(tmp_path / "new" / "deep" / "m.onnx")) as (staged,):
                staged.write_text("half a model")
                raise error

        with pytest.raises(error):
            fail()
        assert listing(tmp_path) == []

    def test_folder_that_somebody_else_uses_stays(self, tmp_path: Path) -> None:
        def fail() -> None:
            with staged_files(one(tmp_path / "new" / "m.onnx")):
                (tmp_path / "new" / "theirs.txt").write_text("x")
                raise RunFailedError

        with pytest.raises(RunFailedError):
            fail()
        assert listing(tmp_path) == ["new", "new/theirs.txt"]

    def test_all_files_or_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second rename fails: the first file goes again."""
        spy_on_replace(monkeypatch, fail_at="m.onnx")

        def publish() -> None:
            with staged_files({"-o": tmp_path / "m.onnx", "--report": tmp_path / "m.json"}) as staged:
                for path in staged:
                    path.write_text("x")

        with pytest.raises(OutputError, match=r"m\.onnx: could not be written \(No space left on device\)"):
            publish()
        assert listing(tmp_path) == []

    def test_interrupt_between_two_renames(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spy_on_replace(monkeypatch, fail_at="m.onnx", error=KeyboardInterrupt())

        def publish() -> None:
            with staged_files({"-o": tmp_path / "m.onnx", "--report": tmp_path / "m.json"}) as staged:
                for path in staged:
                    path.write_text("x")

        with pytest.raises(KeyboardInterrupt):
            publish()
        assert listing(tmp_path) == []

    def test_old_files_stay_when_a_forced_run_fails(self, tmp_path: Path) -> None:
        output = tmp_path / "m.onnx"
        output.write_text("old")

        def fail() -> None:
            with staged_files(one(output), force=True) as (staged,):
                staged.write_text("new")
                raise RunFailedError

        with pytest.raises(RunFailedError):
            fail()
        assert listing(tmp_path) == ["m.onnx"]
        assert output.read_text() == "old"

    def test_old_files_come_back_when_not_all_can_be_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first file was replaced and the second can not be: both are what they were."""
        names = {"-o": tmp_path / "m.onnx", "--report": tmp_path / "m.json"}
        for path in names.values():
            path.write_text("old")
        spy_on_replace(monkeypatch, fail_at="m.onnx")

        def publish() -> None:
            with staged_files(names, force=True) as staged:
                for path in staged:
                    path.write_text("new")

        with pytest.raises(OutputError, match=r"m\.onnx: could not be written"):
            publish()
        assert listing(tmp_path) == ["m.json", "m.onnx"]
        assert [path.read_text() for path in names.values()] == ["old", "old"]

    def test_file_that_appears_during_the_run_is_not_replaced(self, tmp_path: Path) -> None:
        output = tmp_path / "m.onnx"

        def publish() -> None:
            with staged_files(one(output)) as (staged,):
                staged.write_text("mine")
                output.write_text("theirs")

        with pytest.raises(OutputError, match=r"m\.onnx: exists already; --force replaces it"):
            publish()
        assert output.read_text() == "theirs"
        assert listing(tmp_path) == ["m.onnx"]


def spy_on_replace(monkeypatch: pytest.MonkeyPatch, fail_at: str = "", error: BaseException | None = None) -> list[str]:
    moved: list[str] = []
    replace = Path.replace

    def spied(self: Path, target: Path) -> Path:
        if self.name == fail_at:
            raise error or OSError(28, "No space left on device")
        moved.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spied)
    return moved


class TestOrphans:
    def test_temporary_files_lie_in_the_hidden_folder(self, tmp_path: Path) -> None:
        """Else those of a killed run would stay for ever; none of them is published."""
        before = tempfile.gettempdir()
        with staged_files({"-o": tmp_path / "m.onnx"}) as (path,):
            path.write_text("model")
            with tempfile.NamedTemporaryFile(delete=False) as left:
                assert MARK in left.name
        assert listing(tmp_path) == ["m.onnx"]
        assert tempfile.gettempdir() == before

    def test_folder_of_a_killed_run_goes_and_others_stay(self, tmp_path: Path) -> None:
        orphan = tmp_path / f"{MARK}abcd"
        orphan.mkdir()
        (orphan / "m.onnx").write_text("half a model")
        (tmp_path / ".hidden").mkdir()
        with staged_files(one(tmp_path / "m.onnx")) as (staged,):
            staged.write_text("model")
            assert not orphan.exists()
        assert listing(tmp_path) == [".hidden", "m.onnx"]

    def test_folder_in_use_stays(self, tmp_path: Path) -> None:
        with staged_files(one(tmp_path / "a.onnx")) as (first,):
            with staged_files(one(tmp_path / "b.onnx")) as (second,):
                second.write_text("b")
                assert first.parent.is_dir()
            first.write_text("a")
        assert listing(tmp_path) == ["a.onnx", "b.onnx"]

    def test_folder_in_use_by_another_process_stays_until_it_dies(self, tmp_path: Path) -> None:
        program = (
            "import sys; from pathlib import Path; from corp_onnx.staging import staged_files\n"
            "with staged_files({'-o': Path(sys.argv[1])}) as (staged,):\n"
            "    print(staged.parent.name, flush=True); sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "a.onnx")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            name = other.stdout.readline().strip()
            assert name.startswith(MARK)
            with staged_files(one(tmp_path / "b.onnx")) as (staged,):
                staged.write_text("b")
            assert (tmp_path / name).is_dir()
            other.kill()
        with staged_files(one(tmp_path / "c.onnx")) as (staged,):
            staged.write_text("c")
        assert listing(tmp_path) == ["b.onnx", "c.onnx"]

    def test_without_locks_nothing_is_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(staging, "fcntl", None)
        (tmp_path / f"{MARK}abcd").mkdir()
        with staged_files(one(tmp_path / "m.onnx")) as (staged,):
            staged.write_text("model")
        assert listing(tmp_path) == [f"{MARK}abcd", "m.onnx"]


def fill(folders: tuple[Path, ...], text: str = "new") -> None:
    for folder in folders:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


class TestFolders:
    def test_folders_get_their_places_at_the_end_only(self, tmp_path: Path) -> None:
        """They are filled beside the root: in it there is nothing that somebody who watches it could stumble over."""
        root = tmp_path / "deep" / "root"
        with staged_folders([root / "a", root / "b" / "2"], root) as folders:
            fill(folders)
            assert not root.exists()
            assert all(folder.parent.name.startswith(MARK) for folder in folders)
        assert listing(tmp_path / "deep") == [
            "root", "root/a", "root/a/inner", "root/a/inner/file", "root/b", "root/b/2", "root/b/2/inner",
            "root/b/2/inner/file",
        ]  # fmt: skip

    def test_what_exists_already_holds_nothing_unfinished(self, tmp_path: Path) -> None:
        root = make(tmp_path / "root")
        with staged_folders([root / "a"], root) as folders:
            assert folders[0].parent.parent == tmp_path
            assert listing(root) == []

    def test_others_can_read_them(self, tmp_path: Path) -> None:
        with staged_folders([tmp_path / "root" / "a"], tmp_path / "root") as folders:
            fill(folders)
        (tmp_path / "plain").mkdir()
        assert (tmp_path / "root" / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize("error", [RunFailedError, KeyboardInterrupt])
    def test_nothing_stays_of_a_run_that_fails(self, error: type[BaseException], tmp_path: Path) -> None:
        def fail() -> None:
            with staged_folders([tmp_path / "new" / "root" / "a"], tmp_path / "new" / "root") as folders:
                fill(folders)
                raise error

        with pytest.raises(error):
            fail()
        assert listing(tmp_path) == []

    def test_folder_that_exists_is_replaced_by_force_only(self, tmp_path: Path) -> None:
        fill((make(tmp_path / "a"),), "old")

        def publish(force: bool) -> None:
            with staged_folders([tmp_path / "b", tmp_path / "a"], tmp_path, force=force) as folders:
                fill(folders)

        with pytest.raises(OutputError, match=r"a: exists already; --force replaces it"):
            publish(False)
        assert listing(tmp_path) == ["a", "a/inner", "a/inner/file"]
        assert (tmp_path / "a" / "inner" / "file").read_text() == "old"
        publish(True)
        assert (tmp_path / "a" / "inner" / "file").read_text() == "new"
        assert listing(tmp_path) == ["a", "a/inner", "a/inner/file", "b", "b/inner", "b/inner/file"]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_all_folders_or_none(self, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second folder can not be moved: the first one goes again, and what it replaced comes back."""
        root = make(tmp_path / "root")
        fill((make(root / "a"),), "old")
        rename = Path.rename

        def fail_at_b(self: Path, target: Path) -> Path:
            if target.name == "b":
                raise error
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_at_b)

        def publish() -> None:
            with staged_folders([root / "a", root / "new" / "b"], root, force=True) as folders:
                fill(folders)

        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected, match=r"b: could not be written \(No space" if expected is OutputError else None):
            publish()
        assert listing(tmp_path) == ["root", "root/a", "root/a/inner", "root/a/inner/file"]
        assert (root / "a" / "inner" / "file").read_text() == "old"

    def test_folder_of_somebody_else_is_not_taken_away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It appears between the look and the rename, which fails."""
        rename = Path.rename

        def late(self: Path, target: Path) -> Path:
            if target.name == "a":
                fill((make(target),), "theirs")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", late)

        def publish() -> None:
            with staged_folders([tmp_path / "a"], tmp_path) as folders:
                fill(folders)

        with pytest.raises(OutputError, match=r"a: could not be written \(Directory not empty\)"):
            publish()
        assert (tmp_path / "a" / "inner" / "file").read_text() == "theirs"

    def test_root_that_is_a_file_system_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Renames end at its border, so the folders are filled inside; or where its folder is closed to us."""
        root = make(tmp_path / "root")
        monkeypatch.setattr(os, "access", lambda *_: False)
        with staged_folders([root / "a"], root) as folders:
            assert folders[0].parent.parent == root
            fill(folders)
        assert listing(tmp_path) == ["root", "root/a", "root/a/inner", "root/a/inner/file"]


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


class TestDestinations:
    def test_exists(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_text("x")
        with pytest.raises(OutputError, match=r"m\.onnx: exists already; give another --report, or --force"):
            check_destination(tmp_path / "m.onnx", option="--report")
        check_destination(tmp_path / "m.onnx", force=True)

    def test_dangling_link_exists(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputError, match="exists already"):
            check_destination(tmp_path / "m.onnx")

    @pytest.mark.parametrize("force", [False, True])
    def test_folder(self, force: bool, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="is a folder; give the name of a file"):
            check_destination(tmp_path, force=force)

    def test_device_is_never_replaced(self) -> None:
        with pytest.raises(OutputError, match="/dev/null: is not a regular file; give another -o"):
            check_destination(Path("/dev/null"), force=True)

    def test_file_where_a_folder_must_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(OutputError, match=r"file is not a folder; give another -o"):
            check_destination(tmp_path / "file" / "deep" / "m.onnx")

    def test_two_options_one_file(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        same = {"-o": tmp_path / "m.onnx", "--report": tmp_path / "link" / "m.onnx"}
        with pytest.raises(OutputError, match="-o and --report name the same file"), staged_files(same):
            pass
        assert listing(tmp_path) == ["link"]

    def test_folder_that_can_not_be_written(self) -> None:
        """/proc takes no folders, not even from root."""
        with (
            pytest.raises(OutputError, match=r"/proc/1/new: can not be written .*; give another -o"),
            staged_files(one(Path("/proc/1/new/m.onnx"))),
        ):
            pass

    @pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
    def test_read_only_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="can not be written"), staged_files(one(tmp_path / "m.onnx")):
            pass
        tmp_path.chmod(0o700)


EXHAUSTED = """
import mmap, resource, sys
from pathlib import Path
from corp_onnx.staging import staged_files, staged_folders

kept = []
def exhaust():
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for size in (1 << 20, 1 << 15, 1 << 12, 1 << 9, 1 << 6):
        while True:
            try:
                kept.append(bytes(size))
            except MemoryError:
                break

try:
    if sys.argv[1] == "files":
        with staged_files({"-o": Path("m.onnx")}) as (path,):
            path.write_bytes(b"half")
            exhaust()
            raise MemoryError
    with staged_folders([Path("root/m")], Path("root")) as (folder,):
        (folder / "model.onnx").write_bytes(b"half")
        exhaust()
        raise MemoryError
except MemoryError:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no address space")
@pytest.mark.parametrize("what", ["files", "folders"])
def test_without_memory_there_is_enough_to_clean_up(what: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, what],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert listing(tmp_path) == []


def test_text_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"r\.json: could not be written \(No space left on device\)"):
        write_text("{}", Path("/dev/full"), tmp_path / "r.json")
