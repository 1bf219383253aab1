"""Programs that run beside us and end with us, also where we are killed and can not end them any more.

Enters a command; leaves what it printed and its exit code. Linux kills a child whose parent is gone if the child asks
for it, and that outlives an exec: so a short program asks and becomes the one that is wanted. Elsewhere a child of a
killed run works on to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

FAILED = "corp-onnx-can-not-run "
"""Begin of what the launcher prints in place of a program that does not start."""

LAUNCHER = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):  # it was gone before we asked
    sys.exit(1)
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    print({FAILED!r} + str(error.errno), flush=True)
    sys.exit(1)
"""


def run_child(command: Sequence[str], *, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; an interrupt ends it, and so does our own.

    Args:
        command: the path of the program and its arguments.
        stderr: as `subprocess.run` takes it; what it reads is nothing, and what it prints is caught.

    Raises:
        OSError: the program can not be started.
    """
    asking = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())] if sys.platform == "linux" else []
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stderr}
    done = subprocess.run([*asking, *command], text=True, errors="replace", check=False, **options)
    if done.stdout.startswith(FAILED):
        number = int(done.stdout.split()[1])
        raise OSError(number, os.strerror(number), command[0])
    return done
