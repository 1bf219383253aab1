"""Programs that run beside us and end with us."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import environment, is_running

from corp_onnx.run import child
from corp_onnx.run.child import run_child


def test_what_it_prints_and_its_code() -> None:
    program = "import sys; print(sys.argv[1]); print(repr(sys.stdin.read()), file=sys.stderr); sys.exit(3)"
    done = run_child([sys.executable, "-c", program, "a b"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "a b\n", "''\n")


def test_the_signal_that_ended_it() -> None:
    done = run_child([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)"])
    assert done.returncode == -signal.SIGABRT


def test_program_that_can_not_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run_child([str(tmp_path / "nothing")])
    assert caught.value.strerror == os.strerror(errno.ENOENT)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError):
        run_child([str(tmp_path / "file")])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a child of its parent's end")
def test_it_ends_with_a_killed_parent(tmp_path: Path) -> None:
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(120)"
    program = f"import sys; from corp_onnx.run.child import run_child; run_child([sys.executable, '-c', {child!r}])"
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", program], env=environment()) as parent:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith(" "):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
        parent.kill()
    while is_running(pid):
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.02)


def test_nobody_else_starts_a_program() -> None:
    """What another room started would outlive a run that is killed, as trtexec did."""
    room = Path(child.__file__).resolve().parent.parent
    calls = re.compile(r"\b(subprocess\.(run|Popen|call|check_\w+)|os\.(system|popen|fork|spawn\w+|posix_spawn\w*))\(")
    found = {str(path.relative_to(room)) for path in room.rglob("*.py") if calls.search(path.read_text("utf-8"))}
    assert found == {"run/child.py"}
