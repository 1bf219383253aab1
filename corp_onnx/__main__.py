"""What `corp-onnx` and `python -m corp_onnx` start. An interrupt while the libraries load is an interrupt too."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; see `corp_onnx.cli`."""
    try:
        from corp_onnx.cli import main as run
    except KeyboardInterrupt:
        print("corp-onnx: interrupted; nothing was written.", file=sys.stderr)  # noqa: T201
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
