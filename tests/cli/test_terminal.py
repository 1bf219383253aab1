"""What a terminal or a pipe does to the output: any width, any encoding, any file name, a reader that leaves."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from samples import OPERATOR, environment, fixture_path, write_photos

from corp_onnx.cli import main

Run = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("vit.onnx", "twin.onnx"):
        shutil.copy(fixture_path(OPERATOR), tmp_path / name)
    write_photos(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PRUNE = ["prune", "vit.onnx", "--calib", "photos", "--preset", "paper", "-o", "small.onnx", "--force"]


class TestWidth:
    @pytest.mark.parametrize("columns", ["0", "1", "20", "79", "1000"])
    @pytest.mark.parametrize(
        ("arguments", "pieces"),
        [
            (["inspect", "vit.onnx"], ["6,398", "1,004", "2 x 10", "blocks.1.attn.vo", "0.0001 GMACs"]),
            (PRUNE, ["6,398", "4,574", "of 24", "of 10", "0.0001 G", "small.report.json"]),
            (["evaluate", "twin.onnx", "--images", "photos", "--reference", "vit.onnx"], ["100.0%", "0.0000"]),
        ],
    )
    def test_no_number_is_cut(
        self, columns: str, arguments: list[str], pieces: list[str], folder: Path, capsys: Run,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """In a narrow terminal the table is wider than the window: the terminal wraps it, and every digit is there."""
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert (folder / "vit.onnx").exists()
        assert main(arguments) == 0
        out = capsys.readouterr().out
        for piece in pieces:
            assert piece in out
        assert "…" not in out

    @pytest.mark.usefixtures("folder")
    def test_width_of_a_pipe_is_fixed(self, capsys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        texts: list[str] = []
        for columns in ("20", "200"):
            monkeypatch.setenv("COLUMNS", columns)
            assert main(["inspect", "vit.onnx"]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1]


class TestNames:
    @pytest.mark.parametrize("name", ["vit[red].onnx", "a[bold]b[", "[red] :smile: 100%.onnx", "été 模型.onnx"])
    def test_names_are_shown_as_they_are(self, name: str, folder: Path, capsys: Run) -> None:
        """Neither markup nor emoji codes nor formats."""
        (folder / "vit.onnx").rename(folder / name)
        assert main(["inspect", name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: 0.0001 GMACs")
        shutil.copy(name, "same.onnx")
        assert main(["evaluate", name, "--images", "photos", "--reference", "same.onnx"]) == 0
        assert f"\n{name} " in capsys.readouterr().out

    def test_name_that_is_no_text(self, folder: Path, capsys: Run) -> None:
        """Latin-1 bytes from another system."""
        name = os.fsdecode(b"caf\xe9.onnx")
        (folder / "vit.onnx").rename(folder / name)
        assert main(["inspect", name]) == 0
        assert capsys.readouterr().out.startswith("caf\ufffd.onnx: 0.0001 GMACs")

    @pytest.mark.usefixtures("folder")
    def test_terminal_of_seven_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        written = io.BytesIO()
        with io.TextIOWrapper(written, encoding="ascii") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            assert main(PRUNE) == 0
            assert re.search(rb"agreement \d+\.\d% \[", written.getvalue())


class TestPipes:
    @pytest.mark.long
    def test_reader_that_leaves(self, folder: Path) -> None:
        command = f"{sys.executable} -m corp_onnx inspect vit.onnx | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.splitlines()[-1] in ("0", "141")  # 0 where all was written before the reader left

    @pytest.mark.long
    def test_reader_that_never_was(self, folder: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "corp_onnx", "inspect", "vit.onnx", "--json"]
        done = subprocess.run(command, cwd=folder, env=environment(), stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")

    @pytest.mark.long
    @pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
    def test_closed_streams(self, redirection: str, folder: Path) -> None:
        """Nobody listens, and the work is done all the same."""
        command = f"{sys.executable} -m corp_onnx {' '.join(PRUNE)} {redirection}"
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0
        assert "Traceback" not in done.stderr
        assert (folder / "small.onnx").stat().st_size > 10_000

    @pytest.mark.long
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    @pytest.mark.parametrize("arguments", [["inspect", "vit.onnx"], ["inspect", "vit.onnx", "--json"], ["--help"]])
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_full_disk_behind_stdout(self, arguments: list[str], unbuffered: str, folder: Path) -> None:
        """Python would try again at exit, with a complaint of its own and code 120."""
        command = [sys.executable, "-m", "corp_onnx", *arguments]
        with Path("/dev/full").open("w") as full:
            env, pipe = environment({"PYTHONUNBUFFERED": unbuffered}), subprocess.PIPE
            done = subprocess.run(command, cwd=folder, env=env, stdout=full, stderr=pipe, text=True)
        assert done.returncode == 2
        name = "input or output" if unbuffered else "standard output"
        assert done.stderr == f"corp-onnx: {name}: No space left on device.\n"

    @pytest.mark.long
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
    @pytest.mark.parametrize("arguments", [["inspect", "nothing.onnx"], ["inspect"]])
    def test_full_disk_behind_stderr(self, arguments: list[str], folder: Path) -> None:
        """The sentence is lost, its code is not."""
        command = [sys.executable, "-m", "corp_onnx", *arguments]
        with Path("/dev/full").open("w") as full:
            env, pipe = environment({"PYTHONUNBUFFERED": ""}), subprocess.PIPE
            done = subprocess.run(command, cwd=folder, env=env, stdout=pipe, stderr=full, text=True)
        assert (done.returncode, done.stdout) == (2, "")


class TestProgress:
    @pytest.mark.long
    def test_bar_on_a_terminal_goes_to_stderr_and_away(self, folder: Path) -> None:
        """stdout is a pipe with the report alone; one line is drawn on the terminal, with what is left of the run."""
        write_photos(folder / "photos", 200, seed=1)
        terminal, device = pty.openpty()
        fcntl.ioctl(device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        command = [sys.executable, "-m", "corp_onnx", *PRUNE, "--json"]
        env = environment({"TERM": "xterm"})
        with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=device) as run:
            os.close(device)
            drawn = b""
            while piece := read_terminal(terminal):
                drawn += piece
            assert run.stdout is not None
            out = run.stdout.read()
        os.close(terminal)
        assert run.returncode == 0, drawn
        assert out.startswith(b'{\n  "schema": 1')
        text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", drawn)
        assert re.search(rb"calibrate: \d+ of \d+ images", text)
        assert re.search(rb"verify .* \d+% +\d+ s left", text)
        assert b"Traceback" not in drawn


def read_terminal(terminal: int) -> bytes:
    """Empty where the other side is closed, which Linux tells as an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
