"""What `corp-onnx` and `python -m corp_onnx` start. An interrupt while the libraries load is an interrupt too."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from corp_onnx.memory import require_memory
from corp_onnx.threads import choose_kernels

EXITS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}
START_BYTES = 320 * 2**20
"""Of address space that the libraries take while they load; with less, some of them hang in it."""

RARELY = (20_000, 20, 50)
"""Thresholds of Python's search for cycles of objects. A graph under the knife is tens of thousands of objects, for
which the usual thresholds search through everything every few passes: a thirtieth of a prune."""


def main() -> int:
    """Run the command line; see `corp_onnx.cli`."""
    found = {number: signal.getsignal(number) for number in EXITS}
    try:
        require_memory(START_BYTES)
        for number, handler in found.items():
            if handler in (signal.SIG_DFL, signal.default_int_handler):  # whoever started us may want one ignored
                signal.signal(number, _leave)
        choose_kernels()
        gc.set_threshold(*RARELY)
        from corp_onnx.cli.main import cli
        from corp_onnx.cli.main import main as run

        for word in cli.commands.keys() & sys.argv[1:2]:
            cli.commands[word]  # with its libraries, which a later signal would meet loading
        for number, handler in found.items():
            signal.signal(number, handler)
        return run()
    except KeyboardInterrupt:
        _leave(signal.SIGINT)
    except MemoryError:
        print("corp-onnx: out of memory; free some.", file=sys.stderr)  # noqa: T201
        return 1


def _leave(number: int, _frame: FrameType | None = None) -> NoReturn:
    """End at once: a library that is loading makes an error of its own of an exception, and nothing is written yet."""
    word, code = EXITS[signal.Signals(number)]
    os.write(2, f"corp-onnx: {word}; nothing was written.\n".encode())
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
