"""The entry point: the group of verbs, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import click

from corp_onnx._version import __version__
from corp_onnx.cli.verbs import VerbGroup, Verbs
from corp_onnx.errors import CorpOnnxError

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143
"""128 + the number of the signal, as shells count."""


KEEPING = {"calibrate", "sweep"}
"""Verbs that keep what they have done when they are stopped."""

NO_MEMORY = "out of memory; free some, or give a smaller --batch where the verb has one."

DEAF_SECONDS = 5.0
"""So long after a signal no other one is heard: it would end the cleaning up that the first one began."""


class _Terminated(BaseException):
    """SIGTERM: unwinds like an interrupt, so that nothing half-written stays behind."""


class _Signals:
    """What SIGINT and SIGTERM do while a verb runs: the first one unwinds, and those right behind it do nothing.

    `last` is the one that unwinds, 0 before there is any.
    """

    def __init__(self) -> None:
        self.last = 0
        self._heard = -math.inf
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` and a shell in the background want it
                self._previous[number] = signal.signal(number, self._raise)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _raise(self, number: int, _frame: FrameType | None) -> None:
        if time.monotonic() - self._heard >= DEAF_SECONDS:
            self._heard, self.last = time.monotonic(), number
            raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


@click.group(
    cls=VerbGroup, commands=Verbs(), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="corp-onnx")
def cli() -> None:
    """Make a Vision Transformer that exists only as an ONNX file smaller and faster.

    \b
    Example:
      corp-onnx prune deit_base.onnx --calib photos/
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; never raises for what a person can cause. Returns the exit code and, as a script, exits."""
    code = _run(arguments)
    if arguments is None:
        sys.exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    signals = _Signals()
    try:
        with signals:
            return _guard(arguments, signals)
    except KeyboardInterrupt:  # before the verb began, or when it was done
        return _say("interrupted.", INTERRUPTED)
    except _Terminated:
        return _say("terminated.", TERMINATED)


def _guard(arguments: Sequence[str] | None, signals: _Signals) -> int:
    """The exit code of a verb, with a sentence where it is not 0."""
    sys.stdout = sys.stdout or _open_nowhere()
    sys.stderr = sys.stderr or _open_nowhere()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ±, or a file name that is no text
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        result = cli.main(args=arguments, prog_name="corp-onnx", standalone_mode=False, obj=tuple(typed))
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit:  # without its standalone mode, click exits for a closed pipe only
        return _drop_output()
    except CorpOnnxError as error:
        if signals.last:  # a library that was loading made an error of its own of it
            return _say_stopped(signals.last, typed)
        return _say(str(error), error.exit_code)
    except click.ClickException as error:
        return _complain(error.show, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _say_stopped(signal.SIGINT, typed)
    except _Terminated:
        return _say_stopped(signal.SIGTERM, typed)
    except MemoryError:
        return _say(NO_MEMORY, 1)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _drop_output()
        if error.errno == errno.ENOMEM:
            return _say(NO_MEMORY, 1)
        return _say(f"{error.filename or _name_stream()}: {error.strerror or error}.", 2)


def _say_stopped(number: int, typed: Sequence[str]) -> int:
    word, code = ("interrupted", INTERRUPTED) if number == signal.SIGINT else ("terminated", TERMINATED)
    goes_on = bool({*typed[:1]} & KEEPING)
    left = "the same command goes on from what is kept" if goes_on else "nothing was written"
    return _say(f"{word}; {left}.", code)


def _open_nowhere() -> TextIO:
    """For a stream that was closed by who started us (`>&-`); it takes the number that another file would take."""
    return Path(os.devnull).open("w", encoding="utf-8")


def _name_stream() -> str:
    """What could not be read or written, where the system does not say. A full stdout is not tried again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return "standard output"
    return "input or output"


def _drop_output(stream: int = 1) -> int:
    """The reader of stdout left, as `head` does: what is still buffered goes nowhere, without a complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return BROKEN_PIPE


def _say(sentence: str, code: int) -> int:
    sentence = sentence.encode("utf-8", "replace").decode()  # a file name that is no text
    return _complain(partial(click.echo, f"corp-onnx: {sentence}", err=True), code)


def _complain(show: Callable[[], None], code: int) -> int:
    """The code, which says it too where nobody listens to stderr."""
    try:
        show()
    except OSError:
        _drop_output(2)
    return code
