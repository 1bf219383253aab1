"""What `corp-onnx` and `python -m corp_onnx` start. An interrupt while the libraries load is an interrupt too."""

from __future__ import annotations

import sys

from corp_onnx.memory import require_memory

START_BYTES = 320 * 2**20
"""Of address space that the libraries take while they load; with less, some of them hang in it."""


def main() -> int:
    """Run the command line; see `corp_onnx.cli`."""
    try:
        require_memory(START_BYTES)
        from corp_onnx.cli import main as run
    except KeyboardInterrupt:
        print("corp-onnx: interrupted; nothing was written.", file=sys.stderr)  # noqa: T201
        return 130
    except MemoryError:
        print("corp-onnx: out of memory before anything was read; free some.", file=sys.stderr)  # noqa: T201
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
