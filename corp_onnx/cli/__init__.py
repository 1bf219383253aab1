"""The command line: `corp-onnx VERB INPUT`; results on stdout, progress and warnings on stderr.

Exit codes: 0 done, 1 a check failed, 2 wrong use or unusable input; 130 and 143 when interrupted or terminated, 141
when the reader of stdout left.
"""

from corp_onnx.cli.main import main

__all__ = ["main"]
