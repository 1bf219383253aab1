"""What passes between the parts of the attack. A case is a name and a seed; everything else follows from them."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path

DONE, REFUSED, FAULT = "done and verified", "refused in one sentence", "fault"
"""The three verdicts."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is tried.

    Attributes:
        name: of the spoiler, the scene, or `kill` or `starve`.
        seed: everything drawn comes from it.
        fixture: the file of tests/fixtures that is spoilt or used.
        verb: a name of `verbs.VERBS`; empty where the scene brings its own command.
    """

    name: str
    seed: int
    fixture: str
    verb: str = ""

    @property
    def command(self) -> str:
        """Repeats it."""
        words = ["python", "tools/run_fuzz.py", "--case", self.name, "--seed", str(self.seed), "--fixture"]
        words += [self.fixture, *(["--verb", self.verb] if self.verb else [])]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Command:
    """One command line of corp-onnx in the scratch folder.

    Attributes:
        arguments: behind `corp-onnx`; bytes where a name is no text.
        outputs: paths, relative to the scratch folder, that appear when it is done; a folder may hold anything.
        environment: on top of the usual one.
        memory: bytes of address space; 0 for the usual limit.
        file_size: the largest file that it may write, in bytes; 0 for any: a full disk without a disk.
        stdout: where its output goes; empty for a pipe.
        stop: (seconds after its start, signal); None to let it run.
    """

    arguments: tuple[str | bytes, ...]
    outputs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    memory: int = 0
    file_size: int = 0
    stdout: str = ""
    stop: tuple[float, signal.Signals] | None = None

    @property
    def new(self) -> bool:
        """Whether it is about how a process begins, ends or is limited, so that a fork will not do."""
        return bool(self.environment or self.memory or self.file_size or self.stdout or self.stop)


@dataclass(frozen=True, slots=True)
class Run:
    """What a command did.

    Attributes:
        code: its exit code, negative for a signal; None where it hung.
        before, after: what lay in the scratch folder, see `runner.list_places`.
        orphans: command lines of processes that it left running.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    before: dict[str, str]
    after: dict[str, str]
    orphans: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on a case; `reason` says what is wrong, in a form that equal faults share."""

    case: Case
    verdict: str
    reason: str = ""
    run: Run | None = None
    folder: Path | None = None
    known: int = 0  # the point of the issue that names it
